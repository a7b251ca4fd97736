"""Losses that terms share, computed block by block."""

import math


def blocks(length: int, most: int) -> list[slice]:
    """Cut a range into as few slices as possible, of one size but for the last; none of nothing."""
    if not length:
        return []
    size = math.ceil(length / math.ceil(length / most))
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]
