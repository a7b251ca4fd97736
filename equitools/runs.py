"""What runs wrote while they trained, by the names that people know them by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from equitools import manifest, tables
from equitools.errors import DataError
from equitools.log import read_lines


def unfinished(folder: Path) -> bool:
    """Does a folder hold a run that has metrics but no manifest yet?"""
    return (folder / "metrics.jsonl").is_file() and not (folder / "manifest.yaml").is_file()


def metrics(
    documents: Sequence[dict[str, Any]], files: Iterable[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """{name: lines of metrics.jsonl} of every document, then of every file.

    Raises DataError for a document that names no metrics and for a file that is not there.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        entry = (document.get("files") or {}).get("metrics")
        if entry is None:
            raise DataError("a document has no files.metrics; equi-pretrain writes them")
        words = tables.described(document)
        name = " ".join(words[key] for key in ("method", "backbone", "data") if words[key])
        label = name if name not in found else f"{name} ({len(found) + 1})"
        found[label] = read_lines(manifest.locate(entry, "metrics"))
    for path in map(Path, files):
        if not path.is_file():
            raise DataError(f"no file {path}")
        label = f"{path.parent} (not finished)" if unfinished(path.parent) else str(path)
        found[label] = read_lines(path)
    return found
