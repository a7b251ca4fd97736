"""Manifests: read, fold, check, print, locate and verify the documents that the stages exchange.

A recipe layer and a manifest are the same kind of document. Paths inside a document in memory are
absolute; a file is found by its path, else beside its manifest, else in $EQUITOOLS_STORE/<digest>.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from equitools import __version__
from equitools.documents import dump, load, load_value
from equitools.errors import DataError, UsageError
from equitools.files import absolute as absolute_path
from equitools.files import (
    digest_file,
    digest_files,
    entry,
    exists,
    expand,
    locate,
    verify,
    write_atomic,
)

__all__ = [
    "append_history", "digest_file", "digest_files", "dump", "entry", "expand", "fold",
    "identity", "join", "layer", "layers", "load", "load_file", "locate", "parse_assignment",
    "rebase", "verify", "write_atomic",
]  # fmt: skip

SCHEMA = 1
KINDS = ("shards", "checkpoint", "scores")  # in the order of the chain
ORDER = (
    "equitools", "kind", "shard", "recipe", "probe", "perturb", "transfer", "files", "scores",
    "history",
)  # fmt: skip
_ASSIGNMENT = re.compile(r"([A-Za-z_][\w+-]*(?:\.[\w+-]+)*)=(.*)", re.DOTALL)


# --- Reading ---------------------------------------------------------------------------------


def load_file(path: str | Path) -> list[dict[str, Any]]:
    """The documents of a file, with the paths of their `files` absolute.

    A relative path is relative to the manifest's folder; a file that is no longer at its absolute
    path but lies beside its manifest is taken from there. Raises DataError.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text, so it is not a manifest") from None
    documents = load(text, str(path))
    if not documents:
        raise DataError(f"{path} is empty; a manifest begins with '---' and ends with '...'")
    return [absolute(document, path.parent) for document in documents]


def absolute(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The document with the paths of its files made absolute; `folder` is the manifest's."""
    return _with_paths(document, lambda path: _found(path, absolute_path(folder)))


def _found(path: str, folder: Path) -> str:
    """A path of a manifest in `folder`, from the root; what is gone may lie beside the manifest."""
    if "://" in path:
        return path
    beside = str(folder / Path(path).name)
    moved = Path(path).is_absolute() and not exists(path) and exists(beside)
    return beside if moved else str(absolute_path(path, folder))


def rebase(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The document as it stands in `folder`/manifest.yaml: paths under the folder are relative."""
    root = f"{absolute_path(folder)}/"
    return _with_paths(document, lambda path: path.removeprefix(root))


def _with_paths(document: dict[str, Any], change: Any) -> dict[str, Any]:
    files = document.get("files")
    if files is None:
        return document
    if not isinstance(files, dict) or not all(isinstance(item, dict) for item in files.values()):
        raise DataError("`files` of a manifest maps names to {path, bytes, digest}")
    changed = {
        name: {**item, "path": change(str(item["path"]))} if "path" in item else item
        for name, item in files.items()
    }
    return {**document, "files": changed}


# --- Folding ---------------------------------------------------------------------------------


def fold(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
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


def join(documents: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Fold whole documents in order; histories join by id, the kind is the last of the chain.

    Raises UsageError for two encoders and for a change of the recipe that made the encoder,
    DataError for an unknown schema or kind.
    """
    whole: dict[str, Any] = {}
    maker: dict[str, Any] | None = None
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


def check_schema(document: dict[str, Any]) -> None:
    """Raise DataError for a schema or kind that this version does not know."""
    schema, kind = document.get("equitools", SCHEMA), document.get("kind")
    if schema != SCHEMA:
        raise DataError(f"the manifest has schema {schema}; this equitools reads schema {SCHEMA}")
    if kind is not None and kind not in KINDS:
        raise DataError(f"a manifest of kind '{kind}'; the kinds are {', '.join(KINDS)}")
    history = document.get("history", [])
    if not isinstance(history, list) or not all(isinstance(r, dict) and "id" in r for r in history):
        raise DataError("`history` of a manifest is a list of records, each with an id")


def _same_encoder(one: dict[str, Any], other: dict[str, Any]) -> None:
    digests = [(d.get("files") or {}).get("encoder", {}).get("digest") for d in (one, other)]
    if None not in digests and digests[0] != digests[1]:
        raise UsageError(
            f"two encoders in one pipe: {digests[0]} and {digests[1]};"
            " a stage reads one (equi-report reads many)"
        )


def _join_files(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """An entry replaces an entry whole; shards that are laid on a checkpoint replace all of its."""
    files = dict(base.get("files") or {})
    if over.get("kind") == "shards" and base.get("kind") not in (None, "shards"):
        files = {name: item for name, item in files.items() if not name.startswith("shards.")}
    return files | (over.get("files") or {})


def _join_history(first: list[dict], second: list[dict]) -> list[dict]:
    known = {record["id"] for record in first}
    return [*first, *(record for record in second if record["id"] not in known)]


def parse_assignment(word: str) -> dict[str, Any]:
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


# --- Layers ----------------------------------------------------------------------------------


def layer_root() -> Path:
    """The folder of the recipe layers: inside the installed package, else next to it."""
    package = Path(__file__).resolve().parent
    inside = package / "manifests"
    return inside if inside.is_dir() else package.parent / "manifests"


def layers(folders: Iterable[str]) -> dict[str, Path]:
    """The layers of some folders by name, in the order of folders and names."""
    found = (path for folder in folders for path in sorted((layer_root() / folder).glob("*.yaml")))
    return {path.stem: path for path in found}


def layer(name: str, folders: Iterable[str]) -> dict[str, Any]:
    """The document of a layer. Raises UsageError with what is near, for a name that is none."""
    folders = tuple(folders)
    known = layers(folders)
    if name in known:
        documents = load_file(known[name])
        if len(documents) != 1:
            raise DataError(f"{known[name]} holds {len(documents)} documents; a layer is one")
        return documents[0]
    elsewhere = [path.parent.name for path in layer_root().glob(f"*/{name}.yaml")]
    if elsewhere:
        raise UsageError(
            f"'{name}' is a layer of {elsewhere[0]}; here come those of {', '.join(folders)}"
        )
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "--list shows the layers"
    raise UsageError(f"no layer '{name}'; {hint}")


# --- Identity and history --------------------------------------------------------------------


def identity(*parts: Any) -> str:
    """The sha256 in hex of the parts as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def append_history(
    document: dict[str, Any], stage: str, argv: list[str], seconds: float, id: str, **facts: Any
) -> dict[str, Any]:
    """The document with one more record; its parents are the records that nobody came from yet."""
    history = [record for record in document.get("history") or [] if record["id"] != id]
    taken = {parent for record in history for parent in record.get("from", [])}
    parents = [record["id"] for record in history if record["id"] not in taken]
    record: dict[str, Any] = {"id": id, "from": parents, "stage": stage, "version": __version__}
    record |= {"argv": shlex.join(argv), "seconds": round(seconds, 1), **facts}
    return {**document, "history": [*history, record]}


def ordered(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its schema and its sections in the order that every manifest has."""
    whole = {"equitools": SCHEMA, **document}
    known = {key: whole[key] for key in ORDER if key in whole}
    return known | {key: value for key, value in whole.items() if key not in known}
