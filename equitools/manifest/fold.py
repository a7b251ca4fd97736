"""Lay documents on one another: layers, manifests and key=value."""

import copy
import re
from collections.abc import Iterable

from equitools.core.errors import DataError, UsageError
from equitools.manifest.document import KINDS, check_schema
from equitools.manifest.strict_yaml import Document, load_value

_ASSIGNMENT = re.compile(r"([A-Za-z_][\w+-]*(?:\.[\w+-]+)*)=(.*)", re.DOTALL)


def fold(base: Document, over: Document) -> Document:
    """Lay `over` on `base`: mappings merge, everything else replaces.

    A mapping whose `name` changes is replaced whole: another objective keeps no knob of the first.
    A key says where its value was written, so the one that is laid on takes the other's place.
    """
    if "name" in base and "name" in over and base["name"] != over["name"]:
        return copy.deepcopy(over)
    written = {key: key for key in over}
    merged = {written.get(key, key): copy.deepcopy(value) for key, value in base.items()}
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = fold(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def join(documents: Iterable[Document]) -> Document:
    """Fold whole documents in order; histories join by id, the kind is the last of the chain.

    Raises UsageError for two encoders and for a change of the recipe that made the encoder,
    DataError for an unknown schema or kind.
    """
    whole: Document = {}
    maker: Document | None = None
    for document in documents:
        check_schema(document)
        _same_encoder(whole, document)
        kinds = [kind for kind in (whole.get("kind"), document.get("kind")) if kind]
        history = _join_history(whole.get("history") or [], document.get("history") or [])
        files = _join_files(whole, document)
        whole = fold(whole, document)
        if kinds:
            whole["kind"] = max(kinds, key=KINDS.index)
        whole |= {"files": files} if files else {}
        whole |= {"history": history} if history else {}
        if "encoder" in (document.get("files") or {}):
            maker = document
    if maker is not None and whole.get("recipe") != maker.get("recipe"):
        raise UsageError("the encoder exists, so its recipe cannot change; pretrain another one")
    return whole


def _same_encoder(one: Document, other: Document) -> None:
    digests = [(d.get("files") or {}).get("encoder", {}).get("digest") for d in (one, other)]
    if None not in digests and digests[0] != digests[1]:
        raise UsageError(
            f"two encoders in one pipe: {digests[0]} and {digests[1]};"
            " a stage reads one (equi-report reads many)"
        )


def _join_files(base: Document, over: Document) -> Document:
    """An entry replaces an entry whole; shards that are laid on a checkpoint replace all of its."""
    files = dict(base.get("files") or {})
    if over.get("kind") == "shards" and base.get("kind") not in (None, "shards"):
        files = {name: item for name, item in files.items() if not name.startswith("shards.")}
    return files | (over.get("files") or {})


def _join_history(first: list[Document], second: list[Document]) -> list[Document]:
    known = {record["id"] for record in first}
    return [*first, *(record for record in second if record["id"] not in known)]


def parse_assignment(word: str) -> Document:
    """`a.b=1e-3` as {a: {b: 0.001}}; the value is strict YAML. Raises UsageError."""
    match = _ASSIGNMENT.fullmatch(word)
    if not match:
        raise UsageError(f"'{word}' is not key=value")
    try:
        value = load_value(match[2])
    except DataError as error:
        raise UsageError(f"the value of '{word}' is not YAML: {error}") from None
    for key in reversed(match[1].split(".")):
        value = {key: value}
    return value
