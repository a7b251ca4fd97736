"""Small steps of random features for tests of terms."""

from __future__ import annotations

import inspect

import torch

from equitools.records import Features, Step, View

BATCH, DIM, SPLIT = 6, 20, 16


def toy_step(
    objective=None,
    *,
    local=2,
    slow=True,
    batch=BATCH,
    dim=DIM,
    split=SPLIT,
    done=0.25,
    epoch=5.0,
    seed=0,
):
    """Two global views and some local ones; the online features are leaves with gradient."""
    draw = torch.Generator().manual_seed(seed)
    groups = ["global"] * 2 + ["local"] * local
    blank = torch.zeros(batch, 3, 4, 4)
    views = [View(blank, {}, torch.eye(3).expand(batch, 3, 3), group=group) for group in groups]

    def features(grad):
        pooled = torch.randn(batch, dim, generator=draw).requires_grad_(grad)
        return Features(pooled, split)

    online = [features(True) for _ in groups]
    target = [features(False) for _ in range(2)] if slow else None
    return Step(views, online, target, objective, done, epoch)


def reorder(step, order):
    """The same step with the samples of the batch in another order."""

    def moved(records):
        return [Features(record.pooled.detach()[order], record.split) for record in records]

    target = None if step.target is None else moved(step.target)
    return Step(step.views, moved(step.online), target, step.objective, step.done, step.epoch)


WIDTHS = {"out_dim": 48, "hidden_dim": 32, "bottleneck_dim": 24, "dim": 24, "hidden": 8}


def small(name, width=SPLIT, **knobs):
    """A base objective with small heads: every width that its signature has is made small."""
    from equitools import names, objectives

    chosen = names.pick(objectives, name)
    return chosen(width, **(few(chosen) | knobs))


def small_term(name, objective, width=DIM - SPLIT, **knobs):
    """An equivariance term with small heads for an objective."""
    from equitools import equivariance, names

    chosen = names.pick(equivariance, name)
    return chosen(width, objective, **(few(chosen) | knobs))


def few(chosen):
    """Small values for the widths among a term's knobs."""
    known = inspect.signature(chosen).parameters
    knobs = {name for name, parameter in known.items() if parameter.kind is parameter.KEYWORD_ONLY}
    return {key: value for key, value in WIDTHS.items() if key in knobs}
