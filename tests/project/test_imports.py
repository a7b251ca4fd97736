"""Imports point down, siblings are strangers, and every file is where the package says it is."""

import ast
import fnmatch
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# The law: room → the rooms that it may import. Rooms of one line stand on one floor.
BELOW = ("core", "manifest", "nn", "augment", "data", "backbones")
LAW = {
    "core": (),
    "manifest": ("core",),
    "nn": ("core",),
    "augment": ("core", "manifest"),
    "data": ("core", "manifest"),
    "backbones": ("core", "manifest", "nn"),
    "objectives": ("core", "nn"),
    "equivariance": ("core", "nn", "augment"),
    "features": BELOW,
    "training": (*BELOW, "features", "objectives", "equivariance"),
    "evals": (*BELOW, "features"),
    "report": (*BELOW, "features", "evals", "training"),
}
# Inside a room: folders and files from low to high; the stranger files of a rank know no other.
RANKS = {
    "nn": (("*",), ("losses",)),
    "augment": (
        ("geometry", "grid", "normalize", "rng", "color", "checks", "operation"),
        ("native",),
        ("operations",),
        ("engines",),
        ("views",),
        ("corruptions",),
        ("",),
    ),
    "data": (("images", "workers", "cache"), ("sources",), ("shards",)),
    "evals": (
        ("run",),
        ("classifiers",),
        ("classification", "segmentation", "equivariance", "embedding"),
        ("robustness",),
        ("",),
    ),
}
STRANGERS = ("objectives", "equivariance", "augment.operations", "stages")
# Readers of sources: strangers but for what all of them are made of.
SOURCES = {"source", ""}
TORCH_FREE = {"core.errors", "core.files", "core.processes"}
LARGEST_FOLDER = 25


def modules():
    """Every module of the package by its dotted name inside equitools; stages are stages.x."""
    named = {}
    for folder, prefix in ((ROOT / "equitools", ""), (ROOT / "stages", "stages.")):
        for path in folder.rglob("*.py"):
            name = prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
            named[name.removesuffix("__init__").rstrip(".")] = path
    return {name: path for name, path in named.items() if name}


MODULES = modules()


def imports(name):
    """The dotted names that a module imports, type checking included; `from a import b` is a.b."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                assert name.startswith("stages"), f"{path}: imports are absolute"
                above = package.rsplit(".", node.level - 1)[0]
                base = ".".join(part for part in ("equitools", above, base) if part)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def edges(name):
    """The modules of equitools that a module imports."""
    reached = set()
    for imported in imports(name):
        parts = imported.split(".")
        if parts[0] == "equitools":
            while len(parts) > 1 and ".".join(parts[1:]) not in MODULES:
                parts.pop()
            reached.add(".".join(parts[1:]))
    return reached - {name, ""}


GRAPH = {name: edges(name) for name in MODULES}


def room(name):
    return name.split(".")[0]


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) != "stages"))
def test_a_module_imports_rooms_below_its_own(name):
    assert {room(edge) for edge in GRAPH[name]} - {room(name)} <= set(LAW[room(name)])


def test_the_rooms_are_the_folders_and_every_floor_lies_on_the_ones_before():
    assert {path.parent.name for path in (ROOT / "equitools").glob("*/__init__.py")} == set(LAW)
    list(graphlib.TopologicalSorter(LAW).static_order())


def rank(name):
    """How high a module lies in its room; the faces of the room's folders lie with them."""
    _, _, rest = name.partition(".")
    first, ranks = rest.split(".")[0], RANKS[room(name)]
    named = [i for i, group in enumerate(ranks) if first in group]
    return named[0] if named else next(i for i, group in enumerate(ranks) if "*" in group)


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) in RANKS))
def test_inside_a_room_imports_point_down_and_folders_of_one_rank_are_strangers(name):
    part = name.split(".")[1:2]
    for edge in GRAPH[name]:
        if room(edge) == room(name) and edge.split(".")[1:2] != part:
            lower = rank(edge) < rank(name)
            files = RANKS[room(name)][rank(name)] and rank(edge) == rank(name)
            beside = files and not (ROOT / "equitools" / room(name) / part[0]).is_dir()
            assert lower or beside, f"{name} → {edge}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_siblings_never_import_one_another(name):
    folder, _, leaf = name.rpartition(".")
    if folder in STRANGERS:
        assert not [edge for edge in GRAPH[name] if edge.rpartition(".")[0] == folder]
    if folder == "data.sources" and leaf not in SOURCES:
        others = [edge for edge in GRAPH[name] if edge.rpartition(".")[0] == folder]
        allowed = {"data.sources.source"} | (
            {"data.sources.scenes"} if leaf == "scene_folders" else set()
        )
        assert set(others) <= allowed


def test_no_two_modules_import_each_other():
    list(graphlib.TopologicalSorter(GRAPH).static_order())


def torch_free():
    return sorted(TORCH_FREE | {name for name in MODULES if room(name) == "manifest"})


def test_the_rooms_below_need_no_torch():
    code = "".join(f"import equitools.{name}\n" for name in torch_free())
    code += "import sys\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.count(".") < 2 and "stages" in n))
def test_a_stage_answers_help_without_torch(name):
    code = f"import sys, equitools.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


PARSES = re.compile(r"^\s*(from|import) (click|rich|argparse)\b|\bprint\(|\bsys\.argv", re.M)


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) != "stages"))
def test_the_library_parses_no_arguments_and_prints_nothing(name):
    assert not PARSES.search(MODULES[name].read_text(encoding="utf-8"))


def test_no_folder_is_larger_than_one_can_read():
    for folder in {path.parent for path in MODULES.values()}:
        assert len(list(folder.glob("*.py"))) <= LARGEST_FOLDER, folder


def test_the_package_list_is_the_folders():
    declared = PYPROJECT["tool"]["setuptools"]["packages"]
    folders = [path.parent for path in MODULES.values() if path.name == "__init__.py"]
    names = [".".join(path.relative_to(ROOT).parts) for path in folders]
    names = [f"equitools.{n}" if n.startswith("stages") else n for n in names]
    assert sorted(declared) == sorted(["equitools", *names, "equitools.manifests"])


@pytest.mark.parametrize("name", [n for n in MODULES if n.count(".") == 1 and "stages" in n])
def test_a_stage_runs_as_a_module_too(name):
    text = MODULES[name].read_text(encoding="utf-8")
    assert name == "stages.cli" or text.endswith('if __name__ == "__main__":\n    main()\n')


def test_every_console_script_is_a_stage_and_every_stage_a_script():
    stages = sorted(path.stem for path in (ROOT / "stages").glob("[a-z]*.py"))
    expected = {f"equi-{stage}": f"equitools.stages.{stage}:main" for stage in stages}
    assert PYPROJECT["project"]["scripts"] == expected


def test_the_top_folder_holds_what_the_design_says():
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    names = {
        path.name
        for path in ROOT.iterdir()
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored)
    }
    assert names <= {
        ".ci",
        ".git",
        ".github",
        ".gitignore",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "SECURITY.md",
        "Makefile",
        "README.md",
        "docs",
        "equitools",
        "manifests",
        "pyproject.toml",
        "stages",
        "tests",
    }
    rooms = {p.name for p in (ROOT / "equitools").iterdir() if p.name != "__pycache__"}
    assert rooms == {*LAW, "__init__.py", "py.typed"}
