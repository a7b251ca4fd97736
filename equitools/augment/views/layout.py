"""Views in batches: those of one size and of the same samples are cropped and worked on together.

A sample outside a portion has the global views, a sample inside it the one crop that the views in
their place share; other views can be replaced as well, by stand-ins that share a crop in pairs.
Both samples have all views that nothing replaces. Without a portion there is a batch for each size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from equitools.augment.native import pages


@dataclass(frozen=True)
class ViewPlan:
    """One of the views made of a sample: its group, its side in pixels, its number there, and the
    group whose views it stands in for when the sample is in the portion."""

    group: str
    size: int
    index: int
    replaces: str | None = None


@dataclass(frozen=True)
class ViewBatch:
    """Numbers of the views of one size, and which samples have them: those inside a portion
    (True), those outside (False), or all (None). shared: how many views in a row show one crop."""

    size: int
    members: tuple[int, ...]
    inside: bool | None = None
    shared: int = 1

    @property
    def cropped(self) -> tuple[int, ...]:
        """The views whose crops are taken: the first one of those that share it."""
        return self.members[:: self.shared]

    @property
    def bytes(self) -> int:
        """What a sample's crops take."""
        return 3 * self.size * self.size * len(self.cropped)

    def source(self, view: int, moves: bool) -> int:
        """The view whose random numbers an operation reads for a view."""
        # What moves pixels is drawn once for views that share a crop: they show one picture.
        return view - self.members.index(view) % self.shared if moves else view

    def repeated(self, crops: Tensor) -> Tensor:
        """The crops of `cropped`, first dimension, as those of `members`."""
        return crops.unsqueeze(1).expand(-1, self.shared, *crops.shape[1:]).flatten(0, 1)

    def rows(self, inside: Sequence[bool]) -> list[int]:
        """The samples of a batch that have these views."""
        return [i for i, one in enumerate(inside) if self.inside in (None, one)]


def batches(views: Sequence[ViewPlan], alone: bool = False) -> dict[str, ViewBatch]:
    """The batches by name: "224", and "224 outside" and "224 inside" where there is a portion; "96
    inside for local" where other views than the global ones are replaced. alone: none outside.

    Views that stand in for global ones have one crop for all of them, others one for each pair.
    """
    replaced = {view.replaces for view in views}
    members: dict[tuple[int, bool | None, str | None], list[int]] = {}
    for number, view in enumerate(views):
        inside = True if view.replaces else (False if view.group in replaced else None)
        if inside is not False or not alone:
            members.setdefault((view.size, inside, view.replaces), []).append(number)
    made = {}
    for (size, inside, replaces), own in members.items():
        name = str(size) + {None: "", False: " outside", True: " inside"}[inside]
        name += f" for {replaces}" if replaces not in (None, "global") else ""
        shared = {None: 1, "global": len(own)}.get(replaces, 2)
        made[name] = ViewBatch(size, tuple(own), inside, shared)
    return made


@dataclass(frozen=True)
class Order:
    """The crops of a sample inside or outside a portion, as they follow one another in memory.

    views and sides: of each crop. starts: the first byte of each batch.
    """

    views: list[int]
    sides: list[int]
    starts: dict[str, int]


def order(batches: dict[str, ViewBatch], inside: bool) -> Order:
    """The order of a sample's crops."""
    made, end = Order([], [], {}), 0
    for name, batch in batches.items():
        if batch.inside in (None, inside):
            made.views.extend(batch.cropped)
            made.sides.extend([batch.size] * len(batch.cropped))
            made.starts[name] = end
            end += batch.bytes
    return made


def stack(crops: list[np.ndarray], views: int, size: int) -> Tensor:
    """The bytes of each sample's views → v b 3 size size, whose channels lie last in memory.

    In a loader's worker the memory is shared, so that the batch is not copied once more.
    """
    shape = (views, len(crops), size, size, 3)
    if get_worker_info() is None or not crops:
        batch = pages.empty(shape, torch.uint8)
    else:
        memory = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
        batch = torch.empty(0, dtype=torch.uint8).set_(memory).view(shape)
    rows = batch.flatten(2).numpy()
    for i, one in enumerate(crops):
        rows[:, i] = one.reshape(views, -1)
    return batch.permute(0, 1, 4, 2, 3)
