"""Augmentation with parameters as data, drawn apart from being applied; this is its face."""

# ruff: noqa: F401
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from equitools.augment import geometry, operations
from equitools.augment.engines import engine
from equitools.augment.normalize import MEAN, STD, normalize, unnormalize
from equitools.augment.views import perturb as perturbation
from equitools.augment.views.layout import ViewBatch, ViewPlan
from equitools.augment.views.pipeline import Batch, Drawn, Views, collate
from equitools.augment.views.settings import used


def plan(views: dict[str, Any]) -> Views:
    """The views that a recipe's `views` asks for; UsageError for what it cannot ask."""
    return Views(views, operations.menu())


def perturb(
    images: Tensor, settings: dict[str, Any], keys: Sequence[str], seed: int, draw: int = 0
) -> Tensor:
    """Perturb pictures for an evaluation, each by parameters keyed by (seed, draw, its key).

    images: b 3 h w, uint8 or floats in [0, 1]; not changed. settings: operations in order, as
    {"rotation": 90, "jitter": {"saturation": 0.4}, "elastic": {}}, with probability 1 unless p is
    given. Returns floats b 3 h w in [0, 1], not normalized. Raises UsageError for unknown
    operations or knobs.
    """
    menu = operations.menu()
    resolved = perturbation.resolve(settings, menu, "perturb")
    parameters = perturbation.draw(resolved, menu, keys, seed, draw)
    return perturbation.apply(images, parameters, menu)
