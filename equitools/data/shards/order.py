"""The order of an endless run, a function of (seed, epoch) alone: not of workers or processes."""

from functools import lru_cache

import numpy as np

from equitools.data.shards.index import ShardIndex

# Samples are shuffled within this many shards, so that a disk reads within a bounded region.
WINDOW = 64


def positions(
    index: ShardIndex, seed: int, start: int, count: int, window: int = WINDOW
) -> list[tuple[int, int]]:
    """(epoch, sample) at the global positions start … start + count of the endless joined order.

    Every epoch visits each sample once; epochs join without a drop. `window` is the number of
    shards within which samples are shuffled.
    """
    epoch, first = divmod(start, len(index))
    visits: list[tuple[int, int]] = []
    while len(visits) < count:
        order = _epoch_order(index.counts, seed, epoch, window)
        taken = order[first : first + count - len(visits)]
        visits += [(epoch, i) for i in taken.tolist()]
        epoch, first = epoch + 1, 0
    return visits


@lru_cache(maxsize=3)
def _epoch_order(counts: tuple[int, ...], seed: int, epoch: int, window: int) -> np.ndarray:
    """The permutation of one epoch: shards permuted, then samples within each window of shards.

    Sorts raw 64-bit draws, which numpy promises never to change, unlike `Generator.permutation`.
    """
    raw = np.random.PCG64([seed & (2**64 - 1), epoch])
    order = np.argsort(raw.random_raw(len(counts)), kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    pieces = []
    for first in range(0, len(order), window):
        members = order[first : first + window]
        samples = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in members])
        pieces.append(samples[np.argsort(raw.random_raw(len(samples)), kind="stable")])
    whole = np.concatenate(pieces)
    whole.flags.writeable = False
    return whole
