"""From a decoded image to augmented views with what was done to them.

A worker draws the uniforms of a sample and takes its crops as bytes; parameters are drawn and
carried out for whole batches. What a view looks like is a function of (seed, epoch, sample key,
view) alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from equitools.augment import compiled, crop, fused, geometry, keys, pages, programs, settings
from equitools.augment.levels import as_float, normalize
from equitools.records import View

Parameters = dict[str, Tensor]
Batch = dict[str, dict[str, Any]]
# Floats that one pass works on: a share of a core's cache, or a good load for a GPU.
CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}


@dataclass(frozen=True)
class ViewPlan:
    """One of the views made of every sample: its group, its side in pixels, its number there."""

    group: str
    size: int
    index: int


@dataclass
class Drawn:
    """A sample's crops, bytes one after another by size, and the random numbers of its views."""

    plan: Views
    crops: np.ndarray
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
        self._by_size = [number for members in self.sizes.values() for number in members]
        self._sides = [self.views[number].size for number in self._by_size]
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
        height, width = image.shape[:2]
        uniforms, windows = self._draw(height, width, key, seed, epoch)
        crops = crop.take(image, windows[self._by_size], self._sides)
        return Drawn(self, crops, uniforms, windows / (height, width, height, width))

    def _draw(
        self, height: int, width: int, key: str, seed: int, epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The uniforms of a sample's views, and their windows in pixels."""
        uniforms = keys.uniforms(seed, epoch, key, rows=len(self.views))
        windows = crop.place(
            uniforms[:, crop.COLUMNS], height, width, scale=self._scale, ratio=self._ratio
        )
        return uniforms, windows

    def draw(self, samples: Sequence[tuple[int, int, str, int]], seed: int) -> Batch:
        """The parameters of a batch, for samples (height, width, key, epoch) cropped elsewhere."""
        found = [self._draw(h, w, key, seed, epoch) for h, w, key, epoch in samples]
        sides = np.array([(h, w, h, w) for h, w, _, _ in samples])
        uniforms = np.stack([one for one, _ in found], axis=1)
        windows = np.stack([one for _, one in found], axis=1) / sides
        return {
            str(size): {"parameters": self._parameters(uniforms, windows, members)}
            for size, members in self.sizes.items()
        }

    def collate(self, drawn: list[Drawn]) -> Batch:
        """Samples as one batch: {size: {crops v b 3 h w uint8, parameters {operation: vb k}}}.

        When the recipe applies in the worker, `images` (vb 3 h w, normalized) replace the crops.
        """
        uniforms = np.stack([one.uniforms for one in drawn], axis=1)
        windows = np.stack([one.windows for one in drawn], axis=1)
        batch: Batch = {}
        start = 0
        for size, members in self.sizes.items():
            end = start + 3 * size * size * len(members)
            crops = _stack([one.crops[start:end] for one in drawn], len(members), size)
            start = end
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
        names = [name for name in self.settings["order"] if name != "crop"]
        order = {name: self.operations[name] for name in names}
        return carry_out(crops, parameters, order, self.settings["mean"], self.settings["std"])

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


def carry_out(
    crops: Tensor,
    parameters: Parameters,
    operations: dict[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Crops v b 3 h w uint8 → pictures vb 3 h w, operations carried out in their order, normalized.

    parameters: {operation: vb k float64}. The one place that chooses how: compiled where it can be.
    """
    images = crops.flatten(0, 1)
    modules, given = list(operations.values()), [parameters[name] for name in operations]
    if fused.can(images, modules):
        return fused.apply(images, given, modules, mean, std)
    if programs.can(images, modules):
        from equitools.augment import kernels  # here, as Triton takes a second to import

        return kernels.apply(images, given, modules, mean, std)
    done = pages.empty(images.shape, torch.float32, images.device)
    for rows in chunks(images):
        part = images[rows].contiguous(memory_format=torch.contiguous_format)
        for operation, p in zip(modules, given, strict=True):
            part = act(operation, part, p[rows])
        normalize(part, mean, std, out=done[rows])
    return done


def engine(device: torch.device | str = "cpu") -> str:
    """How a recipe's operations are carried out on a device here: "C", "Triton" or "torch"."""
    built = {"cpu": compiled.library() and "C", "cuda": programs.available() and "Triton"}
    return built.get(torch.device(device).type) or "torch"


def _stack(crops: list[np.ndarray], views: int, size: int) -> Tensor:
    """The bytes of each sample's views → v b 3 size size, whose channels lie last in memory.

    In a loader's worker the memory is shared, so that the batch is not copied once more.
    """
    shape = (views, len(crops), size, size, 3)
    if get_worker_info() is None:
        batch = pages.empty(shape, torch.uint8)
    else:
        memory = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
        batch = torch.empty(0, dtype=torch.uint8).set_(memory).view(shape)
    rows = batch.view(views, len(crops), -1).numpy()
    for i, one in enumerate(crops):
        rows[:, i] = one.reshape(views, -1)
    return batch.permute(0, 1, 4, 2, 3)


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
