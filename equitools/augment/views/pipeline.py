"""From a decoded image to augmented views with what was done to them.

A worker draws the uniforms of a sample and takes its crops as bytes; parameters are drawn and
carried out for whole batches. What a view looks like is a function of (seed, epoch, sample key,
view) alone; in a portion of the batch its grid is a function of (seed, step, view) as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equitools.augment import geometry, grid
from equitools.augment.engines import Parameters, carry_out
from equitools.augment.operations import crop
from equitools.augment.views import layout
from equitools.augment.views import settings as views_settings
from equitools.augment.views.draws import Draws
from equitools.augment.views.layout import Part
from equitools.core.records import View

Batch = dict[str, dict[str, Any]]


@dataclass
class Drawn:
    """A sample's crops, bytes one after another by size, and the random numbers of its views."""

    plan: Views
    crops: np.ndarray
    uniforms: np.ndarray
    windows: np.ndarray
    inside: bool = False


class Views:
    """The views that a recipe makes of a sample.

    views lists them (globals first, those of a portion last); parts are those worked on together;
    portion is the share of the batch that has the last ones in place of others, or None.
    settings is the recipe's `views` with defaults written back. Raises UsageError for settings
    that nothing knows, or that cannot be.
    """

    def __init__(self, given: dict[str, Any], operations: dict[str, Any]) -> None:
        self.operations = operations
        self.settings = views_settings.resolve(given, operations)
        self.draws = Draws(self.settings, operations)
        self.views, self.parts = self.draws.views, self.draws.parts
        self.portion = self.draws.portion

    def __reduce__(self) -> tuple:
        """What travels to spawned workers: settings, and modules by name (they do not pickle)."""
        modules = {name: module.__name__ for name, module in self.operations.items()}
        return _rebuild, (self.settings, modules)

    def sample(
        self, image: np.ndarray, key: str, seed: int, epoch: int, inside: bool = False
    ) -> Drawn:
        """Draw for one decoded image, uint8 h w 3, and take its crops.

        inside: the sample is in the portion.
        """
        height, width = image.shape[:2]
        uniforms, windows = self.draws.sample(height, width, key, seed, epoch, inside)
        found = self.draws.order[inside]
        crops = crop.take(image, windows[found.views], found.sides)
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
        found = [
            self.draws.sample(h, w, key, seed, epoch, one)
            for (h, w, key, epoch), one in zip(samples, inside, strict=True)
        ]
        sides = np.array([(h, w, h, w) for h, w, _, _ in samples])
        uniforms = np.stack([one for one, _ in found], axis=1)
        windows = np.stack([one for _, one in found], axis=1) / sides
        return self.draws.batch(uniforms, windows, inside, seed, step)

    def collate(self, drawn: list[Drawn], *, seed: int = 0, step: int = 0) -> Batch:
        """Samples as one batch: {part: {crops v b 3 h w uint8, parameters {operation: vb k}}}.

        A part of some samples has their `rows` too, and that inside a portion the shapes of its
        `grid`, which are keyed by (seed, step). When the recipe applies in the worker, `images`
        (vb 3 h w, normalized; a list of views inside a portion) replace the crops.
        """
        uniforms = np.stack([one.uniforms for one in drawn], axis=1)
        windows = np.stack([one.windows for one in drawn], axis=1)
        inside = [one.inside for one in drawn]
        batch = self.draws.batch(uniforms, windows, inside, seed, step)
        for name, part in self.parts.items():
            crops = self._crops(name, [drawn[i] for i in part.rows(inside)])
            if self.settings["apply"] == "worker":
                batch[name]["images"] = self._images(part, crops, batch[name])
            else:
                batch[name]["crops"] = crops
        return batch

    def _crops(self, name: str, drawn: list[Drawn]) -> Tensor:
        """The crops of a part, v b 3 h w."""
        part = self.parts[name]
        found = []
        for one in drawn:
            start = self.draws.order[one.inside].starts[name]
            found.append(one.crops[start : start + part.bytes])
        return layout.stack(found, len(part.cropped), part.size)

    def _images(self, part: Part, crops: Tensor, drawn: dict[str, Any]) -> Any:
        """Normalized pictures of a part, vb 3 h w; inside a portion a list of each view's."""
        parameters = drawn["parameters"]
        names = [name for name in self.settings["order"] if name != "crop"]
        order = {name: self.operations[name] for name in names}
        crops = part.shown(crops)
        levels = self.settings["mean"], self.settings["std"]
        images = carry_out(crops, parameters, order, *levels)
        if not part.inside:
            return images
        views = zip(
            images.unflatten(0, crops.shape[:2]),
            parameters["grid"].unflatten(0, crops.shape[:2]),
            drawn["grid"].tolist(),
            strict=True,
        )
        patch = self.draws.of(part)["patch"]
        return [grid.apply(image, p, grid.Shape(*shape), patch) for image, p, shape in views]

    def finish(self, batch: Batch, device: torch.device | str = "cpu") -> list[View]:
        """The views of a batch on a device, in the order of `views`.

        Where there is a portion, those of either kind show the samples in their `rows`; where it is
        the whole batch, there are none of those that are replaced.
        """
        made: dict[int, View] = {}
        for name, part in self.parts.items():
            drawn = batch[name]
            if "images" in drawn:
                images = _sent(drawn["images"], device)
            else:
                images = self._images(part, _sent(drawn["crops"], device), drawn)
            made |= self._records(part, images, drawn, device)
        return [made[number] for number in sorted(made)]

    def _records(
        self, part: Part, images: Any, drawn: dict[str, Any], device: torch.device | str
    ) -> dict[int, View]:
        """Views by number, from the pictures and parameters of all views of a part."""
        parameters = drawn["parameters"]
        operations = self.operations | ({"grid": grid} if part.inside else {})
        action = {
            name: parameters[name][:, : len(operation.NAMES)].to(device, torch.float32)
            for name, operation in operations.items()
        }
        matrix = self._matrix(parameters)
        if part.inside:  # as they are: precise, and where they are read
            matrix = geometry.compose(matrix, grid.matrix(parameters["grid"]))
        else:
            matrix = matrix.to(device, torch.float32)
        count = len(matrix) // len(part.members)
        rows = _sent(drawn["rows"], device) if "rows" in drawn else None
        found = {}
        for place, number in enumerate(part.members):
            own = slice(place * count, (place + 1) * count)
            found[number] = View(
                images[place] if part.inside else images[own],
                {name: value[own] for name, value in action.items()},
                matrix[own],
                rows=rows,
                group=self.views[number].group,
                replaces=self.views[number].replaces,
            )
        return found

    def _matrix(self, parameters: Parameters) -> Tensor:
        """The geometric operations composed in the recipe's order, source → view, b 3 3."""
        return geometry.compose(
            *(
                self.operations[name].matrix(parameters[name])
                for name in self.settings["order"]
                if hasattr(self.operations[name], "matrix")
            )
        )


def _rebuild(given: dict[str, Any], modules: dict[str, str]) -> Views:
    return Views(given, {name: import_module(path) for name, path in modules.items()})


def _sent(pictures: Any, device: torch.device | str) -> Any:
    """A tensor, or each of a list of them, on its way to a device."""
    if isinstance(pictures, list):
        return [_sent(one, device) for one in pictures]
    return pictures.to(device, non_blocking=True)


def collate(drawn: list[Drawn], *, seed: int = 0, step: int = 0) -> Batch:
    """The batch of samples that one plan has drawn: a tree of tensors, ready for pinning.

    seed, step: of the run, which the grids of a portion depend on.
    """
    return drawn[0].plan.collate(drawn, seed=seed, step=step)
