"""All operations after the crop as one compiled function, a picture at a time on every thread.

Flips and rotations are those of the modules beside this one to the bit. Floats in [0, 1] differ by
1e-5 at most, by 5e-5 behind an elastic deformation, and by what solarizing makes of that where a
value meets the threshold.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from equitools.augment import native
from equitools.augment.native import pages
from equitools.augment.normalize import Levels
from equitools.augment.operation import Operation, Operations
from equitools.augment.operations import blur, elastic, flip, gray, jitter, rotation, solarize

# As numbered in native/finish.c, with the columns of a picture's row that their parameters fill.
OPERATIONS: dict[Operation, slice] = {
    flip: slice(0, 1),
    rotation: slice(1, 8),
    elastic: slice(8, 11),
    jitter: slice(11, 19),
    gray: slice(19, 20),
    blur: slice(20, 21),
    solarize: slice(21, 22),
}
NEUTRAL = (0, *[0] * 7, *[0] * 3, *jitter.IDENTITY, 0, 0, 1)
LIMIT = 1 << 14  # sides in pixels: rotations count in 16.16 fixed point


def can(images: Tensor, operations: Operations) -> bool:
    """Is this path built, and does it know the operations and the pictures (b 3 h w uint8, CPU)?"""
    known = all(operation in OPERATIONS for operation in operations)
    bytes_here = images.dtype == torch.uint8 and images.device.type == "cpu"
    fits = images.dim() == 4 and images.shape[1] == 3 and max(images.shape[2:]) < LIMIT
    return known and bytes_here and fits and native.library() is not None


def apply(
    images: Tensor, parameters: Sequence[Tensor], operations: Operations, mean: Levels, std: Levels
) -> Tensor:
    """Pictures b 3 h w uint8 → floats b 3 h w, (x - mean) / std of x in [0, 1].

    parameters: b k float64 of each operation, in the order of carrying out. Fastest where the
    pictures' channels lie last in memory. Raises MemoryError.
    """
    planar = not images.is_contiguous(memory_format=torch.channels_last)
    images = images.contiguous() if planar else images
    out = pages.empty(images.shape, torch.float32)
    rows = table(images, parameters, operations)
    order = np.array([list(OPERATIONS).index(operation) for operation in operations], np.int32)
    levels = np.array((mean, np.reciprocal(np.array(std, np.float64))), np.float32)
    taken = np.zeros(1, np.int32)
    pointers = (images.data_ptr(), out.data_ptr(), rows.ctypes.data, order.ctypes.data)
    rest = (len(order), taken.ctypes.data, *(images.shape[i] for i in (0, 2, 3)), planar)
    _share(len(images), *pointers, *rest, levels[0].ctypes.data, levels[1].ctypes.data)
    return out


def _share(pictures: int, *arguments: int) -> None:
    """Every thread calls the function; they take pictures until none is left."""
    library = native.library()
    assert library is not None
    threads = min(torch.get_num_threads(), pictures)
    if threads > 1:
        # Made anew each time: a pool that outlives a fork has no threads on the other side.
        with ThreadPoolExecutor(threads) as pool:
            failed = list(pool.map(lambda _: library.finish(*arguments), range(threads)))
    else:
        failed = [library.finish(*arguments)]
    if any(failed):
        raise MemoryError("no memory left to augment pictures")


def table(images: Tensor, parameters: Sequence[Tensor], operations: Operations) -> np.ndarray:
    """Parameters as b × 22 float64: the rows that the compiled function reads."""
    rows = np.tile(np.array(NEUTRAL, np.float64), (len(images), 1))
    for operation, p in zip(operations, parameters, strict=True):
        if operation is rotation:
            coefficients = rotation.coefficients(p, *images.shape[2:]).flatten(1)
            p = torch.cat((p != 0, coefficients), dim=1)
        rows[:, OPERATIONS[operation]] = p.numpy()
    return rows
