"""The linear probe: heads trained together are the heads trained alone, and test data decide
nothing."""

import math

import pytest
import torch
from torch import nn

from equitools.core.errors import DataError, NumericalError, UsageError
from equitools.evals.classification.linear import evaluate
from equitools.evals.classifiers.linear import HeadBank
from equitools.evals.classifiers.protocol import cosine, spread
from equitools.features.labels import check_head
from equitools.features.table import FeatureTable


def table(count, seed, classes=6, width=8, noise=1.0, split=None):
    """Gaussian clouds around fixed centers."""
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(99)) * 2
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    features = centers[labels] + noise * torch.randn(count, width, generator=generator)
    keys = [str(i) for i in range(count)]
    return FeatureTable(features, labels, keys, classes, width=width, split=split)


FAST = {"epochs": 10, "lrs": [0.01, 0.1, 1.0], "batch_size": 32, "seeds": [0, 1]}


def test_many_heads_in_one_pass_are_torch_sgd_one_by_one():
    data = table(64, 0)
    rates = torch.tensor([0.01, 0.1, 0.5])
    heads = HeadBank(8, 6, rates, 3, weight_decay=0.01)
    alone = []
    for i, rate in enumerate(rates.tolist()):
        layer = nn.Linear(8, 6)
        layer.weight.data.copy_(heads.weight[:, i].T)
        layer.bias.data.zero_()
        options = {"lr": rate, "momentum": 0.9, "weight_decay": 0.01}
        alone.append((layer, torch.optim.SGD(layer.parameters(), **options)))
    targets = nn.functional.one_hot(data.labels, 6).float()
    for rows in torch.arange(64).split(16):
        heads.step(data.features[rows], targets[rows], torch.ones(16, 3), 1.0)
        for layer, optimizer in alone:
            optimizer.zero_grad()
            logits = layer(data.features[rows])
            nn.functional.cross_entropy(logits, data.labels[rows]).backward()
            optimizer.step()
    for i, (layer, _) in enumerate(alone):
        torch.testing.assert_close(heads.weight[:, i], layer.weight.data.T)
        torch.testing.assert_close(heads.bias[i], layer.bias.data)


def test_a_head_never_sees_samples_of_weight_zero():
    data = table(16, 0)
    targets = nn.functional.one_hot(data.labels, 6).float()
    rates = torch.tensor([0.1, 0.1])
    both = HeadBank(8, 6, rates, 0)
    weights = torch.ones(16, 2)
    weights[4:, 0] = 0
    both.step(data.features, targets, weights, 1.0)
    few = HeadBank(8, 6, rates[:1], 0)
    few.step(data.features[:4], targets[:4], torch.ones(4, 1), 1.0)
    torch.testing.assert_close(both.weight[:, 0], few.weight[:, 0])
    assert not torch.equal(both.weight[:, 0], both.weight[:, 1])


def test_a_head_that_diverges_harms_no_other():
    data = [table(200, 0), table(100, 1)]
    sane = evaluate(*data, ["all"], "official", **{**FAST, "lrs": [0.1]}).scores
    wild = evaluate(*data, ["all"], "official", **{**FAST, "lrs": [0.1, 1e38]}).scores
    assert wild["all/seed0/top1"] == sane["all/seed0/top1"]
    with pytest.raises(NumericalError, match="smaller lrs"):
        evaluate(*data, ["all"], "official", **{**FAST, "lrs": [1e38]})


def test_the_schedule_starts_at_one_and_its_last_epoch_still_learns():
    assert cosine(0, 100) == 1.0
    assert cosine(50, 100) == pytest.approx(0.5)
    assert 0 < cosine(99, 100) < 0.001


def test_separable_data_are_learned_and_permuted_labels_are_at_chance():
    train, test = table(600, 0, noise=0.5), table(400, 1, noise=0.5)
    assert evaluate(train, test, ["all"], "official", **FAST).scores["all/mean/top1"] > 95
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    train.labels = train.labels[order]
    found = evaluate(train, test, ["all"], "official", **FAST).scores["all/mean/top1"]
    # Six classes: predictions that know nothing hit 1/6; clouds of the test split move together,
    # so the standard error is that of as many as six independent clouds.
    assert abs(found - 100 / 6) < 3 * 100 * math.sqrt(1 / 6 * 5 / 6 / 6)


