"""From shards to batches of crops, in an order that depends on nothing but (seed, step).

Step s takes the global positions [s·B, (s+1)·B) of the endless joined order; rank r takes the r-th
slice. A loader therefore starts anywhere, with any number of workers and processes. Each picture of
a micro-batch is read and decoded once, whatever number of views it has.
"""

import os
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from equitools import augment
from equitools.core import distributed
from equitools.core.errors import DataError, EquiError, UsageError
from equitools.data import cache as data_cache
from equitools.data import images
from equitools.data.cache import Decoded
from equitools.data.shards.index import ShardIndex
from equitools.data.shards.order import positions
from equitools.data.workers import quiet_worker
from equitools.training import portions
from equitools.training.device_cache import Resident


class StepBatches(Dataset):
    """Micro-batch number n of this rank as an `augment` batch of uint8 crops.

    cache: none; memory to keep pictures decoded; device to draw parameters only, for pictures that
    `resident` keeps there. A sample that cannot be read is returned as the error, to be raised
    where a user sees it.
    """

    def __init__(
        self,
        index: ShardIndex,
        plan: augment.Views,
        *,
        seed: int,
        batch: int,
        ranks: int,
        rank: int,
        accumulate: int,
        cache: str = "none",
    ) -> None:
        if batch % (ranks * accumulate):
            raise UsageError(
                f"batch_size={batch} does not divide among {ranks} processes"
                f" × accumulate={accumulate}; choose a multiple of {ranks * accumulate}"
            )
        self.index, self.plan, self.seed = index, plan, seed
        self.batch, self.share = batch, batch // (ranks * accumulate)
        self.rank, self.accumulate = rank, accumulate
        self.members = portions.members(plan.portion, batch)
        portions.refuse_lonely(self.members, batch, processes=ranks, accumulate=accumulate)
        self.shapes = shapes(index, plan) if cache == "device" else None
        here = min(ranks, int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
        self.decoded = Decoded(index, here) if cache == "memory" else None

    def __getitem__(self, number: int) -> augment.Batch | DataError:
        step, micro = divmod(number, self.accumulate)
        start = (self.rank * self.accumulate + micro) * self.share
        inside = portions.inside(start, self.share, members=self.members, batch=self.batch)
        try:
            members = positions(self.index, self.seed, step * self.batch + start, self.share)
            if self.shapes is not None:
                return self._draw(members, self.shapes, step, inside)
            self._fetch([i for _, i in members])
            drawn = [self._sample(*one, there) for one, there in zip(members, inside, strict=True)]
            return augment.collate(drawn, seed=self.seed, step=step)
        except DataError as error:
            return error

    def _draw(
        self, members: list[tuple[int, int]], known: np.ndarray, step: int, inside: list[bool]
    ) -> dict[str, Any]:
        sizes = [(*known[i].tolist(), self.index.keys[i], epoch) for epoch, i in members]
        drawn = self.plan.draw(sizes, self.seed, step=step, inside=inside)
        return drawn | {"samples": torch.tensor([i for _, i in members])}

    def _fetch(self, samples: list[int]) -> None:
        """Let storage work on the whole micro-batch while its first pictures are decoded."""
        self.index.fetch(samples if self.decoded is None else self.decoded.missing(samples))

    def _sample(self, epoch: int, i: int, inside: bool) -> augment.Drawn:
        return self.plan.sample(self._picture(i), self.index.keys[i], self.seed, epoch, inside)

    def _picture(self, i: int) -> np.ndarray:
        if self.decoded is not None:
            return self.decoded(i)
        return images.decode(self.index.image(i), self.index.where(i))


def shapes(index: ShardIndex, plan: augment.Views) -> np.ndarray:
    """Height and width of every picture, n 2, by their headers. UsageError for `apply: worker`."""
    if plan.settings["apply"] == "worker":
        raise UsageError("cache=device leaves nothing to a worker; say views.apply=device")
    return data_cache.shapes(index)


def residents(data: StepBatches, device: torch.device) -> Resident | None:
    """The pictures on the device, where cache=device asks for it."""
    if data.shapes is None:
        return None
    return Resident(data.index, data.shapes, device, data.plan.batches)


def run_batches(
    settings: dict[str, Any],
    index: ShardIndex,
    plan: augment.Views,
    device: torch.device,
    *,
    start: int,
    end: int,
) -> Generator[augment.Batch, None, None]:
    """The batches of this rank for the steps [start, end) of a recipe's run."""
    data = StepBatches(
        index,
        plan,
        seed=settings["seed"],
        batch=settings["batch_size"],
        ranks=distributed.world_size(),
        rank=distributed.rank(),
        accumulate=settings["accumulate"],
        cache=settings["cache"],
    )
    resident = residents(data, device)
    workers, pin = worker_count(settings), device.type == "cuda"
    return batches(data, start=start, end=end, workers=workers, pin=pin, resident=resident)


def batches(
    data: StepBatches,
    *,
    start: int,
    end: int,
    workers: int,
    pin: bool,
    resident: Resident | None = None,
) -> Generator[augment.Batch, None, None]:
    """Batches of the steps [start, end); raises DataError where a sample cannot be read, EquiError
    when a worker has died. resident: the pictures, where cache=device keeps them. Closing it ends
    the workers."""
    loader: DataLoader = DataLoader(
        data,
        batch_size=None,
        sampler=range(start * data.accumulate, end * data.accumulate),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=quiet_worker,
        prefetch_factor=4 if workers else None,
    )
    try:
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch if resident is None else resident.fill(batch)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise EquiError(
            "a process that reads images died: killed, out of memory, or /dev/shm is full; run"
            " again, with fewer workers or workers=0"
        ) from None


def worker_count(settings: dict[str, Any]) -> int:
    """Loader processes of each process: what the recipe says, else a share of the cores."""
    if settings["workers"] is not None:
        return settings["workers"]
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if settings["device"] == "cpu":
        return 1
    return max(1, min(8, cores // max(1, distributed.world_size())))
