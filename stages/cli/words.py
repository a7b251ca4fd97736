"""The words of a command line become documents, folded in order: stdin first, then each word.

A word with `/` or ending in `.yaml` is a file, `key=value` addresses the stage's section, `-` is
stdin, and anything else is a layer.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from equitools import manifest
from equitools.core.errors import DataError, UsageError
from equitools.manifest import Document, files, schema

from . import stdio
from .program import Program

_ASSIGNS = re.compile(r"[A-Za-z_][\w.+-]*=")


@dataclass
class Words:
    """What a command line says: documents in order, and whether `-` asks for stdin."""

    documents: list[Document] = field(default_factory=list)
    dash: bool = False


def parse(given: Iterable[str], program: Program) -> Words:
    """Read every word; UsageError for an unknown layer, DataError for a file that is not there."""
    words = Words()
    for word in given:
        if word == "-":
            words.dash = True
        else:
            words.documents += _documents(word, program)
    return words


def _documents(word: str, program: Program) -> list[Document]:
    if _ASSIGNS.match(word):
        return [{program.section: manifest.parse_assignment(word)}]
    if word in program.verbs:
        return [{program.section: {"verb": word}}]
    if word.endswith((".yaml", ".yml")):
        return manifest.load_file(Path(word))
    known = manifest.layers(program.folders)
    if word not in known and program.sources and _is_source(word):
        source = word if ":" in word else str(files.absolute(word))
        return [{program.section: {"source": source}}]
    if "/" in word:
        return manifest.load_file(_manifest_path(word))
    if word not in known and (near := difflib.get_close_matches(word, program.verbs, n=1)):
        raise UsageError(f"no layer '{word}'; did you mean {near[0]}?")
    return [manifest.layer(word, program.folders)]


def _is_source(word: str) -> bool:
    """A set of torchvision, a URL, a tar, or a folder."""
    named = word.startswith("torchvision:") or word.endswith(".tar")
    return named or "/" in word or Path(word).is_dir()


def _manifest_path(word: str) -> Path:
    """A folder stands for the manifest in it."""
    path = Path(word)
    return path / "manifest.yaml" if path.is_dir() else path


def section(words: Words, program: Program) -> Document:
    """The stage's section that the words alone make."""
    whole: Document = {}
    for document in words.documents:
        if "kind" not in document:
            whole = manifest.fold(whole, {program.section: document.get(program.section) or {}})
    return whole.get(program.section, {})


def gather(words: Words, program: Program, plan: bool) -> tuple[Document, list[Document]]:
    """The folded document, and the manifests as they came. Waits for stdin when it is due."""
    documents = [*_from_stdin(words, program), *words.documents]
    manifests = [document for document in documents if "kind" in document]
    for document in manifests:
        _check_kind(document, program)
    if program.reads and program.required and not manifests and not plan:
        raise UsageError(
            f"a manifest ({' or '.join(program.reads)}) is needed, and none was"
            " given; pipe one in, or name a manifest.yaml"
        )
    if not program.folds:
        documents = [document for document in documents if "kind" not in document]
    whole = manifest.join(_afresh(document, program) for document in documents)
    if not isinstance(whole.setdefault(program.section, {}), dict):
        raise UsageError(f"`{program.section}` must be a mapping of keys to values")
    return whole, manifests


def _from_stdin(words: Words, program: Program) -> list[Document]:
    """The documents of stdin, when `-` asks for them or a manifest is read and none was named."""
    named = any("kind" in document for document in words.documents)
    due = bool(program.reads) and not named and stdio.stdin_is_given()
    if not (words.dash or due):
        return []
    documents = manifest.load(stdio.read_stdin(), "stdin")
    if not documents:
        raise DataError("stdin holds no document; a manifest begins with '---'")
    folder = stdio.stdin_folder()
    return [manifest.absolute(document, folder or Path.cwd()) for document in documents]


def _check_kind(document: Document, program: Program) -> None:
    manifest.check_schema(document)
    if document["kind"] not in program.reads:
        wanted, kind = " or ".join(program.reads) or "no manifest", document["kind"]
        stage = manifest.last_record(document).get("stage")
        maker = f" (from equi-{stage})" if stage else ""
        raise DataError(
            f"equi-{program.name} reads {wanted}; this manifest is of kind {kind}{maker}"
        )


def _afresh(document: Document, program: Program) -> Document:
    """Leave out what an earlier run of this stage was asked: it is history, not a request."""
    stages = [record.get("stage") for record in document.get("history") or []]
    if "kind" not in document or program.name not in stages:
        return document
    return {key: value for key, value in document.items() if key != program.section}


# --- What there is to choose from --------------------------------------------------------------


def listing(program: Program) -> str:
    """The layers by folder, and the names of each menu, one line each."""
    groups = [(folder, _layer_lines(folder)) for folder in program.folders]
    for title, menu in program.menus.items():
        choices = menu()
        lines = choices if isinstance(choices, list) else schema.menu(choices)
        groups.append((title, lines))
    groups = [(title, lines) for title, lines in groups if lines]
    width = max((len(name) for _, lines in groups for name, _ in lines), default=0)
    blocks = [
        "\n".join([f"{title}:", *(f"  {name:{width}}  {line}".rstrip() for name, line in lines)])
        for title, lines in groups
    ]
    return "\n\n".join(blocks) + "\n"


def _layer_lines(folder: str) -> list[tuple[str, str]]:
    """Each layer of a folder with its first comment."""
    return [
        (name, _first_comment(path.read_text(encoding="utf-8")))
        for name, path in manifest.layers([folder]).items()
    ]


def _first_comment(text: str) -> str:
    lines = (line for line in text.splitlines() if line.startswith("#"))
    return next(lines, "").lstrip("# ")
