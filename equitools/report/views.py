"""The views that a recipe makes of some pictures, each with the numbers of what was done to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from equitools import augment
from equitools.augment.normalize import unnormalize
from equitools.core.records import View
from equitools.data import images
from equitools.report.formats import figures
from equitools.training import recipe

Rows = list[tuple[str, np.ndarray, list[tuple[str, np.ndarray, str]]]]


def rows(
    asked: dict[str, Any], index: Any, *, count: int = 4, seed: int = 0, epoch: int = 0
) -> Rows:
    """One row for each of the first `count` pictures of a split, for `figures.contact_sheet`.

    asked: a recipe; its defaults are applied as in pretraining. Each row is the sample's key, its
    picture h w 3 in [0, 1], and (group and size, picture, parameters) for every view, the same
    views that pretraining with this seed shows in this epoch; those of a portion come last, on the
    grids of the first step, as if every picture were in it and outside it as well. Raises
    UsageError for a recipe that makes no views, DataError for a picture that cannot be decoded.
    """
    plan = augment.plan(recipe.apply_defaults(asked).get("views") or {})
    sources = [_source(index, i) for i in range(min(count, len(index)))]

    def made(inside: bool) -> list[View]:
        drawn = [plan.sample(image, key, seed, epoch, inside) for key, image in sources]
        return plan.finish(augment.collate(drawn, seed=seed), "cpu")

    views = made(inside=plan.portion == 1)
    if plan.portion not in (None, 1):
        views = [view for view in views if view.replaces is None]
        views += [view for view in made(inside=True) if view.replaces is not None]
    return [
        (key, image / 255.0, [_shown(view, i) for view in views])
        for i, (key, image) in enumerate(sources)
    ]


def _source(index: Any, i: int) -> tuple[str, np.ndarray]:
    key = index.keys[i]
    return key, images.decode(index.image(i), key)


def _shown(view: Any, i: int) -> tuple[str, np.ndarray, str]:
    """Title, picture and parameters of one sample in a view."""
    action = {name: values[i].flatten().tolist() for name, values in view.action.items()}
    height, width = view.image.shape[-2:]
    title = f"{view.group} {width} px" if height == width else f"{view.group} {width}×{height} px"
    shown = unnormalize(view.image[i].float()).permute(1, 2, 0).numpy()
    return title, shown, figures.parameters(action)
