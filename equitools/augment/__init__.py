"""Augmentation with parameters as data.

An operation is a module with `draw` (uniforms → parameters), `apply` (pictures, parameters), and
where it has them `matrix` and `delta`. The modules imported here are the menu of recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from equitools.augment import (
    blur,
    crop,
    elastic,
    flip,
    geometry,
    gray,
    jitter,
    perturbation,
    rotation,
    solarize,
)
from equitools.augment.layout import Part, ViewPlan
from equitools.augment.levels import MEAN, STD, normalize, unnormalize
from equitools.augment.pipeline import Batch, Drawn, Views, collate, engine

__all__ = [
    "MEAN", "STD", "Batch", "Drawn", "Part", "ViewPlan", "Views", "blur", "collate", "crop",
    "elastic", "engine", "flip", "geometry", "gray", "jitter", "normalize", "operations",
    "perturb", "plan", "rotation", "solarize", "unnormalize",
]  # fmt: skip


def operations() -> dict[str, ModuleType]:
    """The menu: every module of this namespace that can draw and apply parameters, by name."""
    return {
        name: thing
        for name, thing in sorted(globals().items())
        if isinstance(thing, ModuleType) and hasattr(thing, "COLUMNS")
    }


def plan(views: dict[str, Any]) -> Views:
    """The views that a recipe's `views` asks for; UsageError for what it cannot ask."""
    return Views(views, operations())


def perturb(
    images: Tensor, settings: dict[str, Any], keys: Sequence[str], seed: int, draw: int = 0
) -> Tensor:
    """Perturb pictures for an evaluation, each by parameters keyed by (seed, draw, its key).

    images: b 3 h w, uint8 or floats in [0, 1]; not changed. settings: operations in order, as
    {"rotation": 90, "jitter": {"saturation": 0.4}, "elastic": {}}, with probability 1 unless p is
    given. Returns floats b 3 h w in [0, 1], not normalized. Raises UsageError for unknown
    operations or knobs.
    """
    menu = operations()
    resolved = perturbation.resolve(settings, menu, "perturb")
    parameters = perturbation.draw(resolved, menu, keys, seed, draw)
    return perturbation.apply(images, parameters, menu)
