"""Where a number comes from: from a score back through the history to the shards; what differs.

Every stage appends one record with the ids of the records it came from, so the way back is a walk
over `from`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from equitools import manifest
from equitools.core.errors import DataError, UsageError

PLACE = ("id", "from", "stage", "argv", "seconds", "version")


def scored(documents: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The documents that have a score. Raises UsageError naming what is near."""
    found = [d for d in documents if key in (d.get("scores") or {})]
    if found:
        return found
    names = list(dict.fromkeys(name for d in documents for name in d.get("scores") or {}))
    inside = [name for name in names if key in name]
    near = inside or difflib.get_close_matches(key, names, n=5, cutoff=0.4)
    hint = f"did you mean {' or '.join(near[:5])}?" if near else f"there are {_some(names)}"
    raise UsageError(f"no score '{key}'; {hint}")


def _some(names: list[str], count: int = 5) -> str:
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest if names else "none"


def why(document: dict[str, Any], key: str) -> str:
    """The lineage of a score as lines: its value, the record that wrote it, and all its parents.

    Raises DataError when the history has no record of the stage that the score names.
    """
    maker = _maker(document, key)
    lines = [f"{key} = {document['scores'][key]}"]
    for depth, record in walk(document["history"], maker["id"]):
        indent = "   " * depth
        lines.append(
            f"{indent}└─ {record.get('stage')}  {str(record['id'])[:12]}  {record.get('argv', '')}"
        )
        said = {"version": record.get("version"), "seconds": record.get("seconds")}
        said |= {name: value for name, value in record.items() if name not in PLACE}
        lines += [f"{indent}     {n}: {_short(v)}" for n, v in said.items() if v is not None]
    lines.append("files")
    for name, entry in (document.get("files") or {}).items():
        lines.append(f"   {name}  {entry.get('path', '')}  {entry.get('digest', '')}")
    return "\n".join(lines) + "\n"


def _maker(document: dict[str, Any], key: str) -> dict[str, Any]:
    """The last record of the score's stage, of its evaluation where the record says which."""
    stage, _, rest = key.partition("/")
    history = document.get("history") or []
    records = [record for record in history if record.get("stage") == stage]
    if not records:
        raise DataError(f"the history has no record of stage '{stage}', so {key} has no lineage")
    evaluation = rest.partition("/")[0]
    named = [record for record in records if evaluation in str(record.get("argv", "")).split()]
    return (named or records)[-1]


def walk(history: list[dict[str, Any]], start: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(depth, record) from a record back to its origins, each record once."""
    known = {record["id"]: record for record in history}
    waiting, seen = [(0, start)], set()
    while waiting:
        depth, id = waiting.pop()
        if id in seen:
            continue
        seen.add(id)
        if id not in known:
            yield depth, {"id": id, "stage": "unknown", "argv": "(not in this document)"}
            continue
        yield depth, known[id]
        waiting += [(depth + 1, parent) for parent in reversed(known[id].get("from") or [])]


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 160 else text[:157] + "…"


# --- Differences -----------------------------------------------------------------------------


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A document as {dotted key: value}; keys that hold a dot or slash are one step."""
    if isinstance(value, dict) and value:
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: value}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, in one, in the other) wherever two documents differ; "—" where a key is not there.

    Of the history only the stages, arguments and versions are compared.
    """
    first, second = (flatten(_comparable(document)) for document in (one, other))
    keys = [*first, *(key for key in second if key not in first)]
    absent = "—"
    return [
        (key, first.get(key, absent), second.get(key, absent))
        for key in keys
        if key not in first or key not in second or first[key] != second[key]
    ]


def _comparable(document: dict[str, Any]) -> dict[str, Any]:
    records = document.get("history") or []
    stages = {
        f"{i}-{record.get('stage')}": {k: record.get(k) for k in ("argv", "version", "seconds")}
        for i, record in enumerate(records, 1)
    }
    return {key: item for key, item in document.items() if key != "history"} | {"history": stages}


def verified(documents: Sequence[dict[str, Any]]) -> tuple[list[list[Any]], list[str]]:
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


def _verified(entry: dict[str, Any], name: str) -> str:
    """The path of a file whose digest is right; a split is a set of shards, even of one."""
    if not name.startswith("shards."):
        return str(manifest.verify(entry, name))
    from equitools.data.shards.index import locate

    found, said = manifest.digest_files(locate(entry, name)), entry.get("digest")
    if said not in (None, found):
        raise DataError(f"{name} has changed: it is {found}, its manifest says {said}")
    return entry["path"]
