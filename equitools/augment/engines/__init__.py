"""How operations are carried out: compiled, in Triton or in torch, block by block."""

from collections.abc import Iterator

import torch
from torch import Tensor

from equitools.augment import native
from equitools.augment.engines import compiled, triton_program
from equitools.augment.native import pages
from equitools.augment.normalize import Levels, as_float, normalize
from equitools.augment.operation import Operation
from equitools.augment.operations import Menu

Parameters = dict[str, Tensor]
# Floats that one pass works on: a share of a core's cache, or a good load for a GPU.
CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}


def carry_out(
    crops: Tensor, parameters: Parameters, operations: Menu, mean: Levels, std: Levels
) -> Tensor:
    """Crops v b 3 h w uint8 → pictures vb 3 h w, operations carried out in their order, normalized.

    parameters: {operation: vb k float64}. The one place that chooses how: compiled where it can be.
    """
    images = crops.flatten(0, 1)
    if not len(images):
        return images.to(torch.float32)
    modules, given = list(operations.values()), [parameters[name] for name in operations]
    if compiled.can(images, modules):
        return compiled.apply(images, given, modules, mean, std)
    if triton_program.can(images, modules):
        from equitools.augment.engines import triton_kernels  # here, as Triton takes a second

        return triton_kernels.apply(images, given, modules, mean, std)
    done = pages.empty(images.shape, torch.float32, images.device)
    for rows in chunks(images):
        part = images[rows].contiguous(memory_format=torch.contiguous_format)
        for operation, p in zip(modules, given, strict=True):
            part = act(operation, part, p[rows])
        normalize(part, mean, std, out=done[rows])
    return done


def engine(device: torch.device | str = "cpu") -> str:
    """How a recipe's operations are carried out on a device here: "C", "Triton" or "torch"."""
    built = {"cpu": native.library() and "C", "cuda": triton_program.available() and "Triton"}
    return built.get(torch.device(device).type) or "torch"


def chunks(images: Tensor) -> Iterator[slice]:
    """Slices of a batch that are worked on at a time."""
    limit = CHUNK["cpu" if images.device.type == "cpu" else "cuda"]
    size = max(1, limit // max(1, images[0].numel()))
    return (slice(start, start + size) for start in range(0, len(images), size))


def act(operation: Operation, images: Tensor, p: Tensor) -> Tensor:
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
