"""A set of written shards: duplicates, counts, `_info.json`, and its entries in a manifest."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equitools.core import files
from equitools.core.errors import DataError
from equitools.data.shards import remote, table
from equitools.data.shards.packing import DROPPED, KINDS, PARTIAL, Written
from equitools.data.shards.table import SampleTable, Strings
from equitools.data.shards.tar import pattern, set_digest
from equitools.manifest.files import expand

INFO = "_info.json"
REPORT = "report.tsv"
LISTS = {"filenames": "name", "shard_lengths": "samples", "bytes": "bytes", "sha256": "sha256"}
Shards = dict[str, list[Written]]  # by split


def find_duplicates(written: Shards) -> None:
    """Add to each shard's findings the files whose bytes an earlier one (train before val) has."""
    every = [(split, one) for split in sorted(written) for one in written[split]]
    sums = np.concatenate([one.sums for _, one in every])
    values, counts = np.unique(sums, return_counts=True)
    twice = set(values[counts > 1].tolist())
    first: dict[int, str] = {}
    for split, one in every if twice else ():
        for file, number in zip(one.files, one.sums.tolist(), strict=True):
            if number in first:
                one.findings.append(("duplicate", file, f"same bytes as {first[number]}"))
            elif number in twice:
                first[number] = f"{split}/{file}"


def report(written: Shards, ignored: int) -> dict[str, int]:
    """The counts that the manifest states; `dropped` is what is not in the shards."""
    kinds = [kind for split in written for one in written[split] for kind, _, _ in one.findings]
    counts = {kind: kinds.count(kind) for kind in KINDS}
    kept = sum(one.samples for split in written for one in written[split])
    return {"kept": kept, "dropped": sum(counts[k] for k in DROPPED), "ignored": ignored} | counts


def finish(
    out: Path, written: Shards, classes: list[str] | None, ignored: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Rename the shards into place, write their tables, `_info.json` and `report.tsv`, which names
    what is `ignored`, too; the `files` of a manifest.

    `_info.json` is what timm's WebDataset reader reads, with sha256 and bytes of each shard added.
    Raises DataError when a split has lost all its images in verification.
    """
    for split, shards in written.items():
        if not sum(one.samples for one in shards):
            shutil.rmtree(out / PARTIAL, ignore_errors=True)
            reason = next((f"{file}: {why}" for one in shards for _, file, why in one.findings), "")
            raise DataError(f"zero images left in {split}: none can be decoded ({reason})")
    names = [one.name for shards in written.values() for one in shards]
    for name in names:
        (out / PARTIAL / name).replace(out / name)
    (out / PARTIAL).rmdir()
    files.write_atomic(out / INFO, json.dumps(_info(written, classes), indent=1) + "\n")
    files.write_atomic(out / REPORT, "".join(_report_lines(written, ignored)))
    for split, shards in written.items():
        keys = Strings([key for one in shards for key in one.keys])
        rows, counts = np.concatenate([one.rows for one in shards]), [s.samples for s in shards]
        of = [(one.name, one.bytes, one.sha256) for one in shards]
        table.save(out, split, SampleTable(keys, rows, tuple(counts)), of)
    return {f"shards.{split}": _entry(out, shards, classes) for split, shards in written.items()}


def _entry(out: Path, shards: list[Written], classes: list[str] | None) -> dict[str, Any]:
    return {
        "path": str(out / pattern([one.name for one in shards])),
        "samples": sum(one.samples for one in shards),
        "classes": None if classes is None else len(classes),
        "bytes": sum(one.bytes for one in shards),
        "digest": set_digest((one.name, one.sha256) for one in shards),
    }


def _info(written: Shards, classes: list[str] | None) -> dict[str, Any]:
    splits: dict[str, dict[str, Any]] = {}
    for split, shards in written.items():
        splits[split] = {"name": split, "num_samples": sum(one.samples for one in shards)}
        splits[split] |= {key: [getattr(one, own) for one in shards] for key, own in LISTS.items()}
    return {"splits": splits, "classes": classes}


def _report_lines(written: Shards, ignored: Sequence[str]) -> Iterator[str]:
    yield "split\tkind\tfile\treason\n"
    lines: list[tuple[str, ...]] = []
    for split, shards in written.items():
        lines += [
            (split, *line) for line in sorted(line for one in shards for line in one.findings)
        ]
    lines += [("", "ignored", path, "its name is not an image's") for path in sorted(ignored)]
    for split, kind, file, reason in lines:
        name = file.encode("utf-8", "backslashreplace").decode()
        yield f"{split}\t{kind}\t{name}\t{reason}\n"


def whole(entry: dict[str, Any]) -> bool:
    """Are the shards of an entry there, with as many bytes as it says? URLs are taken on trust."""
    if remote.is_url(entry["path"]):
        return True
    paths = [Path(path) for path in expand(entry["path"])]
    there = all(path.is_file() for path in paths)
    return there and sum(path.stat().st_size for path in paths) == entry["bytes"]
