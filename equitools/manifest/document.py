"""Manifests and recipe layers as documents: read, checked, ordered, rebased.
 Paths inside a document in memory are
absolute; a file is found by its path, else beside its manifest, else in $EQUITOOLS_STORE/<digest>.
"""

from collections.abc import Callable
from pathlib import Path

from equitools.core.errors import DataError
from equitools.manifest import files
from equitools.manifest.strict_yaml import Document, load

SCHEMA = 1
KINDS = ("shards", "checkpoint", "scores")  # in the order of the chain
STAGES = ("shard", "recipe", "probe", "perturb", "transfer")
ORDER = ("equitools", "kind", *STAGES, "files", "scores", "history")


def load_file(path: str | Path) -> list[Document]:
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


def absolute(document: Document, folder: Path) -> Document:
    """The document with the paths of its files made absolute; `folder` is the manifest's."""
    return _with_paths(document, lambda path: _from_root(path, files.absolute(folder)))


def _from_root(path: str, folder: Path) -> str:
    """A path of a manifest in `folder`, from the root; what is gone may lie beside the manifest."""
    if "://" in path:
        return path
    beside = str(folder / Path(path).name)
    moved = Path(path).is_absolute() and not files.exists(path) and files.exists(beside)
    return beside if moved else str(files.absolute(path, folder))


def rebase(document: Document, folder: Path) -> Document:
    """The document as it stands in `folder`/manifest.yaml: paths under the folder are relative."""
    root = f"{files.absolute(folder)}/"
    return _with_paths(document, lambda path: path.removeprefix(root))


def _with_paths(document: Document, change: Callable[[str], str]) -> Document:
    entries = document.get("files")
    if entries is None:
        return document
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise DataError("`files` of a manifest maps names to {path, bytes, digest}")
    changed = {
        name: {**item, "path": change(str(item["path"]))} if "path" in item else item
        for name, item in entries.items()
    }
    return {**document, "files": changed}


def check_schema(document: Document) -> None:
    """Raise DataError for a schema or kind that this version does not know."""
    schema, kind = document.get("equitools", SCHEMA), document.get("kind")
    if schema != SCHEMA:
        raise DataError(f"the manifest has schema {schema}; this equitools reads schema {SCHEMA}")
    if kind is not None and kind not in KINDS:
        raise DataError(f"a manifest of kind '{kind}'; the kinds are {', '.join(KINDS)}")
    history = document.get("history", [])
    if not isinstance(history, list) or not all(isinstance(r, dict) and "id" in r for r in history):
        raise DataError("`history` of a manifest is a list of records, each with an id")


def ordered(document: Document) -> Document:
    """The document with its schema and its sections in the order that every manifest has."""
    whole = {"equitools": SCHEMA, **document}
    known = {key: whole[key] for key in ORDER if key in whole}
    return known | {key: value for key, value in whole.items() if key not in known}
