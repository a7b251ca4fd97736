"""Where a number comes from: from a score back through the history to the shards.

Every stage appends one record with the ids of the records it came from, so the way back is a walk
over `from`.
"""

import difflib
from collections.abc import Iterator

from equitools.core.errors import DataError, UsageError
from equitools.report.documents import Document, Documents, Where, required

PLACE = ("id", "from", "stage", "argv", "seconds", "version")


def why(documents: Documents, where: Where, *, score: str) -> str:
    """From a score back to the shards: equi-report why probe/linear/all/mean/top1 m.yaml"""
    scored = having(required(documents), score)
    return "\n".join(lineage(document, score) for document in scored)


def having(documents: Documents, key: str) -> list[Document]:
    """The documents that have a score. Raises UsageError naming what is near."""
    scored = [d for d in documents if key in (d.get("scores") or {})]
    if scored:
        return scored
    names = list(dict.fromkeys(name for d in documents for name in d.get("scores") or {}))
    inside = [name for name in names if key in name]
    near = inside or difflib.get_close_matches(key, names, n=5, cutoff=0.4)
    hint = f"did you mean {' or '.join(near[:5])}?" if near else f"there are {_some(names)}"
    raise UsageError(f"no score '{key}'; {hint}")


def _some(names: list[str], count: int = 5) -> str:
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest if names else "none"


def lineage(document: Document, key: str) -> str:
    """The lineage of a score as lines: its value, the record that wrote it, and all its parents.

    Raises DataError when the history has no record of the stage that the score names.
    """
    lines = [f"{key} = {document['scores'][key]}"]
    for depth, record in walk(document["history"], _maker(document, key)["id"]):
        indent = "   " * depth
        lines.append(
            f"{indent}└─ {record.get('stage')}  {str(record['id'])[:12]}  {record.get('argv', '')}"
        )
        facts = {"version": record.get("version"), "seconds": record.get("seconds")}
        facts |= {name: value for name, value in record.items() if name not in PLACE}
        lines += [f"{indent}     {n}: {_short(v)}" for n, v in facts.items() if v is not None]
    lines.append("files")
    for name, entry in (document.get("files") or {}).items():
        lines.append(f"   {name}  {entry.get('path', '')}  {entry.get('digest', '')}")
    return "\n".join(lines) + "\n"


def _maker(document: Document, key: str) -> Document:
    """The last record of the score's stage, of its evaluation where the record says which."""
    stage, _, rest = key.partition("/")
    history = document.get("history") or []
    records = [record for record in history if record.get("stage") == stage]
    if not records:
        raise DataError(f"the history has no record of stage '{stage}', so {key} has no lineage")
    evaluation = rest.partition("/")[0]
    named = [record for record in records if evaluation in str(record.get("argv", "")).split()]
    return (named or records)[-1]


def walk(history: list[Document], start: str) -> Iterator[tuple[int, Document]]:
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


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 160 else text[:157] + "…"
