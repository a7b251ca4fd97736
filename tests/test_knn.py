"""Weighted nearest neighbors agree with a naive loop and with scikit-learn."""

import math

import numpy as np
import pytest
import torch

from equitools.errors import DataError, UsageError
from equitools.evals.knn import evaluate, knn
from equitools.features import Table


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


def test_the_size_of_a_chunk_and_the_scale_of_features_change_nothing():
    data = (*clouds(90), *clouds(50, seed=1))
    whole = knn(*data, ks=[10, 20])
    assert knn(*data, ks=[10, 20], chunk=7) == whole
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
        Table(torch.cat([f, n], 1), labels, [""] * len(f), 7, width=15, split=12)
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
