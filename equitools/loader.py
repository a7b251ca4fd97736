"""From shards to batches of crops, in an order that depends on nothing but (seed, step).

Step s takes the global positions [s·B, (s+1)·B) of the endless joined order; rank r takes the r-th
slice. A loader therefore starts anywhere, with any number of workers and processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from equitools import augment, images, parallel, shards
from equitools.errors import DataError, UsageError


class StepBatches(Dataset):
    """Micro-batch number n of this rank as an `augment` batch of uint8 crops.

    A sample that cannot be read is returned as the error, to be raised where a user sees it.
    """

    def __init__(self, index: Any, plan: Any, *, seed: int, batch: int, ranks: int, rank: int,
                 accumulate: int) -> None:  # fmt: skip
        if batch % (ranks * accumulate):
            raise UsageError(
                f"batch_size={batch} does not divide among {ranks} processes"
                f" × accumulate={accumulate}; choose a multiple of {ranks * accumulate}"
            )
        self.index, self.plan, self.seed = index, plan, seed
        self.batch, self.share = batch, batch // (ranks * accumulate)
        self.rank, self.accumulate = rank, accumulate

    def __getitem__(self, number: int) -> Any:
        step, micro = divmod(number, self.accumulate)
        start = step * self.batch + (self.rank * self.accumulate + micro) * self.share
        drawn = []
        try:
            for epoch, i in shards.positions(self.index, self.seed, start, self.share):
                drawn.append(self._sample(epoch, i))
        except DataError as error:
            return error
        return augment.collate(drawn)

    def _sample(self, epoch: int, i: int) -> Any:
        key = self.index.keys[i]
        image = images.decode(self.index.image(i), f"sample '{key}'")
        return self.plan.sample(image, key, self.seed, epoch)


class From(Sampler):
    """The numbers of micro-batches from a start to an end."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __len__(self) -> int:
        return self.end - self.start


def batches(data: StepBatches, *, start: int, end: int, workers: int, pin: bool) -> Iterator[Any]:
    """Batches of the steps [start, end); raises DataError where a sample cannot be read."""
    loader: DataLoader = DataLoader(
        data,
        batch_size=None,
        sampler=From(start * data.accumulate, end * data.accumulate),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=parallel.quiet_worker,
        prefetch_factor=4 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch
