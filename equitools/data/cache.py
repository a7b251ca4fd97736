"""Decoded pictures of a small data set, in one block of memory that all loader processes share.

Every picture has its place from the start, by the size in its header; whoever needs it first
decodes it into that place. Two that do so at once write the same bytes.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equitools.core.errors import DataError, UsageError
from equitools.data import images

# What decoded pictures may take of the memory that is free when they are first wanted.
SHARE = 0.5
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class Decoded:
    """Pictures of an index (`image(i)`, `where(i)`), decoded once for all that share the block.

    users: how many blocks of this size there will be on this machine (one a rank). Raises
    UsageError when they would take more than half of the free memory, DataError for what is not a
    picture.
    """

    def __init__(self, index: Any, users: int = 1) -> None:
        self._index = index
        self._shapes = shapes(index)
        sizes = 3 * self._shapes.astype(np.int64).prod(axis=1)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        _refuse_more(int(self._starts[-1]) * users, len(index))
        self._bytes = torch.empty(int(self._starts[-1]), dtype=torch.uint8).share_memory_()
        self._there = torch.zeros(len(index), dtype=torch.bool).share_memory_()

    def __call__(self, i: int) -> np.ndarray:
        """Picture i as uint8 (h, w, 3) RGB, to be read only. Raises DataError naming it."""
        height, width = self._shapes[i].tolist()
        place = self._bytes[int(self._starts[i]) : int(self._starts[i + 1])]
        pixels = place.numpy().reshape(height, width, 3)
        if not self._there[i]:
            pixels[:] = picture(self._index, i, (height, width))
            self._there[i] = True
        return pixels

    def missing(self, samples: list[int]) -> list[int]:
        """Those of some samples that are yet to be decoded."""
        return [i for i in samples if not self._there[i]]


def shapes(index: Any) -> np.ndarray:
    """Height and width of every picture of an index by its header, n 2 int32; DataError."""
    sides = [images.shape(index.image(i), index.where(i)) for i in range(len(index))]
    return np.array(sides, np.int32).reshape(-1, 2)


def picture(index: Any, i: int, shape: tuple[int, int]) -> np.ndarray:
    """Picture i decoded, h w 3 uint8; DataError unless it has the shape that was announced."""
    where = index.where(i)
    pixels = images.decode(index.image(i), where)
    if pixels.shape[:2] != shape:
        raise DataError(f"cannot keep {where}: it is not of the size that its header says")
    return pixels


def _refuse_more(wanted: int, count: int) -> None:
    free = free_memory()
    if wanted > SHARE * free:
        raise UsageError(
            f"cache=memory would keep {wanted / 1e9:.2f} GB for {count} decoded pictures; it may"
            f" take half of the {free / 1e9:.2f} GB that are free here (memory, and /dev/shm):"
            " say cache=none"
        )


def free_memory() -> int:
    """Bytes that this process may still take and share: of the machine, its container, /dev/shm."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if (known := Path("/proc/meminfo")).exists():
        lines = dict(line.split(":") for line in known.read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) << 10)
    for limit, used in _LIMITS:
        if Path(limit).exists() and (text := Path(limit).read_text().strip()).isdigit():
            free.append(int(text) - int(Path(used).read_text()))
    if Path("/dev/shm").is_dir():
        state = os.statvfs("/dev/shm")
        free.append(state.f_bavail * state.f_frsize)
    return max(0, min(free))