def test_test_data_do_not_choose_the_rate():
    train, test = table(300, 0, noise=3.0), table(200, 1, noise=3.0)
    first = evaluate(train, test, ["all"], "official", **FAST)
    test.labels = test.labels.roll(1)
    second = evaluate(train, test, ["all"], "official", **FAST)
    assert first.facts["chosen_lr"] == second.facts["chosen_lr"]
    for name, value in first.heads.items():
        assert torch.equal(value, second.heads[name])


def test_best_is_never_below_last_and_mean_and_sd_are_over_seeds():
    data = [table(300, 0, noise=3.0), table(200, 1, noise=3.0)]
    scores = evaluate(*data, ["all"], "official", **FAST).scores
    per_seed = [scores[f"all/seed{seed}/top1"] for seed in (0, 1)]
    assert scores["all/mean/top1"] == pytest.approx(sum(per_seed) / 2)
    assert scores["all/sd/top1"] == pytest.approx(abs(per_seed[0] - per_seed[1]) / math.sqrt(2))
    for seed in (0, 1):
        assert scores[f"all/seed{seed}/best/top1"] >= scores[f"all/seed{seed}/top1"]
        assert scores[f"all/seed{seed}/top5"] >= scores[f"all/seed{seed}/top1"]


def test_one_seed_has_no_spread():
    assert spread({"seed0": {"top1": 50.0}}, "all") == {
        "all/seed0/top1": 50.0,
        "all/mean/top1": 50.0,
        "all/sd/top1": 0.0,
    }


def test_fewer_than_five_classes_have_no_top5():
    data = [table(100, seed, classes=3) for seed in (0, 1)]
    scores = evaluate(*data, ["all"], "official", **FAST).scores
    assert not any("top5" in key for key in scores)


def test_the_saved_head_gives_the_reported_accuracy_with_and_without_standardizing():
    train, test = table(300, 0, noise=2.0), table(200, 1, noise=2.0)
    train.features, test.features = train.features * 5 + 3, test.features * 5 + 3
    for standardize in (False, True):
        found = evaluate(train, test, ["all"], "official", standardize=standardize, **FAST)
        weight, bias = (found.heads[f"all/seed0/{name}"] for name in ("weight", "bias"))
        right = (test.features @ weight.T + bias).argmax(1) == test.labels
        assert 100 * right.float().mean() == pytest.approx(found.scores["all/seed0/top1"])


def test_a_part_is_the_same_alone_and_beside_others():
    data = [table(200, seed, split=6) for seed in (0, 1)]
    alone = evaluate(*data, ["ef"], "official", **FAST)
    beside = evaluate(*data, ["all", "ir", "ef"], "official", **FAST)
    assert beside.scores["ef/seed1/top1"] == alone.scores["ef/seed1/top1"]
    assert beside.heads["ef/seed1/weight"].shape == (6, 2)
    assert beside.heads["ir/seed1/weight"].shape == (6, 6)


def test_streamed_features_that_do_not_change_give_the_same_heads():
    train, test = table(150, 0), table(60, 1)
    cached = evaluate(train, test, ["all"], "official", **FAST)
    train.stream = lambda blocks, seed, epoch: (train.features[rows] for rows in blocks)
    streamed = evaluate(train, test, ["all"], "official", **FAST)
    assert streamed.scores == cached.scores
    assert streamed.facts["cached"] is False
    for name, value in cached.heads.items():
        assert torch.equal(value, streamed.heads[name])


def test_a_head_of_another_size_is_refused_with_both_sizes():
    check_head((10, 96), 96, 10, "all")
    with pytest.raises(DataError, match=r"10 classes × 96 .* 10 classes .* 48 features"):
        check_head((10, 96), 48, 10, "all")


@pytest.mark.parametrize(
    "knob", [{"epochs": 0}, {"lrs": []}, {"seeds": []}, {"holdout": 1.5}, {"batch_size": 0}]
)
def test_impossible_knobs_are_refused(knob):
    with pytest.raises(UsageError, match=r"probe\."):
        evaluate(table(30, 0), table(30, 1), ["all"], "official", **{**FAST, **knob})
