"""What a report is given: the documents of a stream, and where a figure goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Documents = Sequence[dict[str, Any]]
Where = Callable[[Path], Path]


def home(document: dict[str, Any], file: str) -> Path:
    """The folder of a file of a document, or where we are."""
    entry = (document.get("files") or {}).get(file)
    return Path(entry["path"]).parent if entry else Path.cwd()
