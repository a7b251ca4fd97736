"""Shards as one indexed sequence of samples, and the order in which an endless run visits them.

A shard is indexed by its tar headers; pictures are then read with `pread` at known offsets, so any
sample is one system call away, in any process. Shards of other make and shards behind URLs read
the same. The order is a pure function of (seed, epoch): not of workers, processes, or what was
read before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from equitools import files, parallel, remote, tars
from equitools.errors import DataError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff")
# Up to this size digests are checked when shards are opened; above, sizes are.
VERIFY_BYTES = 4 << 30
# Samples are shuffled within this many shards, so that a disk reads within a bounded region.
WINDOW = 64
_OPEN_FILES = 256


class Strings(Sequence):
    """Many strings in one block of bytes: no objects to count or copy in forked workers."""

    def __init__(self, strings: list[str]) -> None:
        encoded = [os.fsencode(text) for text in strings]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return os.fsdecode(self._bytes[self._ends[i] : self._ends[i + 1]])


class ShardIndex:
    """The samples of one split.

    labels      n int64, -1 for none
    keys        n strings, unique within the split
    classes     the class names in the order of the labels, or None when nobody said
    counts      samples of each shard
    digest      of the set: sha256 of its sorted `sha256 name` lines
    unverified  True when only sizes were checked, because the set is large
    """

    def __init__(self, paths: list[Path], classes: list[str] | None = None) -> None:
        self.paths, self.classes, self.digest, self.unverified = paths, classes, "", True
        tables = [_table(path) for path in paths]
        self.counts = tuple(len(keys) for keys, _ in tables)
        self.keys = Strings([key for keys, _ in tables for key in keys])
        columns = np.concatenate([numbers for _, numbers in tables])
        self._shard = np.repeat(np.arange(len(paths), dtype=np.int32), self.counts)
        self._image, self._info = columns[:, 0:2].copy(), columns[:, 2:4].copy()
        self.labels = columns[:, 4].copy()
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)

    def image(self, i: int) -> bytes:
        """The encoded picture of sample i. Raises DataError when the shard ends before it."""
        offset, size = self._image[i].tolist()
        return self._read(int(self._shard[i]), offset, size, i)

    def info(self, i: int) -> dict[str, Any]:
        """The JSON of sample i; empty when it has none."""
        offset, size = self._info[i].tolist()
        if size == 0:
            return {}
        try:
            return json.loads(self._read(int(self._shard[i]), offset, size, i))
        except ValueError as error:
            raise DataError(f"the JSON of {self.where(i)} is damaged: {error}") from error

    def where(self, i: int) -> str:
        """Sample i in words: its key and shard."""
        return f"sample '{self.keys[i]}' of {self.paths[int(self._shard[i])]}"

    def _read(self, shard: int, offset: int, size: int, i: int) -> bytes:
        try:
            descriptor = self._descriptor(shard)
            try:
                data = os.pread(descriptor, size, offset)
            finally:
                if self._open.get(shard) != descriptor:
                    os.close(descriptor)
        except OSError as error:
            raise DataError(f"cannot read {self.where(i)}: {error.strerror}") from error
        if len(data) != size:
            raise DataError(f"{self.paths[shard]} is truncated before {self.where(i)}")
        return data

    def _descriptor(self, shard: int) -> int:
        """An open shard; kept open for the first few, since `pread` may share a descriptor."""
        if shard in self._open:
            return self._open[shard]
        descriptor = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        if len(self._open) < _OPEN_FILES:
            kept = self._open.setdefault(shard, descriptor)
            if kept != descriptor:  # another thread was first
                os.close(descriptor)
            return kept
        return descriptor


def _table(path: Path) -> tuple[list[str], np.ndarray]:
    """Keys and (image offset, size, JSON offset, size, label) of each sample of one shard."""
    keys: list[str] = []
    rows: list[list[int]] = []
    with path.open("rb", buffering=0) as file:
        for name, offset, size in tars.walk(path):
            folder, slash, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            if not stem or (stem.startswith("__") and stem.endswith("__")):
                continue
            key, extension = folder + slash + stem, extension.lower()
            if not keys or keys[-1] != key:
                keys.append(key)
                rows.append([-1, 0, 0, 0, -1])
            row = rows[-1]
            if extension in IMAGE_EXTENSIONS:
                row[0:2] = offset, size
            elif extension == "json":
                row[2:4] = offset, size
            elif extension == "cls":
                row[4] = _label(os.pread(file.fileno(), size, offset), path, key)
    for key, row in zip(keys, rows, strict=True):
        if row[0] < 0:
            raise DataError(
                f"sample '{key}' of {path} has no image ({', '.join(IMAGE_EXTENSIONS)})"
            )
    return keys, np.array(rows, np.int64).reshape(-1, 5)


def _label(text: bytes, path: Path, key: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(
            f"the label of sample '{key}' of {path} is no number: {text[:20]!r}"
        ) from None


# --- Opening ---------------------------------------------------------------------------------


def open_split(document: dict[str, Any], split: str) -> ShardIndex:
    """Index the shards of a manifest's split ("train", "val").

    Digests are checked on the main process when the set is ≤ 4 GiB, else sizes (`unverified`).
    Raises DataError when the split is missing, a shard is missing, truncated or not what the
    manifest says, or a member points outside.
    """
    name = f"shards.{split}"
    entry = (document.get("files") or {}).get(name)
    if entry is None:
        raise DataError(missing_split(document, split))
    paths = locate(entry, name)
    info = _read_info(paths[0].parent, split)
    verified = _verify(entry, name, paths, info)
    index = ShardIndex(paths, info.get("all_classes"))
    index.digest, index.unverified = entry.get("digest", ""), not verified
    if len(index) == 0:
        raise DataError(f"{name} holds zero samples ({entry['path']})")
    if len(index) != entry.get("samples", len(index)):
        raise DataError(f"{name} holds {len(index)} samples; its manifest says {entry['samples']}")
    return index


def missing_split(document: dict[str, Any], split: str) -> str:
    """What to say when a split is needed and not there."""
    splits = [name for name in document.get("files") or {} if name.startswith("shards.")]
    has = f"the manifest has {', '.join(splits)}" if splits else "the manifest names no shards"
    way = (
        "equi-shard makes one from a val/ folder beside train/, or with holdout=0.1"
        if split == "val"
        else "equi-shard SOURCE -o DIR makes one"
    )
    return f"a {split} split is needed, and {has}; {way}"


def locate(entry: dict[str, Any], name: str) -> list[Path]:
    """The local paths of every shard of an entry, URLs fetched; DataError for one that lacks."""
    pattern = str(entry.get("path", ""))
    if remote.is_url(pattern):
        paths = [remote.fetch(url) for url in files.expand(pattern)]
    else:
        paths = [Path(path) for path in files.expand(str(files.locate(entry, name)))]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{name}: no shard {path}")
    return paths


def _read_info(folder: Path, split: str) -> dict[str, Any]:
    """What `_info.json` beside the shards says of a split, and all classes; {} without one."""
    try:
        info = json.loads((folder / "_info.json").read_text())
        return {**info.get("splits", {}).get(split, {}), "all_classes": info.get("classes")}
    except (OSError, ValueError, AttributeError):
        return {}


def _verify(entry: dict[str, Any], name: str, paths: list[Path], info: dict[str, Any]) -> bool:
    """Compare with the manifest: sizes always, digests where that is quick; True if the latter."""
    total = sum(path.stat().st_size for path in paths)
    if total != entry.get("bytes", total):
        odd = _first_odd(paths, info, "bytes", [path.stat().st_size for path in paths])
        raise DataError(f"{name} has {total} bytes; its manifest says {entry['bytes']}{odd}")
    said = entry.get("digest")
    if said is None or total > VERIFY_BYTES or not parallel.is_main():
        return False
    sums = [tars.sha256(path) for path in paths]
    found = tars.set_digest(zip((path.name for path in paths), sums, strict=True))
    if found != said:
        odd = _first_odd(paths, info, "sha256", sums)
        raise DataError(f"{name} has changed: it is {found}, its manifest says {said}{odd}")
    return True


def _first_odd(paths: list[Path], info: dict[str, Any], what: str, found: list) -> str:
    """The first shard that `_info.json` knows otherwise, to be named."""
    said = info.get(what, [])
    for path, expected, value in zip(paths, said, found, strict=False):
        if expected != value:
            return f"; {path} is not what it was"
    return ""


# --- Order -----------------------------------------------------------------------------------


def positions(
    index: Any, seed: int, start: int, count: int, window: int = WINDOW
) -> list[tuple[int, int]]:
    """(epoch, sample) at the global positions start … start + count of the endless joined order.

    Every epoch visits each sample once; epochs join without a drop. `window` is the number of
    shards within which samples are shuffled.
    """
    epoch, first = divmod(start, len(index))
    found: list[tuple[int, int]] = []
    while len(found) < count:
        order = _epoch_order(index.counts, seed, epoch, window)
        taken = order[first : first + count - len(found)]
        found += [(epoch, i) for i in taken.tolist()]
        epoch, first = epoch + 1, 0
    return found


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
