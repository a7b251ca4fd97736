"""docs/adding.md is right: its regularizer, taken from the page, passes the contract tests."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_steps import DIM, SPLIT, small, toy_step

from equitools import equivariance, manifest
from equitools.core.errors import UsageError
from equitools.training import learner, recipe

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "adding.md").read_text()
CODE, LINE = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
(LAYER,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)


def load(path):
    spec = importlib.util.spec_from_file_location("turned", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def turned(tmp_path, monkeypatch):
    path = tmp_path / "turned.py"
    path.write_text(CODE)
    monkeypatch.setattr(equivariance, "turned", load(path).Turned, raising=False)
    return equivariance.turned


def test_the_line_is_an_import_of_the_file():
    assert LINE.strip() == "from equitools.equivariance.turned import Turned as turned"


def test_the_contract_tests_of_the_page_pass(tmp_path):
    """In a process of its own, where the name is in the menu before the tests are collected."""
    (tmp_path / "turned.py").write_text(CODE)
    (tmp_path / "listed.py").write_text(
        "from equitools import equivariance\nimport turned\nequivariance.turned = turned.Turned\n"
    )
    words = ["-m", "pytest", "-p", "listed", "-k", "turned-dino or turned-simsiam", "-x"]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words, "tests/objectives/test_contracts.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b1[0-9] passed", done.stdout)


def test_the_loss_is_zero_for_the_angle_and_half_for_nothing(turned):
    base = small("simsiam")
    term, step = turned(DIM, base, hidden_dim=8), toy_step(base, local=0)
    with torch.no_grad():
        term.head[2].weight.zero_()
        term.head[2].bias.zero_()
    assert term(step)["turned"].item() == pytest.approx(0.5)
    for view in step.views:
        view.action["rotation"] = torch.full_like(view.action["rotation"], 30.0)
    with torch.no_grad():
        term.head[2].bias.copy_(torch.tensor([1.0, 0.0]))
    assert term(step)["turned"].item() == pytest.approx(0, abs=1e-12)


def test_a_recipe_takes_it_and_one_without_rotation_is_refused(turned, tmp_path):
    path = tmp_path / "turned.yaml"
    path.write_text(LAYER)
    whole: dict = {}
    for word in ("simsiam", "resnet-mini", "caug"):
        layer = manifest.layer(word, ("objective", "backbone", "views"))
        whole = manifest.fold(whole, layer["recipe"])
    whole = manifest.fold(whole, manifest.load_file(path)[0]["recipe"])
    built = learner.build(recipe.resolve(recipe.apply_defaults(whole)))
    assert built.weights == {"turned": 0.5}
    assert built.terms["turned"].head[0].in_features == 2 * built.encoder.dim
    still = manifest.fold(whole, {"views": {"rotation": None}})
    with pytest.raises(UsageError, match=r"turned reads .* set views.rotation"):
        learner.build(recipe.resolve(recipe.apply_defaults(still)))


def test_its_width_is_the_whole_representation(turned):
    assert SPLIT < DIM
    assert turned(DIM, small("simsiam")).head[0].in_features == 2 * DIM
