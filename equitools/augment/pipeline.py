"""From a decoded image to augmented views with what was done to them.

A worker draws the uniforms of a sample and takes its crops as bytes; parameters are drawn and
carried out for whole batches. What a view looks like is a function of (seed, epoch, sample key,
view) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equitools.augment import crop, geometry, keys, settings
from equitools.augment.levels import as_float, normalize
from equitools.records import View

Parameters = dict[str, Tensor]
Batch = dict[str, dict[str, Any]]
# Floats that one pass works on: a share of a core's cache, or a good load for a GPU.
CHUNK = {"cpu": 1 << 19, "cuda": 1 << 26}


@dataclass(frozen=True)
class ViewPlan:
    """One of the views made of every sample: its group, its side in pixels, its number there."""

    group: str
    size: int
    index: int


@dataclass
class Drawn:
    """A sample's crops {size: v size size 3 uint8} with the random numbers of all its views."""

    plan: Views
    crops: dict[int, Tensor]
    uniforms: np.ndarray
    windows: np.ndarray


class Views:
    """The views that a recipe makes of a sample.

    views lists them (globals first); settings is the recipe's `views` with defaults written back.
    Raises UsageError for settings that nothing knows, or that cannot be.
    """

    def __init__(self, given: dict[str, Any], operations: dict[str, Any]) -> None:
        self.operations = operations
        self.settings = settings.resolve(given, operations)
        groups = {k: v for k, v in self.settings.items() if _is_group(k, v, operations)}
        self.views = [
            ViewPlan(name, group["size"], i)
            for name, group in groups.items()
            for i in range(group["count"])
        ]
        self.knobs = [self._knobs(groups[v.group], v) for v in self.views]
        self.sizes: dict[int, list[int]] = {}
        for number, view in enumerate(self.views):
            self.sizes.setdefault(view.size, []).append(number)
        of_views = [groups[view.group] for view in self.views]
        self._scale = [group["crop"] for group in of_views]
        self._ratio = [group["ratio"] for group in of_views]

    def __reduce__(self) -> tuple:
        """What travels to spawned workers: settings, and modules by name (they do not pickle)."""
        modules = {name: module.__name__ for name, module in self.operations.items()}
        return _rebuild, (self.settings, modules)

    def _knobs(self, group: dict[str, Any], view: ViewPlan) -> dict[str, dict[str, Any]]:
        """Keyword arguments of each operation's draw for one view; none where it never acts."""

        def own(value: Any) -> Any:
            return value[view.index] if isinstance(value, list) else value

        found = {
            "flip": {"p": group["flip"]},
            "jitter": group["jitter"],
            "gray": {"p": group["gray"]},
            "blur": {"p": own(group["blur"]), "sigma": group["sigma"]},
            "solarize": {"p": own(group["solarize"])},
        }
        for name, operation in self.operations.items():
            if name not in settings.OF_GROUPS and self.settings[name] is not None:
                found[name] = settings.knobs_of(operation, self.settings[name])
        return found

    def sample(self, image: np.ndarray, key: str, seed: int, epoch: int) -> Drawn:
        """Draw for one decoded image, uint8 h w 3, and take its crops."""
        uniforms = keys.uniforms(seed, epoch, key, rows=len(self.views))
        height, width = image.shape[:2]
        windows = crop.draw(
            uniforms[:, crop.COLUMNS], height, width, scale=self._scale, ratio=self._ratio
        )
        pixels = torch.from_numpy(image if image.flags.writeable else image.copy())
        pixels = pixels.permute(2, 0, 1)[None]
        crops = {
            size: torch.cat([crop.take(pixels, windows[v], size) for v in members])
            for size, members in self.sizes.items()
        }
        return Drawn(self, crops, uniforms, windows)

    def collate(self, drawn: list[Drawn]) -> Batch:
        """Samples as one batch: {size: {crops v b 3 h w uint8, parameters {operation: vb k}}}.

        When the recipe applies in the worker, `images` (vb 3 h w, normalized) replace the crops.
        """
        uniforms = np.stack([one.uniforms for one in drawn], axis=1)
        windows = np.stack([one.windows for one in drawn], axis=1)
        batch: Batch = {}
        for size, members in self.sizes.items():
            crops = torch.stack([one.crops[size] for one in drawn], dim=1)
            parameters = self._parameters(uniforms, windows, members)
            batch[str(size)] = {"crops": crops, "parameters": parameters}
            if self.settings["apply"] == "worker":
                images = self._images(crops, parameters)
                batch[str(size)] = {"images": images, "parameters": parameters}
        return batch

    def _parameters(
        self, uniforms: np.ndarray, windows: np.ndarray, members: list[int]
    ) -> Parameters:
        """Parameters of every operation, view by view, float64: the identity where it is off."""
        found = {"crop": torch.from_numpy(np.concatenate([windows[v] for v in members]))}
        for name, operation in self.operations.items():
            if name == "crop":
                continue
            rows = [
                operation.draw(uniforms[v][:, operation.COLUMNS], **self.knobs[v][name])
                if name in self.knobs[v] and name in self.settings["order"]
                else np.tile(np.array(operation.IDENTITY), (uniforms.shape[1], 1))
                for v in members
            ]
            found[name] = torch.from_numpy(np.concatenate(rows))
        return found

    def _images(self, crops: Tensor, parameters: Parameters) -> Tensor:
        """Crops v b 3 h w → pictures vb 3 h w, all operations carried out, normalized."""
        order = [self.operations[name] for name in self.settings["order"] if name != "crop"]
        names = [name for name in self.settings["order"] if name != "crop"]
        crops = crops.flatten(0, 1)
        images = torch.empty(crops.shape, dtype=torch.float32, device=crops.device)
        for rows in chunks(crops):
            part = crops[rows].contiguous(memory_format=torch.contiguous_format)
            for name, operation in zip(names, order, strict=True):
                part = act(operation, part, parameters[name][rows])
            images[rows] = normalize(part, self.settings["mean"], self.settings["std"])
        return images

    def finish(self, batch: Batch, device: torch.device | str = "cpu") -> list[View]:
        """The views of a batch on a device, in the order of `views`."""
        made: dict[int, View] = {}
        for size, members in self.sizes.items():
            part = batch[str(size)]
            if "images" in part:
                images = part["images"].to(device, non_blocking=True)
            else:
                images = self._images(
                    part["crops"].to(device, non_blocking=True), part["parameters"]
                )
            made |= self._records(members, images, part["parameters"])
        return [made[number] for number in range(len(self.views))]

    def _records(
        self, members: list[int], images: Tensor, parameters: Parameters
    ) -> dict[int, View]:
        """Views by number, from the pictures and parameters of all views of one size."""
        action = {
            name: parameters[name][:, : len(operation.NAMES)].to(images.device, torch.float32)
            for name, operation in self.operations.items()
        }
        matrix = self._matrix(parameters).to(images.device, torch.float32)
        count = len(images) // len(members)
        found = {}
        for place, number in enumerate(members):
            rows = slice(place * count, (place + 1) * count)
            own = {name: value[rows] for name, value in action.items()}
            group = self.views[number].group
            found[number] = View(images[rows], own, matrix[rows], group=group)
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


