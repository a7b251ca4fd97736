"""The identity of a run, and its record in a manifest."""

import hashlib
import json
import shlex

from equitools import __version__
from equitools.manifest.strict_yaml import Document


def identity(*parts: object) -> str:
    """The sha256 in hex of the parts as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def last_record(document: Document) -> Document:
    """The newest record of a document's history; empty where there is none."""
    return (document.get("history") or [{}])[-1]


def append_history(
    document: Document, stage: str, argv: list[str], seconds: float, id: str, **facts: object
) -> Document:
    """The document with one more record; its parents are the records that nobody came from yet."""
    history = [record for record in document.get("history") or [] if record["id"] != id]
    taken = {parent for record in history for parent in record.get("from", [])}
    parents = [record["id"] for record in history if record["id"] not in taken]
    record: Document = {"id": id, "from": parents, "stage": stage, "version": __version__}
    record |= {"argv": shlex.join(argv), "seconds": round(seconds, 1), **facts}
    return {**document, "history": [*history, record]}
