"""What a report is given, and what all reports ask of it.

A report is `def name(documents, where, *, knobs) -> str`, in the file of its name. It may also take
by name `layers` (what the words say, folded), `out` (the folder of -o, or None) and `say` (which
prints at once). One that makes a file and says no more returns the file's Path.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from equitools import manifest
from equitools.core.errors import DataError, UsageError
from equitools.report.describe import Document, described
from equitools.training.metrics import read_lines

Documents = Sequence[Document]
Where = Callable[[Path], Path]  # the folder of -o, or without it the one that is handed over
Metrics = list[dict[str, Any]]  # the lines of a metrics.jsonl


def required(documents: Documents) -> Documents:
    """The documents; UsageError when there is none."""
    if not documents:
        raise UsageError(
            "no manifest was given; pipe documents in, or name manifest.yaml files or run folders"
        )
    return documents


def table_layer(layers: Document, name: str) -> Document:
    """The table that came with the stream, else the one that is built in."""
    return layers.get("table") or manifest.layer(name, ("table",))["table"]


def home(document: Document, file: str) -> Path:
    """The folder of a file of a document, or where we are."""
    entry = (document.get("files") or {}).get(file)
    return Path(entry["path"]).parent if entry else Path.cwd()


def unfinished(folder: Path) -> bool:
    """Does a folder hold a run that has metrics but no manifest yet?"""
    return (folder / "metrics.jsonl").is_file() and not (folder / "manifest.yaml").is_file()


def read_metrics(documents: Documents, paths: Sequence[str] = ()) -> dict[str, Metrics]:
    """{name of the run: its metrics} of every document, then of every file.

    Raises UsageError without any, DataError for a document that names no metrics and for a file
    that is not there.
    """
    runs: dict[str, Metrics] = {}
    for document in documents if paths else required(documents):
        entry = (document.get("files") or {}).get("metrics")
        if entry is None:
            raise DataError("a document has no files.metrics; equi-pretrain writes them")
        words = described(document)
        name = " ".join(words[key] for key in ("method", "backbone", "data") if words[key])
        label = name if name not in runs else f"{name} ({len(runs) + 1})"
        runs[label] = read_lines(manifest.locate(entry, "metrics"))
    for path in map(Path, paths):
        if not path.is_file():
            raise DataError(f"no file {path}")
        label = f"{path.parent} (not finished)" if unfinished(path.parent) else str(path)
        runs[label] = read_lines(path)
    return runs
