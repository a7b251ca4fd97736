"""Pictures for a frozen encoder, from JPEG bytes on, beside Pillow's Resize and CenterCrop.

    python tests/bench/bench_features.py [FOLDER] [--images 300] [--rounds 5]

FOLDER holds JPEGs, at any depth; without it photo-like ones are made (375 × 500, about 110 KB).

Theirs is the usual evaluation transform on PIL images: Resize(256, bicubic), CenterCrop(224),
ToTensor, Normalize; ours gives uint8 crops, which the device normalizes, and in a row of its own
normalized floats too. Bytes are in memory when the clock starts. One thread, CPU time; then through
a loader with two workers and batches of 64, wall time from the second batch to the last. Medians of
interleaved rounds; memory is what a picture takes on its way from a worker.

Last, an evaluation's features of the same pictures by resnet18 with random weights, wall time, the
first time and the second, which reads them from disk.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from equitools import backbones
from equitools.augment.normalize import MEAN, STD
from equitools.features.extract import extract
from equitools.features.transform import Pictures, Transform
from equitools.training.throughput import photo

WORKERS, BATCH = 2, 64
JPEGS = (".jpg", ".jpeg")
OURS = Transform(224, 256, "bicubic", MEAN, STD)
THEIRS = T.Compose(
    [
        T.Resize(256, T.InterpolationMode.BICUBIC),
        T.CenterCrop(224),
        T.ToTensor(),
        T.Normalize(MEAN, STD),
    ]
)
PEER = f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}"


class Files:
    """JPEG bytes in memory, taken in turn: what `Pictures` asks of a split, and PIL's pictures."""

    def __init__(self, data: list[bytes], count: int) -> None:
        self.data, self.keys = data, [str(i) for i in range(count)]

    def image(self, i: int) -> bytes:
        return self.data[i % len(self.data)]

    def where(self, i: int) -> str:
        return f"picture {i}"


class ByPillow(Dataset):
    """The peer."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def __getitem__(self, i: int) -> torch.Tensor:
        return THEIRS(Image.open(io.BytesIO(self.files.image(i))).convert("RGB"))


def per_second(make: Callable[[int], Any], count: int) -> float:
    """Pictures a second of CPU time of this process; none is kept."""
    start = time.process_time()
    for i in range(count):
        make(i)
    return count / (time.process_time() - start)


def loaded_per_second(data: Dataset, count: int) -> float:
    """Pictures a second through workers, from the second batch on: starting them is not counted."""
    loader: DataLoader = DataLoader(
        data, batch_size=BATCH, sampler=range(count), num_workers=WORKERS
    )
    arrived = [time.perf_counter() for _ in loader]
    return (count - BATCH) / (arrived[-1] - arrived[0])


class Labeled(Files):
    """The same as a split of shards, for `features.extract`."""

    def __init__(self, data: list[bytes], count: int) -> None:
        super().__init__(data, count)
        self.labels, self.classes, self.digest = np.arange(count) % 2, ["a", "b"], "sha256:bench"

    def __len__(self) -> int:
        return len(self.keys)


def twice(files: Labeled, rounds: int) -> tuple[float, float, float]:
    """Pictures a second of a first evaluation and of a second one, and MiB on disk."""
    encoder = backbones.create({"name": "resnet18"})
    found: list[list[float]] = [[], []]
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for times in found:
                start = time.perf_counter()
                extract(encoder, files, transform=OURS, batch_size=50, cache=Path(cache))
                times.append(len(files) / (time.perf_counter() - start))
            size = sum(path.stat().st_size for path in Path(cache).rglob("*.safetensors"))
    return statistics.median(found[0]), statistics.median(found[1]), size / 2**20


def rates(files: Files, rounds: int) -> dict[str, float]:
    """Pictures a second of each contender: one thread, then two workers."""
    count = len(files.keys)
    ours, theirs = Pictures(files, OURS), ByPillow(files)
    alone: dict[str, Callable[[int], Any]] = {
        "ours": ours.__getitem__,
        "ours normalized": lambda i: OURS.normalized(ours[i][None]),
        "Pillow": theirs.__getitem__,
    }
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, make in alone.items():
            found.setdefault(name, []).append(per_second(make, count))
        for name, data in (("ours", ours), ("Pillow", theirs)):
            speed = loaded_per_second(data, max(2 * count, 6 * BATCH))
            found.setdefault(f"{name}, {WORKERS} workers", []).append(speed)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Print a line per contender and the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.folder is None:
        data = [photo(seed) for seed in range(64)]
    else:
        paths = sorted(p for p in given.folder.rglob("*") if p.suffix.lower() in JPEGS)
        chosen = np.random.default_rng(0).permutation(len(paths))[: given.images]
        data = [paths[i].read_bytes() for i in chosen]
    rate = rates(Files(data, given.images), given.rounds)
    for name, value in rate.items():
        print(f"{name}: {value:.0f} pictures/s")
    size = 3 * 224 * 224 / 2**20
    rows = [
        ("JPEG to 224 px uint8, normalized on the device", "ours", "Pillow", "2.5", size),
        ("JPEG to 224 px normalized floats, all on the CPU", "ours normalized", "Pillow", "-", 0),
        (
            "the same uint8 through 2 workers, wall time",
            "ours, 2 workers",
            "Pillow, 2 workers",
            "2.5",
            size,
        ),
    ]
    for quantity, ours, theirs, aim, memory in rows:
        a, b = rate[ours], rate[theirs]
        taken = f"{memory or 4 * size:.2f} / {4 * size:.2f} MiB a picture"
        print(
            f"row | evaluation loader: {quantity} | {PEER} Resize + CenterCrop | {a:.0f} | {b:.0f}"
            f" | pictures/s | {a / b:.2f} | {aim} | {taken}"
        )
    first, second, taken = twice(Labeled(data, given.images), min(given.rounds, 3))
    print(
        "row | features of an evaluation (resnet18, 224 px) | the first evaluation of the same"
        f" pictures | {second:.0f} | {first:.0f} | pictures/s | {second / first:.0f} | -"
        f" | {taken:.1f} MiB on disk"
    )


if __name__ == "__main__":
    main()
