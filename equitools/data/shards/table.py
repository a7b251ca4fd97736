"""Where the samples of a set of shards lie: n rows of (image offset and size, JSON offset and size,
label) with n keys, from the tar headers or from a file beside the shards.

Reading headers costs a seek for each sample, at every start; `equi-shard` therefore leaves what it
knows as `<split>.index.npz`, arrays in a zip with checksums. It is believed only where the digests
in it make up that of the manifest and the shards have its sizes; without it headers are read.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equitools.core import files
from equitools.core.errors import DataError
from equitools.data.shards import tar
from equitools.data.shards.tar import set_digest

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff")


class Strings(Sequence):
    """Many strings in one block of bytes: no objects to count or copy in forked workers."""

    def __init__(self, strings: list[str]) -> None:
        encoded = [os.fsencode(text) for text in strings]
        self.ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.bytes = b"".join(encoded)

    @classmethod
    def from_arrays(cls, ends: np.ndarray, data: np.ndarray) -> Strings:
        """From the arrays of a file. Raises ValueError when they do not fit."""
        if len(ends) < 1 or ends[0] != 0 or ends[-1] != len(data) or (np.diff(ends) < 0).any():
            raise ValueError("not the ends of strings")
        made = cls([])
        made.ends, made.bytes = ends, data.tobytes()
        return made

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return os.fsdecode(self.bytes[self.ends[i] : self.ends[i + 1]])


@dataclass
class SampleTable:
    """Samples of some shards in order: keys, rows (n 5 int64), and how many each shard has.

    A row is (image offset, size, JSON offset, size, label); size 0 is no JSON, label -1 is none.
    """

    keys: Strings
    rows: np.ndarray
    counts: tuple[int, ...]


def read(paths: list[Path]) -> SampleTable:
    """The table of shards from their tar headers. Raises DataError naming what is wrong."""
    parts = [_read_one(path) for path in paths]
    keys = Strings([key for keys, _ in parts for key in keys])
    return SampleTable(keys, np.concatenate([r for _, r in parts]), tuple(len(k) for k, _ in parts))


def _read_one(path: Path) -> tuple[list[str], np.ndarray]:
    """Keys and rows of one shard."""
    keys: list[str] = []
    rows: list[list[int]] = []
    with path.open("rb", buffering=0) as file:
        for name, offset, size in tar.walk(path):
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
            kinds = ", ".join(IMAGE_EXTENSIONS)
            raise DataError(f"sample '{key}' of {path} has no image ({kinds})")
    return keys, np.array(rows, np.int64).reshape(-1, 5)


def _label(text: bytes, path: Path, key: str) -> int:
    try:
        return int(text)
    except ValueError:
        what = f"the label of sample '{key}' of {path}"
        raise DataError(f"{what} is no number: {text[:20]!r}") from None


def save(folder: Path, split: str, table: SampleTable, shards: list[tuple[str, int, str]]) -> None:
    """Write the table of shards, each (name, bytes, hex sha256), beside them."""
    names, sizes, sums = zip(*shards, strict=True)
    arrays: dict[str, Any] = {
        "names": np.array(names),
        "bytes": np.array(sizes, np.int64),
        "sha256": np.array(sums),
        "counts": np.array(table.counts, np.int64),
        "rows": table.rows,
        "ends": table.keys.ends,
        "keys": np.frombuffer(table.keys.bytes, np.uint8),
    }
    np.savez(file := io.BytesIO(), **arrays)
    files.write_atomic(folder / f"{split}.index.npz", file.getvalue())


def load(paths: list[Path], split: str, digest: str | None) -> SampleTable | None:
    """The table beside the shards if it is of these very shards, else None."""
    try:
        with np.load(paths[0].parent / f"{split}.index.npz", allow_pickle=False) as saved:
            names, sizes = saved["names"].tolist(), saved["bytes"]
            pairs = zip(names, saved["sha256"].tolist(), strict=True)
            if names != [path.name for path in paths] or set_digest(pairs) != digest:
                return None
            if sizes.tolist() != [path.stat().st_size for path in paths]:
                return None
            keys, rows = Strings.from_arrays(saved["ends"], saved["keys"]), saved["rows"]
            return _fitting(SampleTable(keys, rows, tuple(saved["counts"].tolist())), sizes)
    except Exception:  # whatever is wrong with it, the headers are there
        return None


def _fitting(table: SampleTable, sizes: np.ndarray) -> SampleTable | None:
    """The table, unless its parts differ in length or a row points beyond its shard."""
    rows = table.rows
    if rows.shape != (len(table.keys), 5) or sum(table.counts) != len(rows):
        return None
    ends = np.repeat(sizes, table.counts)
    inside = [(rows[:, i] >= 0) & (rows[:, i] + rows[:, i + 1] <= ends) for i in (0, 2)]
    return table if bool((inside[0] & inside[1]).all()) else None
