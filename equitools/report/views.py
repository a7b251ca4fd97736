"""The views that a recipe makes of some pictures, each with the numbers of what was done to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equitools import manifest
from equitools.core.errors import UsageError
from equitools.report.documents import Document, Documents, Where, required
from equitools.report.formats import figures

if TYPE_CHECKING:
    from equitools.core.records import View
    from equitools.data.shards.index import ShardIndex


def views(
    documents: Documents,
    where: Where,
    layers: Document,
    *,
    images: int = 4,
    seed: int = 0,
    epoch: int = 0,
    split: str = "train",
) -> Path:
    """The views that a recipe makes of some pictures, with their parameters (views.png)."""
    from equitools.data.shards.index import open_split

    document = manifest.join([*required(documents), layers])
    if not document.get("recipe", {}).get("views"):
        raise UsageError("views needs a recipe: name layers, as in equi-report views dino caug")
    index = open_split(document, split)
    sheet = rows(document["recipe"], index, count=images, seed=seed, epoch=epoch)
    return figures.contact_sheet(sheet, where(Path.cwd()) / "views.png")


def rows(
    recipe: Document, index: ShardIndex, *, count: int = 4, seed: int = 0, epoch: int = 0
) -> list[figures.SheetRow]:
    """One row for each of the first `count` pictures of a split, for `figures.contact_sheet`.

    recipe: its defaults are applied as in pretraining. Each row is the sample's key, its picture
    h w 3 in [0, 1], and (group and size, picture, parameters) for every view, the same views that
    pretraining with this seed shows in this epoch. Raises UsageError for a recipe that makes no
    views, DataError for a picture that cannot be decoded.
    """
    from equitools import augment
    from equitools.data.images import decode
    from equitools.training.recipe import apply_defaults

    plan = augment.plan(apply_defaults(recipe).get("views") or {})
    keys = index.keys[:count]
    sources = [(key, decode(index.image(i), key)) for i, key in enumerate(keys)]

    def sampled(inside: bool) -> list[View]:
        samples = [plan.sample(image, key, seed, epoch, inside) for key, image in sources]
        return plan.finish(augment.collate(samples, seed=seed), "cpu")

    # Views of a portion come last, on the grids of the first step, as if every picture were in it
    # and outside it as well.
    views = sampled(inside=plan.portion == 1)
    if plan.portion not in (None, 1):
        views = [view for view in views if view.replaces is None]
        views += [view for view in sampled(inside=True) if view.replaces is not None]
    return [
        (key, image / 255.0, [_panel(view, i) for view in views])
        for i, (key, image) in enumerate(sources)
    ]


def _panel(view: View, i: int) -> figures.Panel:
    """Title, picture and parameters of one sample in a view."""
    from equitools.augment.normalize import unnormalize

    action = {name: values[i].flatten().tolist() for name, values in view.action.items()}
    height, width = view.image.shape[-2:]
    title = f"{view.group} {width} px" if height == width else f"{view.group} {width}×{height} px"
    picture: np.ndarray = unnormalize(view.image[i].float()).permute(1, 2, 0).numpy()
    return title, picture, figures.parameters(action)
