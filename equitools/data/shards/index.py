"""Shards as one indexed sequence of samples.

Pictures are read with `pread` at known offsets, so any sample is one system call away, in any
process. Shards of other make and shards behind URLs read the same.
"""

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from equitools.core import distributed
from equitools.core.errors import DataError
from equitools.data.shards import remote, table
from equitools.data.shards.table import SampleTable
from equitools.data.shards.tar import set_digest, sha256
from equitools.manifest import files

# Up to this size digests are checked when shards are opened; above, sizes are.
VERIFY_BYTES = 4 << 30
_OPEN_FILES = 256


class ShardIndex:
    """The samples of one split.

    labels      n int64, -1 for none
    keys        n strings, unique within the split
    classes     the class names in the order of the labels, or None when nobody said
    class_count how many there are, by the names or else the manifest; None when nobody said
    counts      samples of each shard
    digest      of the set: sha256 of its sorted `sha256 name` lines
    unverified  True when only sizes were checked, because the set is large
    """

    def __init__(
        self, paths: list[Path], classes: list[str] | None = None, known: SampleTable | None = None
    ) -> None:
        """known: where the samples lie; read from the tar headers when it is not given."""
        self.paths, self.classes, self.digest, self.unverified = paths, classes, "", True
        self.class_count = None if classes is None else len(classes)
        samples = table.read(paths) if known is None else known
        self.counts, self.keys = samples.counts, samples.keys
        self._shard = np.repeat(np.arange(len(paths), dtype=np.int32), self.counts)
        self._image, self._info = samples.rows[:, 0:2].copy(), samples.rows[:, 2:4].copy()
        self.labels = samples.rows[:, 4].copy()
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

    def fetch(self, samples: Iterable[int]) -> None:
        """Ask the system to read these pictures meanwhile, all at once, for `image` to find."""
        if not hasattr(os, "posix_fadvise"):
            return
        for i in samples:
            offset, size = self._image[i].tolist()
            # What is wrong with a shard is said when it is read.
            with suppress(OSError), self._opened(int(self._shard[i])) as descriptor:
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def where(self, i: int) -> str:
        """Sample i in words: its key and shard."""
        return f"sample '{self.keys[i]}' of {self.paths[int(self._shard[i])]}"

    def _read(self, shard: int, offset: int, size: int, i: int) -> bytes:
        try:
            with self._opened(shard) as descriptor:
                data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise DataError(f"cannot read {self.where(i)}: {error.strerror}") from error
        if len(data) != size:
            raise DataError(f"{self.paths[shard]} is truncated before {self.where(i)}")
        return data

    @contextmanager
    def _opened(self, shard: int) -> Iterator[int]:
        """An open shard; the first few stay open, since `pread` may share a descriptor."""
        descriptor = self._open.get(shard)
        if descriptor is None:
            descriptor = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) < _OPEN_FILES:
                self._open.setdefault(shard, descriptor)
        try:
            yield descriptor
        finally:
            if self._open.get(shard) != descriptor:  # too many, or another thread was first
                os.close(descriptor)


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
    samples = table.load(paths, split, entry.get("digest"))
    index = ShardIndex(paths, info.get("all_classes"), samples)
    index.class_count = entry.get("classes")
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
    way = "equi-shard SOURCE -o DIR makes one"
    if split == "val":
        way = "equi-shard makes one from a val/ folder beside train/, or with holdout=0.1"
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
    stated = entry.get("digest")
    if stated is None or total > VERIFY_BYTES or not distributed.is_main():
        return False
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(sha256, paths))
    digest = set_digest(zip((path.name for path in paths), sums, strict=True))
    if digest != stated:
        odd = _first_odd(paths, info, "sha256", sums)
        raise DataError(f"{name} has changed: it is {digest}, its manifest says {stated}{odd}")
    return True


def _first_odd(paths: list[Path], info: dict[str, Any], what: str, actual: list) -> str:
    """The first shard that `_info.json` knows otherwise, to be named."""
    for path, expected, value in zip(paths, info.get(what, []), actual, strict=False):
        if expected != value:
            return f"; {path} is not what it was"
    return ""
