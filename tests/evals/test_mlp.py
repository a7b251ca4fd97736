"""The MLP probe: classifiers side by side are classifiers alone, and saved ones say the same."""

import math

import pytest
import torch
from asking import ask, make_chain, write
from equitools.stages import probe
from equitools.stages.perturb import PROGRAM
from torch import nn
from torch.nn import functional as F

from equitools import manifest
from equitools.core.errors import NumericalError, UsageError
from equitools.evals.classification.linear import evaluate as linear
from equitools.evals.classification.mlp import evaluate as mlp
from equitools.evals.classifiers.mlp import Classifiers, logits, named, shape
from equitools.evals.robustness import judges
from equitools.features.table import FeatureTable

FAST = {"epochs": 12, "lrs": [0.1], "batch_size": 32, "seeds": [0, 1], "hidden": 32}


def rings(count, seed, split=None):
    """Three classes that no plane separates: rings of radius 1, 2 and 3, and two idle channels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    radius = labels + 1 + 0.1 * torch.randn(count, generator=generator)
    points = torch.stack((radius * angle.cos(), radius * angle.sin()), 1)
    idle = torch.randn(count, 2, generator=generator)
    keys = [str(i) for i in range(count)]
    return FeatureTable(torch.cat((points, idle), 1), labels, keys, 3, width=4, split=split)


def test_classifiers_side_by_side_are_torch_s_adam_one_by_one():
    data = rings(64, 0)
    targets = F.one_hot(data.labels, 3).float()
    rates = torch.tensor([0.001, 0.01])
    both = Classifiers(4, 3, rates, 5, hidden=16)
    for i, rate in enumerate(rates.tolist()):
        net = nn.Sequential(
            nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
        )
        net.load_state_dict(both.nets[i].state_dict())
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)
        together = Classifiers(4, 3, rates, 5, hidden=16)
        for rows in torch.arange(64).split(16):
            together.step(data.features[rows], targets[rows], torch.ones(16, 2), 1.0)
            optimizer.zero_grad()
            F.cross_entropy(net(data.features[rows]), data.labels[rows]).backward()
            optimizer.step()
        for ours, theirs in zip(together.nets[i].parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_classifier_never_sees_samples_of_weight_zero():
    data = rings(16, 0)
    targets = F.one_hot(data.labels, 3).float()
    rates, weights = torch.tensor([0.01, 0.01]), torch.ones(16, 2)
    weights[4:, 0] = 0
    both = Classifiers(4, 3, rates, 0, hidden=8)
    both.step(data.features, targets, weights, 1.0)
    few = Classifiers(4, 3, rates[:1], 0, hidden=8)
    few.step(data.features[:4], targets[:4], torch.ones(4, 1), 1.0)
    for ours, theirs in zip(both.nets[0].parameters(), few.nets[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_no_plane_separates_an_mlp_does_and_a_linear_probe_does_not():
    train, test = rings(400, 0), rings(300, 1)
    bent = mlp(train, test, ["all"], "official", **FAST).scores["all/mean/top1"]
    flat = linear(train, test, ["all"], "official", epochs=12, lrs=[0.1], seeds=[0]).scores
    assert bent > 90
    assert flat["all/mean/top1"] < 60


def test_the_first_layer_has_the_width_and_the_defaults_are_those_of_the_literature():
    outcome = mlp(rings(40, 0), rings(20, 1), ["all"], "official", epochs=1, seeds=[0])
    shapes = {name: tuple(value.shape) for name, value in outcome.heads.items()}
    assert shapes["all/seed0/weight1"] == (1024, 4)
    assert shapes["all/seed0/weight2"] == (1024, 1024)
    assert shapes["all/seed0/weight3"] == (3, 1024)
    assert outcome.facts["effective_lrs"] == pytest.approx(
        [r * 40 / 1024 for r in (3e-4, 1e-3, 3e-3)]
    )
    assert len(outcome.facts["held_out"]["all/seed0"]) == 3


@pytest.mark.parametrize("standardize", [False, True])
def test_the_saved_head_gives_the_reported_accuracy(standardize):
    train, test = rings(200, 0, split=2), rings(100, 1, split=2)
    train.features, test.features = train.features * 5 + 3, test.features * 5 + 3
    found = mlp(train, test, ["all", "ir"], "official", standardize=standardize, **FAST)
    judged = judges.judge(test, found.heads, "official")
    for part in ("all", "ir"):
        assert judged[f"{part}/top1"] == pytest.approx(found.scores[f"{part}/mean/top1"])
        assert found.scores[f"{part}/seed1/best/top1"] >= found.scores[f"{part}/seed1/top1"]


def test_a_part_is_the_same_alone_and_beside_others():
    data = [rings(100, seed, split=2) for seed in (0, 1)]
    alone = mlp(*data, ["ef"], "official", **FAST)
    beside = mlp(*data, ["all", "ir", "ef"], "official", **FAST)
    assert beside.scores["ef/seed1/top1"] == alone.scores["ef/seed1/top1"]
    assert beside.heads["ef/seed1/weight1"].shape == (32, 2)


def test_a_rate_that_diverges_harms_no_other_and_is_not_chosen():
    data = [rings(100, 0), rings(60, 1)]
    wild = mlp(*data, ["all"], "official", **{**FAST, "lrs": [0.1, 1e38]})
    assert set(wild.facts["chosen_lr"].values()) == {0.1}
    with pytest.raises(NumericalError, match="smaller lrs"):
        mlp(*data, ["all"], "official", **{**FAST, "lrs": [1e38]})


def test_labels_that_mean_nothing_are_at_chance():
    train, test = rings(400, 0), rings(300, 1)
    train.labels = train.labels[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    found = mlp(train, test, ["all"], "official", **FAST).scores["all/mean/top1"]
    assert abs(found - 100 / 3) < 3 * 100 * math.sqrt(2 / 9 / 300) + 3


def test_a_linear_head_and_an_mlp_are_read_from_one_kind_of_file():
    x = torch.randn(5, 4)
    weight, bias = torch.randn(3, 4), torch.randn(3)
    found = named({"all/seed0/weight": weight, "all/seed0/bias": bias})
    assert torch.equal(logits(found["all/seed0"], x), F.linear(x, weight, bias))
    net = Classifiers(4, 3, torch.tensor([0.1]), 0, hidden=8)
    saved = net.tensors(0, torch.tensor(0.0), torch.tensor(1.0))
    torch.testing.assert_close(logits(saved, x), net.nets[0](x))
    assert shape(saved) == (3, 4)


@pytest.mark.parametrize("knob", [{"hidden": 0}, {"epochs": 0}, {"lrs": []}, {"holdout": 1.5}])
def test_impossible_knobs_are_refused(knob):
    with pytest.raises(UsageError, match=r"probe\."):
        mlp(rings(30, 0), rings(30, 1), ["all"], "official", **{**FAST, **knob})


def test_the_stage_trains_it_on_four_blocks_and_perturb_judges_with_it(tmp_path):
    chain = make_chain(tmp_path)
    fast = ["workers=0", "epochs=2", "lrs=0.001,0.01", "seeds=0,1", "hidden=16"]
    found = ask(probe.PROGRAM, chain, "mlp", "parts=all,ir,ef", *fast, out=tmp_path / "mlp")
    assert found["probe"]["layers"] == "cls4"
    assert {"probe/mlp/all/mean/top1", "probe/mlp/ef/seed1/best/top1"} <= found["scores"].keys()
    path = write(found, tmp_path / "probed.yaml")
    grid = ask(PROGRAM, path, "grid", "draws=1", "workers=0", out=tmp_path / "grid")
    for part in ("all", "ir", "ef"):
        untouched = grid["scores"][f"perturb/grid/orig/{part}/mean/top1"]
        assert untouched == pytest.approx(found["scores"][f"probe/mlp/{part}/mean/top1"])


def test_the_recipe_of_ser_sweeps_the_rates_of_paper_and_code():
    probe_layer = manifest.layer("linear-ser", ("probe",))["probe"]
    assert set(probe_layer["lrs"]) == {0.001, 0.003, 0.01, 0.03, 0.1, 0.3} | {1, 3, 10}
    assert (probe_layer["epochs"], probe_layer["batch_size"]) == (50, 2048)
