"""docs/architecture.md names files that are there, and functions that these files define."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
# A file, and behind a dot the functions to read in it.
FILE, NAMES = r"`((?:equitools|stages|tests)/[\w/.]+)`", r"((?:`[\w.]+`(?:,\s+)?)+)"
NAMED = re.findall(rf"{FILE}(?:\s+·\s+{NAMES})?", PAGE)


def defined(path):
    """The functions and classes of a file, methods as Class.method."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{one.name}" for one in node.body if hasattr(one, "name"))


@pytest.mark.parametrize(("file", "names"), NAMED)
def test_a_file_is_there_with_the_functions_beside_it(file, names):
    assert (ROOT / file).exists()
    beside = set(re.findall("`(.+?)`", names))
    assert not beside or beside <= set(defined(ROOT / file))


def test_each_walk_has_nine_steps_and_both_fit_on_two_screens():
    assert re.findall(r"^(\d)\. \*\*", PAGE, re.M) == list("123456789" * 2)
    assert len(PAGE.splitlines()) <= 90
