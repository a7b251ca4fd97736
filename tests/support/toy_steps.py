"""Small steps of random features for tests of terms."""

from __future__ import annotations

import inspect
from dataclasses import replace

import torch

from equitools.augment import geometry
from equitools.core.records import Features, Portion, Step, View

BATCH, DIM, SPLIT = 6, 20, 16


def toy_step(
    objective=None,
    *,
    local=2,
    with_target=True,
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
    turned = torch.Generator().manual_seed(seed + 1)
    views = [
        View(
            blank,
            {"rotation": 180 * torch.rand(batch, 1, generator=turned) - 90},
            torch.eye(3).expand(batch, 3, 3),
            group=group,
        )
        for group in groups
    ]

    def features(grad):
        pooled = torch.randn(batch, dim, generator=draw).requires_grad_(grad)
        return Features(pooled, split)

    online = [features(True) for _ in groups]
    target = [features(False) for _ in range(2)] if with_target else None
    rows = torch.tensor([row for row in range(batch) if row % 6 in (1, 2, 4)])
    portions = {"grid": toy_portion(draw, rows, dim - (split or 0), with_target=with_target)}
    return Step(views, online, target, objective, done, epoch, portions)


def toy_portion(draw, rows, width, *, with_target=True, layer=3):
    """Two views of some rows, 3×4 and 5×3 cells, flipped one by one and turned together."""
    views, online, target = [], [], []
    for grid, turns in (((3, 4), 1), ((5, 3), 2)):
        flips = torch.eye(3, dtype=torch.float64).repeat(len(rows), 1, 1)
        flips[:, 0, 0] = 1 - 2 * torch.randint(2, (len(rows),), generator=draw).double()
        matrix = geometry.quarter_turns(torch.float64)[turns] @ flips
        blank = torch.zeros(len(rows), 3, *grid)
        views.append(View(blank, {}, matrix, rows=rows, group="grid", replaces="global"))
        for made in (online, target) if with_target else (online,):
            cells = torch.randn(len(rows), width, *grid, generator=draw)
            cells.requires_grad_(made is online)
            made.append(Features(cells.mean((2, 3)), maps={layer - 1: cells}, rows=rows))
    return Portion(views, online, target if with_target else None)


def reorder(step, order):
    """The same step with the samples of the batch in another order, or with some of them."""

    def moved(records):
        return [Features(record.pooled.detach()[order], record.split) for record in records]

    target = None if step.target is None else moved(step.target)
    portions = {name: _reordered(portion, order) for name, portion in step.portions.items()}
    online = moved(step.online)
    views = [
        replace(view, action={name: values[order] for name, values in view.action.items()})
        for view in step.views
    ]
    return Step(views, online, target, step.objective, step.done, step.epoch, portions)


def _reordered(portion, order):
    """The rows of a portion where another order of the batch has them, if it has."""
    held = portion.views[0].rows.tolist()
    rows = torch.tensor([p for p, row in enumerate(order.tolist()) if row in held]).long()
    places = [held.index(row) for row in order.tolist() if row in held]

    def moved(record):
        maps = {layer: cells.detach()[places] for layer, cells in record.maps.items()}
        return Features(record.pooled.detach()[places], maps=maps, rows=rows)

    views = [
        replace(view, image=view.image[places], matrix=view.matrix[places], rows=rows)
        for view in portion.views
    ]
    target = None if portion.target is None else [moved(record) for record in portion.target]
    return Portion(views, [moved(record) for record in portion.online], target)


WIDTHS = {
    "out_dim": 48,
    "hidden_dim": 32,
    "bottleneck_dim": 24,
    "dim": 24,
    "hidden": 8,
    "queue_size": 3 * BATCH,
}


def small(name, width=SPLIT, **knobs):
    """A base objective with small heads: every width that its signature has is made small."""
    from equitools import objectives
    from equitools.manifest import schema

    chosen = schema.pick(objectives, name)
    return chosen(width, **(few(chosen) | knobs))


def small_term(name, objective, width=None, **knobs):
    """An equivariance term with small heads for an objective, as wide as what it reads."""
    from equitools import equivariance
    from equitools.manifest import schema

    chosen = schema.pick(equivariance, name)
    whole = not (chosen.split or getattr(chosen, "maps", False))
    width = width or (DIM if whole else DIM - SPLIT)
    return chosen(width, objective, **(few(chosen) | knobs))


def few(chosen):
    """Small values for the widths among a term's knobs."""
    known = inspect.signature(chosen).parameters
    knobs = {name for name, parameter in known.items() if parameter.kind is parameter.KEYWORD_ONLY}
    return {key: value for key, value in WIDTHS.items() if key in knobs}
