"""Every recipe layer is a whole small document, and its name means one thing to each stage."""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
from equitools.stages.cli.program import Program

from equitools import manifest

ROOT = Path(__file__).parents[2]
LAYERS = sorted((ROOT / "manifests").glob("*/*.yaml"))
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("[a-z]*.py"))
SECTIONS = {"shard", "recipe", "probe", "perturb", "transfer", "table"}


def program_of(stage):
    """What a stage's file hands to the frame."""
    module = importlib.import_module(f"equitools.stages.{stage}")
    return next(found for found in vars(module).values() if isinstance(found, Program))


@pytest.mark.parametrize("path", LAYERS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_layer_is_one_document_that_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert re.match(r"# \S.*\n(#.*\n)*---\n|---\n# \S", text), "--list shows a comment"
    assert text.endswith("\n...\n")
    (document,) = manifest.load(text, str(path))
    assert set(document) <= SECTIONS, "a layer addresses sections of stages, and is no manifest"
    assert all(isinstance(section, dict) for section in document.values())


@pytest.mark.parametrize("stage", STAGES)
def test_no_two_layers_that_a_stage_reads_share_a_name(stage):
    program = program_of(stage)
    read = [path.stem for path in LAYERS if path.parent.name in program.folders]
    assert [name for name, count in Counter(read).items() if count > 1] == []
    assert set(read) == set(manifest.layers(program.folders))


@pytest.mark.parametrize("stage", STAGES)
def test_every_folder_that_a_stage_reads_has_layers_and_no_word_has_two_meanings(stage):
    program = program_of(stage)
    for folder in program.folders:
        assert manifest.layers([folder]), f"manifests/{folder} is empty"
    assert not set(manifest.layers(program.folders)) & set(program.verbs)


def test_a_word_that_ends_like_a_file_is_no_layer():
    for path in LAYERS:
        assert "/" not in path.stem
        assert not path.stem.endswith((".yaml", ".yml"))
        assert "=" not in path.stem
