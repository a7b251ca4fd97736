"""Packing files without verification, beside webdataset's ShardWriter and GNU tar, the same files.

    python tests/bench/bench_shard.py [FOLDER] [--files 4000] [--rounds 5] [--workers N]

The files are those of FOLDER in turn, or random bytes around ImageNet's mean size. Wall time, from
listing to a sync of what was written, all on the same disk, rounds interleaved. ShardWriter is
given the bytes, the label and the JSON that ours writes; tar stores the bare files. Ours has as
many threads as there are cores and computes the sha256 of its shards and their table meanwhile; the
peers have one thread. CPU time is of all threads and children. Memory is what packing holds at its
peak in this process; tar is another one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from held import peak

from equitools.data.shards import packing, tar_writer
from equitools.data.shards.inventory import finish
from equitools.data.shards.pool import write_all
from equitools.data.sources import folder as sources_folder

MEAN_SIZE = 110_000


def main() -> None:
    """Print one line per contender and the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        make_files(base / "files", given.files, given.folder)
        compare(base / "files", base, given.files, given.rounds, given.workers)


def make_files(folder: Path, count: int, given: Path | None) -> None:
    """`count` files in ten class folders: those given in turn, else random bytes."""
    known = [path for path in sorted(given.rglob("*.[jJ]*")) if path.is_file()] if given else []
    for i in range(count):
        path = folder / f"class{i % 10}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if known:
            shutil.copyfile(known[i % len(known)], path)
        else:
            path.write_bytes(os.urandom(MEAN_SIZE // 2 + MEAN_SIZE * (i % 101) // 100))


def compare(folder: Path, base: Path, count: int, rounds: int, workers: int) -> None:
    """Time all in turn and print files a second."""
    contenders: dict[str, Callable[[Path], None]] = {
        "tar": lambda out: with_tar(folder, out),
        "wds": lambda out: with_webdataset(folder, out),
        "ours": lambda out: with_us(folder, out, workers),
    }
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, pack in contenders.items():
            empty(base / "out")
            os.sync()
            began, before = time.perf_counter(), sum(os.times()[:4])
            pack(base / "out")
            wall[name].append((time.perf_counter() - began) / count)
            cpu[name].append((sum(os.times()[:4]) - before) / count)
    held = {
        name: peak(lambda pack=pack: pack(empty(base / "out")))
        for name, pack in contenders.items()
        if name != "tar"
    }
    rate = {name: 1 / statistics.median(found) for name, found in wall.items()}
    for name, value in rate.items():
        spent = statistics.median(cpu[name]) * 1e6
        print(f"packing  {name:5} {value:8.0f} files/s, {spent:.0f} µs of CPU a file")
    row(
        f"webdataset {version('webdataset')} ShardWriter",
        rate["ours"],
        rate["wds"],
        2.5,
        f"{held['ours']:.0f} / {held['wds']:.0f} MiB",
    )
    row(tar_version(), rate["ours"], rate["tar"], 1, f"{held['ours']:.0f} / - MiB")


def empty(folder: Path) -> Path:
    """The folder, with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def with_tar(folder: Path, out: Path) -> None:
    subprocess.run(["tar", "cf", str(out / "x.tar"), "-C", str(folder), "."], check=True)
    tar_writer.sync(out / "x.tar")


def with_webdataset(folder: Path, out: Path) -> None:
    import webdataset

    samples = sources_folder.folder(folder, None, ".", None).splits["train"]
    pattern = str(out / "x-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=1000, verbose=0) as writer:
        for one in samples:
            about = {"filename": one.file, "label": one.label}
            key, data = one.file.removesuffix(".jpg"), Path(str(one.path)).read_bytes()
            writer.write({"__key__": key, "cls": one.label, "json": about, "jpg": data})
    for path in out.glob("*.tar"):
        tar_writer.sync(path)


def with_us(folder: Path, out: Path, workers: int) -> None:
    """List, plan, write, sync and rename, as the stage does."""
    source = sources_folder.folder(folder, None, ".", None)
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
    written = write_all(jobs, workers, lambda n: None)
    finish(out, written, source.classes)


def tar_version() -> str:
    said = subprocess.run(["tar", "--version"], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0].replace("tar (GNU tar)", "GNU tar")


def row(peer: str, ours: float, theirs: float, aim: float, memory: str) -> None:
    """One line of the table."""
    numbers = f"{ours:.0f} | {theirs:.0f} | files/s | {ours / theirs:.2f} | {aim:g}"
    print(f"row | packing files, synced | {peer} | {numbers} | {memory}")


if __name__ == "__main__":
    main()
