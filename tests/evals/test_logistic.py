"""Logistic regression finds its one optimum, and the penalty without the test data."""

import numpy as np
import pytest
import torch

from equitools.core.errors import NumericalError, UsageError
from equitools.evals.classification import downstream_linear
from equitools.evals.classifiers import logistic as classifiers_logistic
from equitools.evals.classifiers.logistic import PENALTIES
from equitools.evals.classifiers.protocol import percents


def problem(count=60, width=7, classes=3, noise=1.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centers = torch.randn(classes, width, generator=draw)
    return centers[labels] + noise * torch.randn(count, width, generator=draw), labels


def solve(features, labels, penalty, **knobs):
    return next(
        classifiers_logistic.path(features, labels, int(labels.max()) + 1, [penalty], **knobs)
    )[1]


def newton(features, labels, penalty):
    """The optimum by Newton's method with the whole Hessian."""
    data = torch.cat([features.double(), torch.ones(len(features), 1).double()], 1)
    theta = torch.zeros(data.shape[1], int(labels.max()) + 1).double()

    def loss(theta):
        logits = data @ theta
        return (
            torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            + penalty * (theta**2).sum()
        )

    for _ in range(30):
        gradient = torch.autograd.functional.jacobian(loss, theta).flatten()
        hessian = torch.autograd.functional.hessian(loss, theta)
        hessian = hessian.reshape(len(gradient), len(gradient))
        theta = theta - torch.linalg.solve(hessian, gradient).reshape(theta.shape)
    return theta


@pytest.mark.parametrize("penalty", [100.0, 1.0, 0.01])
@pytest.mark.parametrize("width", [7, 80])
def test_the_optimum_is_newtons(penalty, width):
    features, labels = problem(width=width, count=30 if width > 30 else 60)
    found = solve(features, labels, penalty, tolerance=1e-10)
    if width < 30:
        torch.testing.assert_close(found, newton(features, labels, penalty), atol=1e-5, rtol=1e-5)
    sklearn = pytest.importorskip("sklearn.linear_model")
    data = np.c_[features.numpy().astype(float), np.ones(len(features))]
    theirs = sklearn.LogisticRegression(
        C=1 / (2 * penalty), fit_intercept=False, tol=1e-10, max_iter=10000
    ).fit(data, labels.numpy())
    np.testing.assert_allclose(found, theirs.coef_.T, atol=1e-4)


def test_a_path_ends_where_a_cold_start_does():
    features, labels = problem()
    path = dict(classifiers_logistic.path(features, labels, 3, PENALTIES[20:], tolerance=1e-9))
    assert list(path) == sorted(path, reverse=True)
    weakest = min(path)
    cold = solve(features, labels, weakest, tolerance=1e-9)
    torch.testing.assert_close(path[weakest], cold, atol=1e-4, rtol=1e-4)


def test_features_of_any_scale_and_offset_are_solved():
    features, labels = problem()
    odd = 100 + features * torch.logspace(-3, 2, features.shape[1])
    found = solve(odd, labels, 0.1, tolerance=1e-10)
    data = torch.cat([odd.double(), torch.ones(len(odd), 1).double()], 1)
    error = (data @ found).softmax(1) - torch.nn.functional.one_hot(labels, 3)
    gradient = data.T @ error + 2 * 0.1 * found
    assert gradient.abs().max() < 1e-4 * (data.T @ data).diagonal().max().sqrt()


def test_the_penalty_is_the_strongest_of_the_best_and_ignores_what_is_not_held_out():
    features, labels = problem(noise=0.1)
    held = downstream_linear.hold_out(labels, 0.2, seed=0)
    assert torch.bincount(labels[held]).tolist() == [4, 4, 4]
    chosen, right = classifiers_logistic.choose(
        features, labels, held, 3, [0.01, 1.0, 10.0], iterations=100
    )
    assert (chosen, right) == (10.0, 100.0)


def test_forty_five_penalties_from_a_millionth_to_a_hundred_thousand():
    assert len(PENALTIES) == 45
    assert PENALTIES[0] == pytest.approx(1e-6)
    assert PENALTIES[-1] == pytest.approx(1e5)


def test_a_class_with_one_sample_keeps_it():
    labels = torch.tensor([0, 1, 1, 1, 1, 1])
    assert downstream_linear.hold_out(labels, 0.5, seed=3)[0].item() is False
    with pytest.raises(UsageError, match=r"penalties=0\.1"):
        downstream_linear.hold_out(torch.arange(4), 0.2, seed=0)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(NumericalError, match="not finite"):
        solve(torch.full((4, 2), torch.nan), torch.arange(4) % 2, 1.0)


def test_macro_accuracy_weighs_classes_and_leaves_out_those_without_samples():
    logits = torch.eye(3)[[0, 0, 0, 0, 1]]
    found = percents(logits, torch.tensor([0, 0, 0, 1, 1]))
    assert found == pytest.approx({"top1": 80.0, "macro": 75.0})
