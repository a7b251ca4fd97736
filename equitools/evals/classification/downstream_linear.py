"""Linear classification of frozen features of other data: logistic regression, or SGD.

`logistic` is the transfer protocol of Kornblith et al. (2019) and Lee et al. (2021, "AugSelf"): no
augmentation, 45 penalties from 1e-6 to 1e5, the one chosen that does best on a held-out part of the
training data, solved once more on all of it. It is deterministic.
`sgd` is that of Song et al. (2025, "CLeVER"): a linear head on new crops each epoch, SGD with
momentum 0.9, lr 0.001 · batch / 256, cosine per epoch to 0, no decay.
"""

import inspect
from typing import Any, Literal

import torch
from torch import Tensor

from equitools.core.errors import UsageError
from equitools.evals.classification.labeled import Labeled
from equitools.evals.classifiers import logistic, mlp, protocol
from equitools.evals.classifiers.linear import HeadBank
from equitools.evals.classifiers.protocol import HeadTraining, percents, spread
from equitools.features.table import Outcome, part

# The knobs of one head; with the other they would do nothing.
KNOBS = {
    "logistic": ("penalties", "holdout", "iterations"),
    "sgd": ("epochs", "lrs", "batch_size", "cached"),
}


def evaluate(
    source: Labeled,
    *,
    head: Literal["logistic", "sgd"] = "logistic",
    penalties: list[float] | None = None,
    holdout: float = 0.2,
    iterations: int = 5000,
    epochs: int = 200,
    lrs: list[float] = [0.001],  # noqa: B006
    batch_size: int = 256,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    cached: bool = False,
) -> Outcome:
    """Accuracy in percent of a linear head on each part of the features; macro is the mean over
    classes.

    head: logistic or sgd. Of logistic: penalties, w (null: 45 from 1e-6 to 1e5); holdout, the share
    of every class on which w is chosen, drawn by the first seed; iterations at most. Of sgd:
    epochs, lrs per 256 images (several: chosen on 0.1 of train), batch_size, seeds; cached:
    features of the evaluation transform instead of new crops.
    """
    if head == "sgd":
        return _sgd(source, HeadTraining(epochs, lrs, batch_size, seeds), cached)
    if not 0 < holdout < 1 or iterations < 1:
        raise UsageError("transfer.holdout lies between 0 and 1; transfer.iterations is at least 1")
    if penalties is not None and (not penalties or min(penalties) <= 0):
        raise UsageError("transfer.penalties lists numbers above 0")
    wanted, seed = list(penalties or logistic.PENALTIES), (seeds or [0])[0]
    return _logistic(source, wanted, holdout, iterations, seed)


def check(settings: dict[str, Any]) -> None:
    """UsageError for a knob, changed from its default, of a head that is not asked for; logistic
    regression sees the whole short side of a picture, as its protocol."""
    defaults = inspect.signature(evaluate).parameters
    other = "sgd" if settings["head"] == "logistic" else "logistic"
    for key in KNOBS[other]:
        if settings[key] != defaults[key].default:
            raise UsageError(
                f"transfer.{key} is of head={other}, and the head is {settings['head']}; say"
                f" head={other} or leave {key} out"
            )
    if settings["head"] == "logistic":
        settings["crop_pct"] = settings["crop_pct"] or 1.0


def _logistic(
    source: Labeled, penalties: list[float], holdout: float, iterations: int, seed: int
) -> Outcome:
    """Choose, solve, and judge each part."""
    train, test = source.tables()
    held = hold_out(train.labels, holdout, seed) if len(penalties) > 1 else torch.zeros(0)
    outcome, chosen, best = Outcome({}), {}, {}
    for name in source.parts:
        x, weakest = part(train, name, source.slicing), penalties[0]
        if len(penalties) > 1:
            weakest, best[name] = logistic.choose(
                x, train.labels, held, train.classes, penalties, iterations=iterations
            )
        stronger = [penalty for penalty in penalties if penalty >= weakest]
        *_, (chosen[name], theta) = logistic.path(
            x, train.labels, train.classes, stronger, iterations=iterations
        )
        logits = logistic.logits(theta, part(test, name, source.slicing))
        scores = percents(logits, test.labels)
        outcome.scores |= {f"{name}/{key}": value for key, value in scores.items()}
        outcome.heads |= {f"{name}/weight": theta[:-1].T.float(), f"{name}/bias": theta[-1].float()}
    outcome.facts = {
        "head": "logistic regression, summed loss, L2 penalty w on weights and bias, L-BFGS",
        "penalties": f"{len(penalties)} from {min(penalties):g} to {max(penalties):g}",
        "penalty": chosen,
        "selection": f"w by top-1 on {holdout:g} of every class of train ({int(held.sum())}"
        f" samples, seed {seed}), the strongest of equals; then solved on all of train",
        "held_out": best,
        **source.facts(),
    }
    return outcome


def hold_out(labels: Tensor, share: float, seed: int) -> Tensor:
    """n booleans: a seeded share of every class, at least one of a class that has two."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique():
        mine = (labels == label).nonzero().flatten()
        count = min(max(1, round(share * len(mine))), len(mine) - 1)
        held[mine[torch.randperm(len(mine), generator=generator)[:count]]] = True
    if not held.any():
        raise UsageError(
            "every class has one training sample, so none can be held out to choose a penalty; say"
            " one, as in penalties=0.1"
        )
    return held


def _sgd(source: Labeled, plan: HeadTraining, cached: bool) -> Outcome:
    """HeadBank by probing's protocol, and their macro accuracy."""
    train, test = source.tables()
    train.stream = None if cached else source.stream()

    with source.training(train):
        outcome = protocol.train(train, test, source.parts, source.slicing, HeadBank, plan)
    for name in source.parts:
        x, runs = part(test, name, source.slicing), {}
        for seed in plan.seeds:
            keys = {key: f"{name}/seed{seed}/{key}" for key in ("weight", "bias")}
            head = {key: outcome.heads[path].to(x) for key, path in keys.items()}
            runs[f"seed{seed}"] = {"macro": percents(mlp.logits(head, x), test.labels)["macro"]}
        outcome.scores |= spread(runs, name)
    outcome.facts = {
        "head": "one linear layer, weight N(0, 0.01), bias 0",
        "optimizer": "SGD momentum 0.9, no weight decay, cosine per epoch to 0",
        **outcome.facts,
        **source.facts(),
    }
    return outcome
