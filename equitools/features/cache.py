"""Features on disk in blocks: what was computed once is read, and a killed run goes on.

A folder's name is a hash of everything that was asked (weights, transform, layers, data, limit);
block k in it holds rows [1024 k, 1024 (k + 1)). A block is written whole or not at all and follows
from its name, so processes that write the same one do no harm. Any of it may be deleted.
encoders.features_folder says where.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equitools import __version__
from equitools.core.errors import DataError
from equitools.nn import serialization

BLOCK = 1024
log = logging.getLogger(__name__)


class Blocks:
    """`features` n d of one table, filled with the blocks that lie below `cache`; without a cache
    nothing is read or written.

    key: what the features depend on, as JSON has it. missing: the numbers of the blocks that are
    still to be computed, in order. read: how many rows were on disk.
    """

    def __init__(self, cache: Path | None, key: Any, count: int, width: int) -> None:
        self.folder = None if cache is None else cache / _name(key)
        self.features, self.read = torch.empty(count, width), 0
        numbers = range(-(-count // BLOCK))
        self.missing = [number for number in numbers if not self._read(number)]

    def rows(self, number: int) -> range:
        """Which rows a block has."""
        return range(number * BLOCK, min((number + 1) * BLOCK, len(self.features)))

    def keep(self, number: int, features: Tensor) -> None:
        """Take the rows of a block, and write them down."""
        rows = self.rows(number)
        self.features[rows.start : rows.stop] = features
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            serialization.save_tensors(self._path(number), {"features": features})

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:05d}.safetensors"

    def _read(self, number: int) -> bool:
        """Fill in a block that is on disk; False where there is none."""
        if self.folder is None or not self._path(number).exists():
            return False
        rows, path = self.rows(number), self._path(number)
        features = serialization.load_tensors(path).get("features", torch.empty(0))
        if features.shape != (len(rows), self.features.shape[1]):
            raise DataError(f"{path} is not what was written there; remove it")
        self.features[rows.start : rows.stop] = features
        self.read += len(rows)
        return True


class Single:
    """Tensors of pictures that make no table, a file for each; without a cache nothing is read or
    written. key: what they depend on beside the picture, as JSON has it."""

    def __init__(self, cache: Path | None, key: Any, kind: str) -> None:
        self.folder = None if cache is None else cache / _name(key, kind)
        self._reported = False

    def has(self, name: str) -> bool:
        """Is the tensor of a name on disk?"""
        return self.folder is not None and (self.folder / f"{name}.safetensors").exists()

    def __call__(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of a name, from disk or computed; the first that is read is told of."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}.safetensors"
        if self.has(name):
            if not self._reported:
                log.info("what is known already is read from %s", self.folder)
            self._reported = True
            return serialization.load_tensors(path)["features"]
        tensor = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        serialization.save_tensors(path, {"features": tensor})
        return tensor


def _name(key: Any, kind: str = "features") -> str:
    text = json.dumps([__version__, key])
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
