"""The features themselves, for other tools: no judgement, only vectors, labels and keys.

The safetensors file has `<split>.features` n d, `<split>.labels` n, and `<split>.keys` n w: UTF-8
bytes padded with zeros, which numpy reads as `array.view(f"S{w}")`. The CSV has one row a sample.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equitools import manifest
from equitools.core.errors import DataError, UsageError
from equitools.features.table import FeatureTable, Outcome, part
from equitools.nn import serialization


def evaluate(
    train: FeatureTable, test: FeatureTable, parts: Sequence[str], slicing: str
) -> Outcome:
    """Write the features of both splits to embeddings.safetensors and embeddings.csv."""
    if len(parts) != 1:
        raise UsageError(f"embed writes one part; probe.parts lists {', '.join(parts)}")
    name = parts[0]
    return Outcome(
        {},
        arrays=arrays(train, name, slicing, "train") | arrays(test, name, slicing, "val"),
        facts={"head": "none", "selection": "none"},
    )


def arrays(table: FeatureTable, name: str, slicing: str, split: str) -> dict[str, Tensor]:
    """The tensors of one split under their names in the file."""
    return {
        f"{split}.features": part(table, name, slicing).cpu().contiguous(),
        f"{split}.labels": table.labels,
        f"{split}.keys": pack_keys(table.keys),
    }


def pack_keys(keys: Sequence[str]) -> Tensor:
    """Strings as uint8 n w, UTF-8 padded with zeros."""
    encoded = np.array([key.encode() for key in keys], dtype=bytes)
    width = max(1, encoded.dtype.itemsize)
    return torch.from_numpy(encoded.view(np.uint8).reshape(len(keys), width).copy())


def unpack_keys(packed: Tensor) -> list[str]:
    """The inverse of `pack_keys`."""
    return [bytes(row).rstrip(b"\0").decode() for row in packed.numpy()]


def write(out: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Entries of embeddings.safetensors and embeddings.csv, written below `out`; none of no
    tensors."""
    if not tensors:
        return {}
    serialization.save_tensors(out / "embeddings.safetensors", tensors)
    write_csv(out / "embeddings.csv", tensors)
    return {
        "embeddings": manifest.entry(out / "embeddings.safetensors"),
        "embeddings.csv": manifest.entry(out / "embeddings.csv"),
    }


def read(document: dict[str, Any], split: str) -> tuple[Tensor, Tensor]:
    """Features n d and labels n of a split that a document's embeddings have; DataError without."""
    entry = (document.get("files") or {}).get("embeddings")
    if entry is None:
        raise DataError("the document has no embeddings; equi-probe embed writes them")
    tensors = serialization.load_tensors(manifest.verify(entry, "embeddings"))
    if f"{split}.features" not in tensors:
        raise UsageError(f"the embeddings have no split '{split}'; say split=train or split=val")
    return tensors[f"{split}.features"], tensors[f"{split}.labels"]


def write_csv(path: Path, tensors: dict[str, Tensor]) -> None:
    """One row a sample: split, key, label, f0, f1, …; floats as short as they round-trip."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}~")
    splits = [name.removesuffix(".keys") for name in tensors if name.endswith(".keys")]
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            width = tensors[f"{splits[0]}.features"].shape[1]
            writer.writerow(["split", "key", "label", *(f"f{i}" for i in range(width))])
            for split in splits:
                keys = unpack_keys(tensors[f"{split}.keys"])
                labels = tensors[f"{split}.labels"].tolist()
                rows = tensors[f"{split}.features"].cpu().numpy()
                for key, label, row in zip(keys, labels, rows, strict=True):
                    writer.writerow([split, key, label, *map(str, row)])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
