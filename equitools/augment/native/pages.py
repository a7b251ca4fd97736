"""Memory for batches in large pages: touching small ones costs more than the augmentation."""

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

HUGE_PAGES = 14  # MADV_HUGEPAGE of Linux
LEAST = 4 << 20  # bytes: two large pages
PAGE = 4096


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """`torch.empty`, in large pages where it is worth it and the system has them."""
    memory = torch.empty(shape, dtype=dtype, device=device)
    advise = _advise() if memory.device.type == "cpu" and memory.nbytes >= LEAST else None
    if advise is not None:
        start, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
        first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        advise(first, last - first, HUGE_PAGES)  # advice: what it answers does not matter
    return memory


@cache
def _advise() -> Callable[[int, int, int], int] | None:
    linux = sys.platform.startswith("linux")
    advise = getattr(ctypes.CDLL(None), "madvise", None) if linux else None
    if advise is not None:
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
