"""Where two documents differ, key by key."""

from equitools.core.errors import UsageError
from equitools.report.documents import Document, Documents, Where, required
from equitools.report.formats.tables import render

ABSENT = "—"


def diff(documents: Documents, where: Where) -> str:
    """Where two documents differ, key by key; ids of the history are left out."""
    if len(required(documents)) != 2:
        raise UsageError(f"diff compares two documents and got {len(documents)}")
    rows = differences(*documents)
    return render(["key", "first", "second"], rows) if rows else "no difference\n"


def differences(one: Document, other: Document) -> list[tuple[str, object, object]]:
    """(key, in one, in the other) wherever two documents differ; ABSENT where a key is not there.

    Of the history only the stages, arguments and versions are compared.
    """
    first, second = (flatten(_comparable(document)) for document in (one, other))
    pairs = [(key, first.get(key, ABSENT), second.get(key, ABSENT)) for key in first | second]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _comparable(document: Document) -> Document:
    records = document.get("history") or []
    stages = {
        f"{i}-{record.get('stage')}": {k: record.get(k) for k in ("argv", "version", "seconds")}
        for i, record in enumerate(records, 1)
    }
    return {key: item for key, item in document.items() if key != "history"} | {"history": stages}


def flatten(value: object, prefix: str = "") -> Document:
    """A document as {dotted key: value}; keys that hold a dot or slash are one step."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: Document = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
