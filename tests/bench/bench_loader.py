"""From JPEGs to batches in the training process, beside DINO's published augmentation; and reading
shards without decoding, beside webdataset.

    python tests/bench/bench_loader.py [FOLDER] [--images 768] [--rounds 3]

FOLDER holds JPEGs, at any depth; without it photo-like ones are made (375 × 500, about 110 KB).

Loading: 2 global crops of 224 px and 8 local ones of 96 px of each picture, two workers, batches of
64, wall time from the second batch to the last. Theirs is the multi-crop that Caron et al. (2021,
"DINO") describe, with the colors of Grill et al. (2020, "BYOL"), written with torchvision on PIL
images, which gives normalized fp32 tensors; ours gives uint8 crops with their parameters, for the
device to finish. Memory is of one worker, what nobody shares with it.

Reading: every sample once, hot, one thread, CPU time, opening included (digests are not checked, as
webdataset does not): the picture's bytes and the label. Theirs reads the tars that its ShardWriter
has written of the same samples.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import webdataset
from bench_augment import FULL, reference
from held import peak
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T

from equitools import augment
from equitools.data.shards import packing, table
from equitools.data.shards.index import ShardIndex, locate, open_split
from equitools.data.shards.inventory import finish
from equitools.data.shards.order import positions
from equitools.data.shards.pool import write_all
from equitools.data.sources import folder as sources_folder
from equitools.training import loader
from equitools.training.throughput import photo

WORKERS, BATCH = 2, 64
BICUBIC = T.InterpolationMode.BICUBIC


def main() -> None:
    """Print a line per contender and the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        folder = (given.folder or make_photos(base / "photos", 64)).resolve()
        paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in JPEGS]
        loading(Samples(base, paths, given.images), given.rounds)
        reading(Samples(base, paths, 4 * given.images), given.rounds)


JPEGS = (".jpg", ".jpeg")


def make_photos(folder: Path, count: int) -> Path:
    """Made pictures that take about the bytes of a photograph."""
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:04d}.jpg").write_bytes(photo(i))
    return folder


class Samples:
    """So many samples, taking the files in turn: as files, as our shards, and as webdataset's."""

    def __init__(self, base: Path, paths: list[Path], count: int) -> None:
        self.base = base / str(count)
        files = [paths[i % len(paths)] for i in range(count)]
        self.links = self.base / "files"
        for i, path in enumerate(files):
            link = self.links / f"class{i % 10}" / f"{i:06d}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link) if _same_disk(path, base) else link.write_bytes(path.read_bytes())
        self.document = self._pack()
        self.theirs = self._write_theirs()

    def _pack(self) -> dict[str, Any]:
        out = self.base / "ours"
        out.mkdir()
        source = sources_folder.folder(self.links, None, ".", None)
        jobs = packing.plan(
            source,
            out,
            seed=0,
            samples_per_shard=1000,
            megabytes_per_shard=500,
            verify=False,
            min_side=8,
            crop=224,
        )
        written = write_all(jobs, 1, lambda n: None)
        return {"files": finish(out, written, source.classes)}

    def _write_theirs(self) -> list[str]:
        index = open_split(self.document, "train")
        pattern = str(self.base / "theirs-%06d.tar")
        with webdataset.ShardWriter(pattern, maxcount=1000, verbose=0) as writer:
            for i in range(len(index)):
                sample = {"__key__": index.keys[i], "cls": int(index.labels[i])}
                writer.write(sample | {"json": index.info(i), "jpg": index.image(i)})
        return sorted(map(str, self.base.glob("theirs-*.tar")))


def _same_disk(path: Path, base: Path) -> bool:
    return os.access(path, os.W_OK) and path.stat().st_dev == base.stat().st_dev


# --- Loading ---------------------------------------------------------------------------------


