"""Imports point one way, siblings are strangers, and every file is where the package says it is."""

import ast
import fnmatch
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SIBLINGS = ("objectives", "equivariance", "evals", "backbones", "stages")

# What `frame` needs to start: these know nothing of tensors.
FRAME = {
    "errors", "documents", "files", "manifest", "names", "pipes", "words", "failures", "progress",
    "frame",
}  # fmt: skip
TENSORS = {"records", "parallel"}
GROUND = FRAME | TENSORS
# What makes and reads shards.
DATA = {
    "cub", "foreign", "images", "packers", "packing", "remote", "scenes", "selection", "sharding",
    "shards", "shardset", "shardtable", "sources", "tars", "tarwriter", "torchvision_sets",
}  # fmt: skip

# group → what it may import of equitools, by the first part of the module's name
MAY = {
    "errors": set(),
    "records": set(),
    "parallel": {"errors", "pipes"},
    **dict.fromkeys(FRAME - {"errors", "frame"}, FRAME),
    "frame": FRAME | {"parallel"},
    **dict.fromkeys(("optim", "ema", "heads", "parts"), GROUND | {"parts", "heads"}),
    "logistic": GROUND,
    "featurecache": GROUND | {"checkpoint"},
    "crossview": {"crossview_rows", "heads"},
    **dict.fromkeys(("batchnorm", "contrast", "dense_contrast"), GROUND),
    **dict.fromkeys(("crossview_rows", "crossview_kernels"), GROUND),
    "crossscan": {"crossscan_sweep", "crossscan_kernels"},
    **dict.fromkeys(("crossscan_sweep", "crossscan_kernels"), GROUND),
    **dict.fromkeys(
        ("objectives", "equivariance"),
        GROUND | {"heads", "parts", "ema", "contrast", "crossview", "dense_contrast", "augment"},
    ),
    "backbones": GROUND | {"heads", "parts", "ema", "augment", "backbones", "crossscan"},
    "augment": GROUND | {"images", "augment"},
    **dict.fromkeys(DATA, GROUND | DATA),
}
# group → what it must not import
MUST_NOT = {
    "evals": {"objectives", "equivariance", "stages"},
    "checkpoint": {"objectives", "equivariance", "evals", "stages"},
    "features": {"objectives", "equivariance", "evals", "stages"},
}
THIRD_PARTY = {"yaml", "click", "rich"}


def modules():
    """Every module of the package by its dotted name inside equitools."""
    found = {}
    for folder, prefix in ((ROOT / "equitools", ""), (ROOT / "stages", "stages.")):
        for path in folder.rglob("*.py"):
            name = prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix(".__init__").removesuffix("__init__") or "equitools"] = path
    return {name.rstrip("."): path for name, path in found.items()}


MODULES = modules()


def statements(tree):
    """All import statements, those in functions too, but not what only a type checker runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        yield from statements(node)


def imports(path):
    """The dotted names that a file imports; `from a import b` is a.b."""
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner(name):
    """The module of equitools that an imported name is or lies in; None for other packages."""
    parts = name.split(".")
    if parts[0] != "equitools":
        return None
    while parts and ".".join(parts[1:]) not in MODULES:
        parts.pop()
    return ".".join(parts[1:]) or None


def edges(name):
    """The modules of equitools that a module imports."""
    return {found for i in imports(MODULES[name]) if (found := inner(i)) and found != name}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_what_lies_below_it(name):
    group = name.split(".")[0]
    reached = {edge.split(".")[0] for edge in edges(name)} - {"equitools"}
    if group in MAY:
        assert reached - {group} <= MAY[group]
    assert not reached & MUST_NOT.get(group, set())
    if group != "stages":
        assert "stages" not in reached, "the library knows no stage"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.split(".")[0] in SIBLINGS))
def test_siblings_never_import_one_another(name):
    folder, _, leaf = name.partition(".")
    if not leaf or folder == "backbones":
        return
    assert not [edge for edge in edges(name) if edge.startswith(f"{folder}.")]


def test_no_two_modules_import_each_other():
    graph = {name: edges(name) for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", sorted(FRAME))
def test_the_frame_needs_the_standard_library_yaml_click_and_rich(name):
    outside = {found.split(".")[0] for found in imports(MODULES[name])} - {"equitools"}
    assert outside - set(sys.stdlib_module_names) <= THIRD_PARTY


@pytest.mark.parametrize("stage", sorted(n for n in MODULES if n.startswith("stages.")))
def test_a_stage_answers_help_without_torch(stage):
    code = f"import sys, equitools.{stage}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_package_list_is_the_folders():
    declared = PYPROJECT["tool"]["setuptools"]["packages"]
    folders = [path.parent.name for path in (ROOT / "equitools").glob("*/__init__.py")]
    expected = ["equitools", *(f"equitools.{folder}" for folder in folders)]
    assert sorted(declared) == sorted([*expected, "equitools.stages", "equitools.manifests"])


def test_every_console_script_is_a_stage_and_every_stage_a_script():
    stages = sorted(path.stem for path in (ROOT / "stages").glob("[a-z]*.py"))
    expected = {f"equi-{stage}": f"equitools.stages.{stage}:main" for stage in stages}
    assert PYPROJECT["project"]["scripts"] == expected


def test_the_top_folder_holds_what_the_design_says():
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    found = {
        path.name
        for path in ROOT.iterdir()
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored)
    }
    assert found <= {
        ".ci", ".git", ".github", ".gitignore", "CHANGELOG.md", "CITATION.cff", "LICENSE",
        "SECURITY.md",
        "Makefile", "README.md", "docs", "equitools", "manifests", "pyproject.toml", "stages",
        "tests",
    }  # fmt: skip
