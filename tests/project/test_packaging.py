"""What setuptools would put into a wheel: every module and every file of data, and nothing else."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What is compiled need not be in a wheel; what python and the recipes read must.
READ = (".py", ".yaml", ".txt", ".typed")


def packed():
    """The files of a wheel by their paths in site-packages, each with where it lies here."""
    pytest.importorskip("setuptools")
    from setuptools import Distribution
    from setuptools.config.pyprojecttoml import apply_configuration

    wheel = apply_configuration(Distribution({"script_name": "setup.py"}), "pyproject.toml")
    wheel.include_package_data = False  # it would write a folder into the checkout
    build = wheel.get_command_obj("build_py")
    build.ensure_finalized()
    modules = [(package, Path(file)) for package, _, file in build.find_all_modules()]
    data = [(package, Path(src, f)) for package, src, _, files in build.data_files for f in files]
    folders = wheel.package_dir
    for package, path in modules + data:
        base = Path(folders.get(package, package.replace(".", "/")))
        yield Path(package.replace(".", "/")) / path.relative_to(base), path


@pytest.mark.filterwarnings("ignore:.*ext-modules")
def test_a_wheel_holds_all_that_is_read_under_one_name(monkeypatch):
    monkeypatch.chdir(ROOT)
    inside = dict(packed())
    assert {path.parts[0] for path in inside} == {"equitools"}
    here = [p for top in ("equitools", "stages", "manifests") for p in Path(top).rglob("*")]
    assert set(inside.values()) == {path for path in here if path.suffix in READ}
    assert inside[Path("equitools/stages/cli/words.py")] == Path("stages/cli/words.py")
    assert inside[Path("equitools/manifests/probe/knn.yaml")] == Path("manifests/probe/knn.yaml")
    assert Path("equitools/data/sources/imagenet100.txt") in inside


def test_git_ignores_nothing_that_is_read():
    """A folder called like one that runs make, such as shards/, would be missing in a clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard"]
    folders = ["equitools", "stages", "manifests", "tests", "docs"]
    listed = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True)
    assert [name for name in listed.stdout.split() if name.endswith(READ)] == []
