"""The loader: every picture once, in the stated order, whatever it is and whatever goes wrong."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import encoded, photo
from PIL import Image

from equitools import augment
from equitools.core.errors import DataError, EquiError, UsageError
from equitools.data import cache, images
from equitools.data.shards import packing
from equitools.data.shards.index import ShardIndex, open_split
from equitools.data.shards.inventory import finish
from equitools.data.shards.order import positions
from equitools.data.shards.pool import write_all
from equitools.data.sources.folder import folder
from equitools.training import loader

BATCH = 4
PLAN = augment.plan({"global": {"size": 12}, "local": {"size": 8, "count": 2}})


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


DEEP = np.full((9, 11), 40_000, np.uint16)
ODD: dict[str, bytes] = {
    "cmyk.jpg": encoded("JPEG", "CMYK"),
    "gray.jpg": encoded("JPEG", "L"),
    "palette.png": encoded("PNG", "P"),
    "bits.png": encoded("PNG", "1"),
    "alpha.png": encoded("PNG", "RGBA"),
    "deep.png": png(DEEP),
    "dot.png": png(np.zeros((1, 1, 3), np.uint8)),
    "tall.png": png(np.asarray(photo(size=(2, 900)))),
    "wide.png": png(np.asarray(photo(size=(900, 2)))),
    **{f"photo{i}.jpg": encoded(seed=i) for i in range(7)},
}


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    """Shards of 16 pictures, nine of them odd, two shards."""
    (tmp_path / "set").mkdir()
    for name, data in ODD.items():
        (tmp_path / "set" / name).write_bytes(data)
    source = folder(tmp_path / "set", None, ".", None)
    (tmp_path / "out").mkdir()
    jobs = packing.plan(
        source,
        tmp_path / "out",
        seed=0,
        samples_per_shard=8,
        megabytes_per_shard=500,
        verify=False,
        min_side=1,
        crop=1,
    )
    written = write_all(jobs, 1, lambda n: None)
    return open_split({"files": finish(tmp_path / "out", written, None)}, "train")


def stepped(index: Any, **changes: Any) -> loader.StepBatches:
    knobs: dict[str, Any] = {"seed": 3, "batch": BATCH, "ranks": 1, "rank": 0, "accumulate": 1}
    return loader.StepBatches(index, PLAN, **knobs | changes)


def drained(data: loader.StepBatches, workers: int = 0, end: int = 8) -> list[Any]:
    return list(loader.batches(data, start=0, end=end, workers=workers, pin=False))


def same(first: Any, second: Any) -> bool:
    """Are two trees of tensors equal?"""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    return torch.equal(first, second)


def test_whatever_is_a_picture_becomes_views(index: ShardIndex) -> None:
    for batch in drained(stepped(index), end=4):
        assert batch["12"]["crops"].shape == (2, BATCH, 3, 12, 12)
        assert batch["8"]["crops"].shape == (2, BATCH, 3, 8, 8)
        assert batch["12"]["crops"].dtype == torch.uint8


def test_a_batch_holds_the_samples_of_its_positions(index: ShardIndex) -> None:
    """Ranks and micro-batches divide a step; two epochs join without a drop."""
    halves = [stepped(index, batch=8, ranks=2, rank=rank, accumulate=2) for rank in (0, 1)]
    for number in range(8):
        for rank, half in enumerate(halves):
            step, micro = divmod(number, 2)
            place = step * 8 + (2 * rank + micro) * 2
            members = positions(index, 3, place, 2)
            expected = augment.collate(
                [
                    PLAN.sample(images.decode(index.image(i), "x"), index.keys[i], 3, epoch)
                    for epoch, i in members
                ]
            )
            assert same(half[number], expected)


def test_a_picture_is_decoded_once_a_visit(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, decode = [], images.decode

    def counted(data: bytes, where: str) -> np.ndarray:
        calls.append(where)
        return decode(data, where)

    monkeypatch.setattr(images, "decode", counted)
    drained(stepped(index), end=4)
    assert len(calls) == len(set(calls)) == 16
    drained(stepped(index, cache="memory"), end=12)
    assert len(calls) == 2 * 16, "three epochs, each picture once"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_no_view(index: ShardIndex, workers: int) -> None:
    plain = drained(stepped(index))
    cached = stepped(index, cache="memory")
    for _ in range(2):
        assert all(map(same, drained(cached, workers), plain))
    assert cached.decoded is not None
    assert cached.decoded.missing(list(range(16))) == [], "workers fill the block of their parent"


def test_a_cache_that_would_not_fit_is_refused(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(images.decode(index.image(i), "x").nbytes for i in range(16))
    monkeypatch.setattr(cache, "free_memory", lambda: 2 * size)
    stepped(index, cache="memory")
    with pytest.raises(UsageError, match=r"cache=memory would keep .* 16 .*cache=none"):
        stepped(index, cache="memory", ranks=2)
    monkeypatch.setattr(cache, "free_memory", lambda: 2 * size - 1)
    with pytest.raises(UsageError, match="half of"):
        stepped(index, cache="memory")


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_on_the_device_give_the_same_views(index: Any, workers: int) -> None:
    """Parameters to the bit; crops within two levels, whatever the size of the picture."""
    data = stepped(index, cache="device")
    resident = loader.residents(data, torch.device("cpu"))
    batches = list(
        loader.batches(data, start=0, end=4, workers=workers, pin=False, resident=resident)
    )
    for ours, theirs in zip(batches, drained(stepped(index), end=4), strict=True):
        for size, part in theirs.items():
            assert same(ours[size]["parameters"], part["parameters"])
            apart = (ours[size]["crops"].int() - part["crops"].int()).abs()
            assert apart.max() <= 2
            assert apart.float().mean() < 0.05


def test_pictures_that_would_not_fit_on_the_device_are_refused(
    index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "free_memory", lambda: 1000)
    with pytest.raises(UsageError, match=r"cache=device would keep .* 900×900 px"):
        loader.residents(stepped(index, cache="device"), torch.device("cpu"))


def test_a_worker_has_nothing_to_apply_to_when_pictures_are_on_the_device(index: Any) -> None:
    plan = augment.plan({**PLAN.settings, "apply": "worker"})
    with pytest.raises(UsageError, match=r"views\.apply=device"):
        loader.shapes(index, plan)


def test_some_memory_is_free() -> None:
    assert 1 << 20 < cache.free_memory() < 1 << 50


# --- Order -----------------------------------------------------------------------------------


class Sizes:
    """What `positions` needs of an index."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts

    def __len__(self) -> int:
        return sum(self.counts)


