"""Samples into WebDataset shards: the same input gives the same bytes.

Each sample is three tar members, `key.cls` (its label, absent without one), `key.json` and
`key.jpg` (or png …) with the file's own bytes. Samples are shuffled once, by a hash of (seed, file
name), so that a reader that streams shards in order sees mixed classes; shards are of equal length
within one sample. Everything is written under temporary names, synced, and renamed at the end.

In verification every picture is decoded once. What cannot be decoded, and what has a side below
`min_side`, is dropped; all else (gray, CMYK, EXIF-rotated, duplicate, smaller than the crop) is
kept and counted. Format: Aizman, Maltby and Breuel, "High performance I/O for large scale deep
learning", 2019.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from equitools.core.errors import DataError
from equitools.data import images
from equitools.data.shards.tar import BLOCK, fits, header, member
from equitools.data.shards.tar_writer import TarWriter
from equitools.data.sources.source import Sample, Source, rank, suffix

PARTIAL = ".partial"
DROPPED = ("corrupt", "truncated", "tiny")
KINDS = (*DROPPED, "cmyk", "grayscale", "exif_rotated", "duplicate", "below_crop")
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_HIDDEN = re.compile(r"__[^/]*__($|/)")  # webdataset skips such names
Item = tuple[str, Sample]  # with its key
Facts = dict[str, Any]
Row = tuple[int, ...]  # of a table (table.py)


@dataclass(frozen=True)
class Job:
    """One shard to write: its path, its (key, sample) pairs, the classes, and how to check."""

    path: str
    items: list[Item]
    classes: list[str] | None
    verify: bool
    min_side: int
    crop: int


@dataclass
class Written:
    """What became of a job. `sums` are the first 8 bytes of each kept file's sha256; keys and rows
    are of its table (table.SampleTable)."""

    name: str
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    keys: list[str] = field(default_factory=list)
    rows: np.ndarray = field(default_factory=lambda: np.empty((0, 5), np.int64))
    findings: list[tuple[str, str, str]] = field(default_factory=list)  # kind, file, reason
    files: list[str] = field(default_factory=list)
    sums: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))


def plan(
    source: Source,
    out: Path,
    *,
    seed: int,
    samples_per_shard: int,
    megabytes_per_shard: int,
    verify: bool,
    min_side: int,
    crop: int,
) -> dict[str, list[Job]]:
    """The shards to write, per split; DataError when a split has no samples."""
    jobs: dict[str, list[Job]] = {}
    for split, samples in source.splits.items():
        if not samples:
            raise DataError(f"zero images in the {split} split of {source.name}")
        keyed = sorted(_keys(samples), key=lambda pair: rank(seed, "shuffle", pair[1].file))
        size = sum(one.bytes for one in samples)
        by_bytes = -(-size // (megabytes_per_shard * 10**6))
        count = max(-(-len(keyed) // samples_per_shard), by_bytes, 1)
        jobs[split] = []
        for i in range(count):
            path = str(out / PARTIAL / f"{split}-{i:06d}.tar")
            items = keyed[len(keyed) * i // count : len(keyed) * (i + 1) // count]
            jobs[split].append(Job(path, items, source.classes, verify, min_side, crop))
    return jobs


def _keys(samples: list[Sample]) -> Iterator[Item]:
    """A key for each sample: its file name without the suffix, with what tar readers cannot take
    (dots, hidden or overlong names, a second use) replaced by a hash of the name."""
    used: set[str] = set()
    for one in samples:
        key = one.file[: len(one.file) - len(suffix(one.file))].replace(".", "_")
        long = not fits(os.fsencode(f"{key}.json"))
        if key in used or long or _HIDDEN.search(key):
            short = "/".join(part[:40].strip("_") for part in key.split("/")[-2:])
            key = f"{short}-{hashlib.sha256(os.fsencode(one.file)).hexdigest()[:16]}"
        if key in used:
            raise DataError(f"two samples have the key '{key}'; the second is {one.file}")
        used.add(key)
        yield key, one


def write_shard(job: Job, advance: Callable[[int], None]) -> Written:
    """Write one shard."""
    result = Written(Path(job.path).name)
    sums: list[int] = []
    rows: list[Row] = []
    with TarWriter(job.path) as file:
        for count, item in enumerate(job.items, 1):
            plain = item[1].make is None and not job.verify
            row = _copy(file, job, item) if plain else _append(file, job, item, result, sums)
            if row is not None:
                result.keys.append(item[0])
                rows.append(row)
            if count % 64 == 0 or count == len(job.items):
                advance(count % 64 or 64)
        file.close()
    result.bytes, result.sha256, result.sums = file.bytes, file.sha256, np.array(sums, np.uint64)
    result.samples, result.rows = len(rows), np.array(rows, np.int64).reshape(-1, 5)
    return result


def read(sample: Sample) -> tuple[bytes, Facts]:
    """The encoded picture and the facts about it; DataError naming a file that cannot be read."""
    if sample.make is not None:
        return sample.make()
    assert sample.path is not None
    try:
        data = Path(sample.path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {sample.path}: {error.strerror}") from error
    if len(data) != sample.bytes:
        raise _changed(sample)
    return data, {}


def _append(file: TarWriter, job: Job, item: Item, result: Written, sums: list[int]) -> Row | None:
    """Append a sample; returns its row, or None for what verification drops."""
    data, facts = read(item[1])
    if job.verify and not _check(data, item[1], job, result, sums):
        return None
    row = _begin(file, job, item, len(data), facts)
    file.write(data + bytes(-len(data) % BLOCK))
    return row


def _copy(file: TarWriter, job: Job, item: Item) -> Row:
    """Append a sample whose bytes nobody looks at; returns its row."""
    sample = item[1]
    assert sample.path is not None
    try:
        source = os.open(sample.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"cannot read {sample.path}: {error.strerror}") from error
    try:
        size = os.fstat(source).st_size
        row = _begin(file, job, item, size, {})
        if size != sample.bytes or file.copy(source, size) != size:
            raise _changed(sample)
        file.write(bytes(-size % BLOCK))
        return row
    finally:
        os.close(source)


def _changed(sample: Sample) -> DataError:
    return DataError(f"{sample.path} changed while it was packed; run again when it is at rest")


def _begin(file: TarWriter, job: Job, item: Item, size: int, facts: Facts) -> Row:
    """Append what comes before a picture's bytes: label, JSON, and the header of the picture;
    returns the sample's row."""
    name, sample = os.fsencode(item[0]), item[1]
    about: Facts = {"filename": sample.file}
    label = b""
    if sample.label >= 0:
        about["label"] = sample.label
        label = member(name + b".cls", b"%d" % sample.label)
        if job.classes is not None:
            about["class"] = job.classes[sample.label]
    text = _ENCODER.encode(about | facts).encode()
    at = file.position + len(label) + BLOCK
    head = label + member(name + b".json", text)
    file.write(head + header(name + b"." + sample.extension.encode(), size))
    return file.position, size, at, len(text), sample.label


def _check(data: bytes, sample: Sample, job: Job, result: Written, sums: list[int]) -> bool:
    """Look at one picture, note what is special, and say whether it is kept."""
    seen = images.examine(data)
    side = min(seen.width, seen.height)
    holds = {"tiny": side < job.min_side, "cmyk": seen.cmyk, "grayscale": seen.gray}
    holds |= {"exif_rotated": seen.rotated, "below_crop": side < job.crop}
    kinds = [seen.broken] if seen.broken else [kind for kind in holds if holds[kind]]
    reason = seen.reason or f"{seen.width}×{seen.height}"
    result.findings += [(kind, sample.file, reason) for kind in kinds]
    if not set(kinds).isdisjoint(DROPPED):
        return False
    sums.append(int.from_bytes(hashlib.sha256(data).digest()[:8], "big"))
    result.files.append(sample.file)
    return True
