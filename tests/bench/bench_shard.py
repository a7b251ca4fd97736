"""Packing without verification against GNU tar on the same files, interleaved; medians and ratio.

    python tests/bench/bench_shard.py [FOLDER] [--files 4000] [--rounds 5]

Without FOLDER it makes files of ImageNet's mean size. Both write to the same disk and end with a
sync of what they wrote; equitools also computes the sha256 of its shards meanwhile. The goal is a
ratio of at least 0.8 of tar's speed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from equitools import packers, packing, shardset, sources

MEAN_SIZE = 110_000


def main() -> None:
    """Print one line per contender and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        folder = (given.folder or make_files(base / "files", given.files)).resolve()
        compare(folder, base, given.rounds, given.workers)


def make_files(folder: Path, count: int) -> Path:
    """`count` files of random bytes in ten class folders, with sizes around the mean."""
    for i in range(count):
        path = folder / f"class{i % 10}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(MEAN_SIZE // 2 + MEAN_SIZE * (i % 101) // 100))
    return folder


def compare(folder: Path, base: Path, rounds: int, workers: int) -> None:
    """Time both in turn and print files a second."""
    count = len(sources.folder(folder, None, ".", None).splits["train"])
    times: dict[str, list[float]] = {"tar": [], "ours": []}
    for _ in range(rounds):
        times["tar"].append(timed(lambda: with_tar(folder, base / "x.tar")))
        times["ours"].append(timed(lambda: with_us(folder, base / "out", workers)))
    tar, ours = (statistics.median(found) for found in times.values())
    print(f"tar      {count / tar:8.0f} files/s")
    print(f"ours     {count / ours:8.0f} files/s, ratio to tar {tar / ours:.2f}")
    print(f"reading  {reading(folder, base):8.0f} samples/s in random order")


def timed(work: object) -> float:
    began = time.perf_counter()
    assert callable(work)
    work()
    return time.perf_counter() - began


def with_tar(folder: Path, out: Path) -> None:
    out.unlink(missing_ok=True)
    subprocess.run(["tar", "cf", str(out), "-C", str(folder), "."], check=True)
    subprocess.run(["sync", str(out)], check=True)


def with_us(folder: Path, out: Path, workers: int) -> dict:
    """List, plan, write, sync and rename, as the stage does."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    source = sources.folder(folder, None, ".", None)
    jobs = packing.plan(
        source, out, seed=0, samples_per_shard=1000, megabytes_per_shard=500, verify=False,
        min_side=8, crop=224,
    )  # fmt: skip
    written = packers.write_all(jobs, workers, lambda n: None)
    return shardset.finish(out, written, source.classes)


def reading(folder: Path, base: Path) -> float:
    """Samples a second through the index, in the order of training."""
    from equitools import shards  # imports torch, which no packing process needs

    index = shards.open_split({"files": with_us(folder, base / "read", 1)}, "train")
    began = time.perf_counter()
    for _, i in shards.positions(index, 0, 0, len(index)):
        index.image(i)
    return len(index) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
