"""The views that a recipe makes of some pictures, each with the numbers of what was done to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from equitools import augment, figures, images, recipe
from equitools.augment import unnormalize

Rows = list[tuple[str, np.ndarray, list[tuple[str, np.ndarray, str]]]]


def rows(
    asked: dict[str, Any], index: Any, *, count: int = 4, seed: int = 0, epoch: int = 0
) -> Rows:
    """One row for each of the first `count` pictures of a split, for `figures.contact_sheet`.

    asked: a recipe; its defaults are applied as in pretraining. Each row is the sample's key, its
    picture h w 3 in [0, 1], and (group and size, picture, parameters) for every view, the same
    views that pretraining with this seed shows in this epoch. Raises UsageError for a recipe that
    makes no views, DataError for a picture that cannot be decoded.
    """
    plan = augment.plan(recipe.apply_defaults(asked).get("views") or {})
    sources = [_source(index, i) for i in range(min(count, len(index)))]
    drawn = [plan.sample(image, key, seed, epoch) for key, image in sources]
    views = plan.finish(augment.collate(drawn), "cpu")
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
    title = f"{view.group} {view.image.shape[-1]} px"
    shown = unnormalize(view.image[i].float()).permute(1, 2, 0).numpy()
    return title, shown, figures.parameters(action)
