"""Digests of all files that documents name."""

from collections.abc import Callable

from equitools import manifest
from equitools.core.errors import DataError
from equitools.report.documents import Document, Documents, Where, required
from equitools.report.formats.tables import render


def verify(documents: Documents, where: Where, say: Callable[[str], object]) -> str:
    """Digests of all files that the documents name; an error when one is missing or changed."""
    rows, problems = verified(required(documents))
    text = render(["file", "path", "digest"], rows)
    if problems:
        say(text)
        raise DataError("; ".join(problems))
    return text


def verified(documents: Documents) -> tuple[list[list[str]], list[str]]:
    """A row (name, path, ok or FAILED) for every file of the documents, and what is wrong."""
    rows, problems = [], []
    for document in documents:
        for name, entry in (document.get("files") or {}).items():
            try:
                rows.append([name, _verified(entry, name), "ok"])
            except (DataError, OSError) as error:
                problems.append(str(error))
                rows.append([name, entry.get("path"), "FAILED"])
    return rows, problems


def _verified(entry: Document, name: str) -> str:
    """The path of a file whose digest is right; a split is a set of shards, even of one."""
    if not name.startswith("shards."):
        return str(manifest.verify(entry, name))
    from equitools.data.shards.index import locate

    digest, stated = manifest.digest_files(locate(entry, name)), entry.get("digest")
    if stated not in (None, digest):
        raise DataError(f"{name} has changed: it is {digest}, its manifest says {stated}")
    return entry["path"]
