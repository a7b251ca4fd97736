"""From a decoded image to augmented views with what was done to them.

A worker draws the uniforms of a sample and takes its crops as bytes; parameters are drawn and
carried out for whole batches. What a view looks like is a function of (seed, epoch, sample key,
view) alone; in a portion of the batch its grid is a function of (seed, step, view) as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from equitools.augment import geometry, grid
from equitools.augment.engines import Parameters, carry_out
from equitools.augment.operation import Operation
from equitools.augment.operations import Menu, crop
from equitools.augment.views import layout
from equitools.augment.views import settings as views_settings
from equitools.augment.views.draws import Array, Draws
from equitools.augment.views.layout import ViewBatch
from equitools.core.records import View

Batch = dict[str, dict[str, Any]]
Pictures = Tensor | list[Tensor]
Device = torch.device | str


@dataclass
class Drawn:
    """A sample's crops, bytes one after another by size, and the random numbers of its views."""

    plan: Views
    crops: Array
    uniforms: Array
    windows: Array
    inside: bool = False


class Views:
    """The views that a recipe makes of a sample.

    views lists them (globals first, those of a portion last); batches those worked on together;
    portion is the share of the batch that has the last ones in place of others, or None.
    settings is the recipe's `views` with defaults written back. Raises UsageError for settings
    that nothing knows, or that cannot be.
    """

    def __init__(self, given: dict[str, Any], operations: Menu) -> None:
        self.operations = operations
        self.settings = views_settings.resolve(given, operations)
        self.draws = Draws(self.settings, operations)
        self.views, self.batches = self.draws.views, self.draws.batches
        self.portion = self.draws.portion

    def __reduce__(self) -> tuple:
        """What travels to spawned workers: settings, and modules by name (they do not pickle)."""
        modules = {name: module.__name__ for name, module in self.operations.items()}
        return _rebuild, (self.settings, modules)

    def sample(self, image: Array, key: str, seed: int, epoch: int, inside: bool = False) -> Drawn:
        """Draw for one decoded image, uint8 h w 3, and take its crops.

        inside: the sample is in the portion.
        """
        height, width = image.shape[:2]
        uniforms, windows = self.draws.sample(height, width, key, seed, epoch, inside)
        order = self.draws.order[inside]
        crops = crop.take(image, windows[order.views], order.sides)
        return Drawn(self, crops, uniforms, windows / (height, width, height, width), inside)

    def draw(
        self,
        samples: Sequence[tuple[int, int, str, int]],
        seed: int,
        *,
        step: int = 0,
        inside: Sequence[bool] | None = None,
    ) -> Batch:
        """The parameters of a batch, for samples (height, width, key, epoch) cropped elsewhere.

        step: of the whole run, which a portion's grids depend on; inside: which samples are in it.
        """
        inside = [False] * len(samples) if inside is None else inside
        drawn = [
            self.draws.sample(h, w, key, seed, epoch, one)
            for (h, w, key, epoch), one in zip(samples, inside, strict=True)
        ]
        sides = np.array([(h, w, h, w) for h, w, _, _ in samples])
        uniforms = np.stack([one for one, _ in drawn], axis=1)
        windows = np.stack([one for _, one in drawn], axis=1) / sides
        return self.draws.batch(uniforms, windows, inside, seed, step)

    def collate(self, drawn: list[Drawn], *, seed: int = 0, step: int = 0) -> Batch:
        """Samples as one batch: {name: {crops v b 3 h w uint8, parameters {operation: vb k}}}.

        A batch of some samples has their `rows` too, and that inside a portion the shapes of its
        `grid`, which are keyed by (seed, step). When the recipe applies in the worker, `images`
        (vb 3 h w, normalized; a list of views inside a portion) replace the crops.
        """
        uniforms = np.stack([one.uniforms for one in drawn], axis=1)
        windows = np.stack([one.windows for one in drawn], axis=1)
        inside = [one.inside for one in drawn]
        collated = self.draws.batch(uniforms, windows, inside, seed, step)
        for name, batch in self.batches.items():
            crops = self._crops(name, [drawn[i] for i in batch.rows(inside)])
            if self.settings["apply"] == "worker":
                collated[name]["images"] = self._images(batch, crops, collated[name])
            else:
                collated[name]["crops"] = crops
        return collated

    def _crops(self, name: str, drawn: list[Drawn]) -> Tensor:
        """The crops of a batch, v b 3 h w."""
        batch, crops = self.batches[name], []
        for one in drawn:
            start = self.draws.order[one.inside].starts[name]
            crops.append(one.crops[start : start + batch.bytes])
        return layout.stack(crops, len(batch.cropped), batch.size)

    def _images(self, batch: ViewBatch, crops: Tensor, drawn: dict[str, Any]) -> Pictures:
        """Normalized pictures of a batch, vb 3 h w; inside a portion a list of each view's."""
        parameters, crops = drawn["parameters"], batch.repeated(crops)
        order = {name: one for name, one in self.draws.operations.items() if name != "crop"}
        levels = self.settings["mean"], self.settings["std"]
        images = carry_out(crops, parameters, order, *levels)
        if not batch.inside:
            return images
        of_views = [one.unflatten(0, crops.shape[:2]) for one in (images, parameters["grid"])]
        shapes, patch = drawn["grid"].tolist(), self.draws.group(batch)["patch"]
        views = zip(*of_views, shapes, strict=True)
        return [grid.apply(image, p, grid.Shape(*shape), patch) for image, p, shape in views]

    def finish(self, batch: Batch, device: Device = "cpu") -> list[View]:
        """The views of a batch on a device, in the order of `views`.

        Where there is a portion, those of either kind show the samples in their `rows`; where it is
        the whole batch, there are none of those that are replaced.
        """
        made: dict[int, View] = {}
        for name, view_batch in self.batches.items():
            drawn = batch[name]
            if "images" in drawn:
                images = _sent(drawn["images"], device)
            else:
                crops = drawn["crops"].to(device, non_blocking=True)
                images = self._images(view_batch, crops, drawn)
            made |= self._records(view_batch, images, drawn, device)
        return [made[number] for number in sorted(made)]

    def _records(
        self, batch: ViewBatch, images: Pictures, drawn: dict[str, Any], device: Device
    ) -> dict[int, View]:
        """Views by number, from the pictures and parameters of all views of a batch."""
        parameters = drawn["parameters"]
        widths = {name: len(one.NAMES) for name, one in sorted(self.draws.operations.items())}
        widths |= {"grid": len(grid.NAMES)} if batch.inside else {}
        action = {
            name: parameters[name][:, :width].to(device, torch.float32)
            for name, width in widths.items()
        }
        matrix = self._matrix(parameters)
        if batch.inside:  # as they are: precise, and where they are read
            matrix = geometry.compose(matrix, grid.matrix(parameters["grid"]))
        else:
            matrix = matrix.to(device, torch.float32)
        count = len(matrix) // len(batch.members)
        rows = drawn["rows"].to(device, non_blocking=True) if "rows" in drawn else None
        views = {}
        for place, number in enumerate(batch.members):
            own, plan = slice(place * count, (place + 1) * count), self.views[number]
            image = images[place] if isinstance(images, list) else images[own]
            actions = {name: value[own] for name, value in action.items()}
            views[number] = View(
                image, actions, matrix[own], rows=rows, group=plan.group, replaces=plan.replaces
            )
        return views

    def _matrix(self, parameters: Parameters) -> Tensor:
        """The geometric operations composed in the recipe's order, source → view, b 3 3."""
        used = self.draws.operations.items()
        moving = {name: one.matrix for name, one in used if hasattr(one, "matrix")}
        return geometry.compose(*(matrix(parameters[name]) for name, matrix in moving.items()))


def _rebuild(given: dict[str, Any], modules: dict[str, str]) -> Views:
    menu = {name: cast(Operation, import_module(path)) for name, path in modules.items()}
    return Views(given, menu)


def _sent(pictures: Pictures, device: Device) -> Pictures:
    """Pictures on their way to a device."""
    if isinstance(pictures, list):
        return [one.to(device, non_blocking=True) for one in pictures]
    return pictures.to(device, non_blocking=True)


def collate(drawn: list[Drawn], *, seed: int = 0, step: int = 0) -> Batch:
    """The batch of samples that one plan has drawn: a tree of tensors, ready for pinning.

    seed, step: of the run, which the grids of a portion depend on.
    """
    return drawn[0].plan.collate(drawn, seed=seed, step=step)