def test_every_epoch_visits_each_sample_once_and_epochs_join() -> None:
    index = Sizes(5, 3, 4)
    found = positions(index, 7, 0, 36)
    assert [epoch for epoch, _ in found] == [0] * 12 + [1] * 12 + [2] * 12
    orders = [tuple(i for _, i in found[e * 12 : e * 12 + 12]) for e in range(3)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len(set(orders)) == 3
    assert found != positions(index, 8, 0, 36)


def test_the_order_does_not_depend_on_how_it_is_asked_for() -> None:
    index = Sizes(50, 30, 41)
    whole = positions(index, 0, 0, 300)
    for share in (1, 7, 64):
        parts = [positions(index, 0, i, min(share, 300 - i)) for i in range(0, 300, share)]
        assert [pair for part in parts for pair in part] == whole


def test_samples_are_shuffled_within_windows_of_shards() -> None:
    index = Sizes(*[10] * 6)
    order = [i for _, i in positions(index, 3, 0, 60, window=2)]
    for first in range(0, 60, 20):
        assert len({i // 10 for i in order[first : first + 20]}) == 2
    assert len({i // 10 for _, i in positions(index, 3, 0, 20)}) > 2


def test_the_order_is_what_it_was_when_it_was_written_down() -> None:
    found = [i for _, i in positions(Sizes(4, 4), 5, 0, 8)]
    assert found == [5, 6, 2, 1, 3, 4, 0, 7], "a resumed run would go on in another order"


# --- What goes wrong -------------------------------------------------------------------------


class Failing:
    """An index of which the n-th picture of a process is not read but `fail` is called."""

    def __init__(self, index: ShardIndex, n: int, fail: Callable[[], None]) -> None:
        self._index, self._left, self._fail = index, n, fail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def __len__(self) -> int:
        return len(self._index)

    def image(self, i: int) -> bytes:
        self._left -= 1
        if self._left == 0:
            self._fail()
        return self._index.image(i)


def test_a_worker_that_is_killed_is_one_line(index: ShardIndex) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(EquiError, match=r"a process that reads images died.*workers=0"):
        drained(stepped(Failing(index, 6, die)), workers=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_ends_during_a_run_is_named(index: ShardIndex, workers: int) -> None:
    stream = loader.batches(stepped(index), start=0, end=1000, workers=workers, pin=False)
    next(stream)
    for path in index.paths:
        os.truncate(path, 512)
    with pytest.raises(DataError, match=r"train-00000\d\.tar is truncated before sample '\w+'"):
        list(stream)


def test_a_shard_that_vanishes_before_it_is_read_is_named(index: ShardIndex) -> None:
    index.paths[1].unlink()
    with pytest.raises(DataError, match=r"cannot read sample .*train-000001\.tar: No such file"):
        drained(stepped(index))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_broke_is_named(index: ShardIndex, workers: int) -> None:
    offset = int(index._image[5][0])
    path = index.paths[int(index._shard[5])]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(100))
    with pytest.raises(DataError, match=f"cannot decode sample '{index.keys[5]}' of {path}"):
        drained(stepped(index), workers)