def loading(samples: Samples, rounds: int) -> None:
    """Pictures a second of both loaders, in turn, and a worker's memory."""
    files = sorted(samples.links.rglob("*.jpg"))
    index = open_split(samples.document, "train")
    plan = augment.plan(FULL)
    data = loader.StepBatches(index, plan, seed=0, batch=BATCH, ranks=1, rank=0, accumulate=1)
    steps = len(files) // BATCH
    contenders: dict[str, Callable[[], Iterator[Any]]] = {
        "theirs": lambda: iter(
            DataLoader(Files(files), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
        ),
        "ours": lambda: loader.batches(data, start=0, end=steps, workers=WORKERS, pin=False),
    }
    rate: dict[str, list[float]] = {name: [] for name in contenders}
    memory: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, start in contenders.items():
            before = sum(os.times()[:4])  # of workers that have ended, too
            speed, taken = drain(start())
            spent[name].append((sum(os.times()[:4]) - before) / (steps * BATCH))
            rate[name].append(speed)
            memory[name].append(taken)
    ours, theirs = (statistics.median(rate[name]) for name in ("ours", "theirs"))
    mine, its = (max(memory[name])[0] for name in ("ours", "theirs"))
    for name, found in rate.items():
        own, resident = max(memory[name])
        print(
            f"loading  {name:7} {statistics.median(found):8.1f} images/s"
            f" (rounds {', '.join(f'{value:.0f}' for value in found)}),"
            f" {statistics.median(spent[name]) * 1e3:.2f} ms of CPU an image;"
            f" a worker: {own:.0f} MiB its own, {resident:.0f} MiB resident"
        )
    row(
        "2×224 + 8×96 from JPEG, 2 workers",
        f"DINO's multi-crop, torchvision {_v('torchvision')} on Pillow {_v('pillow')}",
        ours,
        theirs,
        "images/s",
        6,
        f"{mine:.0f} / {its:.0f} MiB",
    )


def drain(batches: Iterator[Any]) -> tuple[float, tuple[float, float]]:
    """Pictures a second from the second batch on, and a worker's memory at that time."""
    next(batches)
    began, count, taken = time.perf_counter(), 0, (0.0, 0.0)
    for _ in batches:
        count += 1
        if count == 2:
            taken = max(map(memory_of, children()), default=taken)
    return count * BATCH / (time.perf_counter() - began), taken


def children() -> list[int]:
    """Processes that this one has started and that run."""
    return [
        int(n) for n in Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
    ]


def memory_of(process: int) -> tuple[float, float]:
    """MiB of a process that nobody shares, and all that are resident."""
    found = {"Private": 0, "Rss": 0}
    for line in Path("/proc", str(process), "smaps_rollup").read_text().splitlines():
        for kind in found:
            if line.startswith(kind):
                found[kind] += int(line.split()[1])
    return found["Private"] / 1024, found["Rss"] / 1024


class Files(torch.utils.data.Dataset):
    """Pictures in files, as the views of the published augmentation."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.views = reference(augment.plan(FULL))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        with self.files[i].open("rb") as file:
            picture = Image.open(file).convert("RGB")
        return [view(picture) for view in self.views]


# --- Reading ---------------------------------------------------------------------------------


def reading(samples: Samples, rounds: int) -> None:
    """Microseconds a sample of reading without decoding, in turn."""
    ours = sorted(str(path) for path in (samples.base / "ours").glob("*.tar"))
    theirs = {"files": {"shards.train": {"path": _pattern(samples.theirs)}}}
    contenders: dict[str, Callable[[], int]] = {
        "wds": lambda: with_webdataset(samples.theirs),
        "ours": lambda: with_index(samples.document),
        "wds on ours": lambda: with_webdataset(ours),
        "ours on wds": lambda: with_index(theirs),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    counts = set()
    for _ in range(rounds):
        for name, work in contenders.items():
            began = time.process_time()
            counts.add(count := work())
            times[name].append((time.process_time() - began) / count)
    assert len(counts) == 1, "every contender reads every sample"
    speed = {name: 1 / statistics.median(found) for name, found in times.items()}
    held = {name: peak(work) for name, work in contenders.items()}
    for name, value in speed.items():
        print(f"reading  {name:12} {value:8.0f} samples/s")
    peer = f"webdataset {_v('webdataset')}"
    for what, theirs_is, name, aim in (
        ("reading shards, no decode", f"{peer}, its tars", "ours", 6),
        ("reading webdataset's tars, no decode, indexing included", peer, "ours on wds", 3),
        ("webdataset reading our tars", f"{peer} reading its own", "wds on ours", 1.5),
    ):
        memory = f"{held[name]:.1f} / {held['wds']:.1f} MiB"
        row(what, theirs_is, speed[name], speed["wds"], PER, aim, memory)


PER = "samples/s"


def _pattern(paths: list[str]) -> str:
    """Tars in one folder by their common pattern."""
    if len(paths) == 1:
        return paths[0]
    return f"{paths[0][:-10]}{{000000..{len(paths) - 1:06d}}}.tar"


def with_webdataset(paths: list[str]) -> int:
    """Bytes of picture and label of every sample."""
    count = 0
    for sample in webdataset.WebDataset(paths, shardshuffle=False):
        assert sample["jpg"]
        int(sample["cls"])
        count += 1
    return count


def with_index(document: dict[str, Any]) -> int:
    """The same, in the order of training."""
    paths = locate(document["files"]["shards.train"], "shards.train")
    known = table.load(paths, "train", document["files"]["shards.train"].get("digest"))
    index, count = ShardIndex(paths, known=known), 0
    for _, i in positions(index, 0, 0, len(index)):
        assert index.image(i)
        int(index.labels[i])
        count += 1
    return count


def row(
    what: str, peer: str, ours: float, theirs: float, unit: str, aim: float, memory: str
) -> None:
    """One line of the table."""
    numbers = f"{ours:.4g} | {theirs:.4g} | {unit} | {ours / theirs:.2f} | {aim:g}"
    print(f"row | {what} | {peer} | {numbers} | {memory}")


def _v(package: str) -> str:
    return version(package)


if __name__ == "__main__":
    main()
