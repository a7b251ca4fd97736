"""Weighted nearest neighbors agree with a naive loop and with scikit-learn."""

import math

import numpy as np
import pytest
import torch

from equitools.core.errors import DataError, NumericalError, UsageError
from equitools.evals.classification.knn import evaluate
from equitools.features.neighbors import knn, neighbors
from equitools.features.table import FeatureTable


def clouds(count, classes=7, width=12, seed=0):
    """Overlapping Gaussian clouds, one a class."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=generator)
    return centers[labels] + 1.2 * torch.randn(count, width, generator=generator), labels


def naive(train, train_labels, test, test_labels, k, t):
    """One test vector at a time, in doubles."""
    bank = train.double() / train.double().norm(dim=1, keepdim=True)
    right1 = right5 = 0
    for x, y in zip(test.double(), test_labels.tolist(), strict=True):
        sims = (bank @ (x / x.norm())).tolist()
        near = sorted(range(len(sims)), key=lambda i: -sims[i])[:k]
        votes: dict[int, float] = {}
        for i in near:
            label = int(train_labels[i])
            votes[label] = votes.get(label, 0.0) + math.exp(sims[i] / t)
        best = sorted(votes, key=lambda c: -votes[c])
        right1 += best[0] == y
        right5 += y in best[:5]
    return 100 * right1 / len(test), 100 * right5 / len(test)


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("t", [0.07, 0.5])
def test_it_agrees_with_a_loop_over_one_vector_at_a_time(k, t):
    data = (*clouds(150), *clouds(60, seed=1))
    found = knn(*data, ks=[k], temperature=t)
    expected = naive(*data, k, t)
    assert found[f"k{k}/top1"] == pytest.approx(expected[0])
    assert found[f"k{k}/top5"] == pytest.approx(expected[1])


def test_it_agrees_with_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    x, y, queries, truth = (*clouds(200), *clouds(80, seed=1))
    judge = neighbors.KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(x.numpy(), y.numpy())
    expected = 100 * (judge.predict(queries.numpy()) == truth.numpy()).mean()
    assert knn(x, y, queries, truth, ks=[20])["k20/top1"] == pytest.approx(expected)


def whole_numbers(count, width, seed, high=4):
    """Vectors whose dot products are exact, and often equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-high, high + 1, (count, width), generator=generator).float()


def plain(queries, bank, k):
    """A stable sort of all similarities: of equal ones the lower index comes first."""
    near, index = (queries @ bank.T).sort(dim=1, descending=True, stable=True)
    return near[:, :k], index[:, :k]


@pytest.mark.parametrize("k", [1, 7, 40, 300])
@pytest.mark.parametrize(("rows", "block"), [(None, None), (5, 64), (23, 48), (2, 9), (64, 301)])
def test_neighbors_and_their_order_are_those_of_a_plain_search(k, rows, block):
    queries, bank = whole_numbers(23, 6, 0), whole_numbers(300, 6, 1)
    found = neighbors(queries, bank, k, rows=rows, block=block)
    assert all(torch.equal(*pair) for pair in zip(found, plain(queries, bank, k), strict=True))


@pytest.mark.parametrize("order", ["ascending", "descending", "by class", "all equal", "zeros"])
def test_no_order_of_the_bank_hides_a_neighbor(order):
    queries, bank = whole_numbers(8, 5, 0).abs() + 1, whole_numbers(256, 5, 1)
    if order == "by class":
        bank = bank[(bank @ whole_numbers(9, 5, 2).T).argmax(1).argsort(stable=True)]
    elif order in ("ascending", "descending"):
        bank = bank[bank.sum(1).argsort(descending=order == "descending", stable=True)]
    else:
        bank = bank[:1].expand(256, 5) * (order == "all equal")
    found = neighbors(queries, bank, 12, rows=4, block=32)
    assert all(torch.equal(*pair) for pair in zip(found, plain(queries, bank, 12), strict=True))


def test_with_real_features_only_rounding_may_exchange_neighbors():
    queries, bank = (torch.nn.functional.normalize(clouds(n)[0], dim=1) for n in (70, 5000))
    near, index = neighbors(queries, bank, 20, rows=32, block=512)
    expected, _ = plain(queries.double(), bank.double(), 20)
    torch.testing.assert_close(near.double(), expected, rtol=0, atol=1e-6)
    there = (queries.double()[:, None] * bank.double()[index]).sum(2)
    torch.testing.assert_close(there, expected, rtol=0, atol=1e-6)
    assert all(len(set(row.tolist())) == 20 for row in index)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    x, y = clouds(30)
    broken = x.clone()
    broken[3, 1] = value
    with pytest.raises(NumericalError, match="1 of 30 training features"):
        knn(broken, y, x, y, ks=[5])
    with pytest.raises(NumericalError, match="1 of 30 test features"):
        knn(x, y, broken, y, ks=[5])


def test_the_scale_of_features_changes_nothing():
    data = (*clouds(90), *clouds(50, seed=1))
    whole = knn(*data, ks=[10, 20])
    assert knn(data[0] * 1000, data[1], data[2] / 1000, data[3], ks=[10, 20]) == whole


def test_k_is_capped_at_the_number_of_training_samples():
    found = knn(*clouds(15), *clouds(9, seed=1), ks=(10, 20, 100))
    assert set(found) == {"k10/top1", "k10/top5", "k15/top1", "k15/top5"}


def test_several_temperatures_are_named_in_the_keys():
    found = knn(*clouds(15), *clouds(9, seed=1), ks=[5], temperature=[0.07, 0.1])
    assert set(found) == {f"k5/T{t}/{top}" for t in ("0.07", "0.1") for top in ("top1", "top5")}


def test_fewer_than_five_classes_have_no_top5():
    found = knn(*clouds(40, classes=4), *clouds(9, classes=4, seed=1), ks=[5])
    assert set(found) == {"k5/top1"}


def test_a_class_without_a_vote_is_not_among_the_best_five():
    train, labels = torch.eye(6), torch.arange(6)
    found = knn(train, labels, torch.eye(6)[:1], torch.tensor([5]), ks=[1])
    assert found == {"k1/top1": 0.0, "k1/top5": 0.0}


def test_a_tiny_temperature_does_not_overflow():
    found = knn(*clouds(60), *clouds(20, seed=1), ks=[20], temperature=1e-3)
    assert found["k20/top1"] == knn(*clouds(60), *clouds(20, seed=1), ks=[1])["k1/top1"]


def test_parts_are_judged_on_their_own_channels():
    x, y = clouds(80)
    queries, truth = clouds(40, seed=1)
    noise = torch.randn(120, 3, generator=torch.Generator().manual_seed(5))
    tables = [
        FeatureTable(torch.cat([f, n], 1), labels, [""] * len(f), 7, width=15, split=12)
        for f, n, labels in ((x, noise[:80], y), (queries, noise[80:], truth))
    ]
    found = evaluate(*tables, ["ir", "ef"], "official", k=[10], temperature=[0.07]).scores
    assert found["ir/k10/top1"] == knn(x, y, queries, truth, ks=[10])["k10/top1"]
    assert found["ef/k10/top1"] < 40


@pytest.mark.parametrize("k", [[], [0], [2.5]])
def test_impossible_numbers_of_neighbors_are_refused(k):
    with pytest.raises(UsageError, match="whole numbers"):
        knn(*clouds(9), *clouds(9), ks=k)


def test_nothing_to_judge_is_a_data_error():
    with pytest.raises(DataError, match="test sample"):
        knn(*clouds(9), torch.empty(0, 12), torch.empty(0, dtype=torch.long))