def _is_group(name: str, value: Any, operations: dict[str, Any]) -> bool:
    return isinstance(value, dict) and name not in operations


def _rebuild(given: dict[str, Any], modules: dict[str, str]) -> Views:
    return Views(given, {name: import_module(path) for name, path in modules.items()})


def collate(drawn: list[Drawn]) -> Batch:
    """The batch of samples that one plan has drawn: a tree of tensors, ready for pinning."""
    return drawn[0].plan.collate(drawn)


def chunks(images: Tensor) -> Iterator[slice]:
    """Slices of a batch that are worked on at a time."""
    limit = CHUNK["cpu" if images.device.type == "cpu" else "cuda"]
    size = max(1, limit // max(1, images[0].numel()))
    return (slice(start, start + size) for start in range(0, len(images), size))


def act(operation: Any, images: Tensor, p: Tensor) -> Tensor:
    """Carry out an operation on those pictures that it changes; the input is left as it is.

    What has a matrix moves pixels of any type; other operations are given floats in [0, 1].
    """
    neutral = torch.tensor(operation.IDENTITY, dtype=p.dtype)
    width = len(operation.NAMES)
    rows = (p[:, :width] != neutral[:width]).any(1).nonzero()[:, 0]
    if not len(rows):
        return images
    if not hasattr(operation, "matrix"):
        images = as_float(images)
    if len(rows) == len(images):
        return operation.apply(images, p)
    where = rows.to(images.device)
    return images.index_copy(0, where, operation.apply(images.index_select(0, where), p[rows]))
