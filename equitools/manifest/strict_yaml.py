"""Strict YAML in and out: the only syntax that equitools reads and writes.

The scalars of YAML 1.2's core schema (`1e-3` is a number; `no`, dates and `1:30` are strings),
without duplicate keys, anchors or tags of any kind, each document between `---` and
`...`, so that `cat` composes documents and one that was cut short is refused.
"""

import io
import math
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from equitools.core.errors import DataError

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"(?:[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_SPECIAL = re.compile(r"^([-+]?)\.(inf|nan)$", re.IGNORECASE)
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_NULL = ("", "~", "null", "Null", "NULL")
_STRING = "tag:yaml.org,2002:str"


# A document or a section of one: keys to plain values, lists and sections.
Document = dict[str, Any]
Scalar = None | bool | int | float | str


class Key(str):
    """A key that remembers where it was written, as `file:line`; otherwise a string."""

    origin: str = ""


def scalar(text: str) -> Scalar:
    """The value of a plain (unquoted) scalar: None, bool, int, float or the string itself."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(_SPECIAL.sub(r"\1\2", text))
    return text


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


class _Reader(yaml.SafeLoader):
    """PyYAML's parser and composer, one document at a time with its markers; resolves nothing."""

    def documents(self) -> Iterator[tuple[yaml.Event, Node | None, yaml.Event]]:
        self.get_event()  # the start of the stream
        while not self.check_event(yaml.StreamEndEvent):
            start = self.get_event()
            node = self.compose_node(None, 0)
            yield start, node, self.get_event()

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _error("anchors are not used", event)
        if getattr(event, "tag", None):
            raise _error(f"the tag {event.tag} is not used", event)
        return super().compose_node(parent, index)


def load(text: str, source: str) -> list[Document]:
    """The documents of a text; keys remember `source:line`.

    Raises DataError, with source and line, for what is not strict YAML, not a mapping, does not
    begin with `---`, or does not end with `...` (it was cut short).
    """
    try:
        return [
            _document(start, node, end, source) for start, node, end in _Reader(text).documents()
        ]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = error.problem or error.context or "not YAML"
        cut = "" if text.rstrip().endswith("\n...") else " (no '...' at the end: was it cut short?)"
        raise DataError(f"{source}{line}: {problem}{cut}") from None
    except yaml.YAMLError as error:
        raise DataError(f"{source}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise DataError(f"{source}: nested too deeply") from None


def _document(start: Any, node: Node | None, end: Any, source: str) -> Document:
    line = start.start_mark.line + 1
    if not start.explicit:
        raise DataError(f"{source}:{line}: a document begins with '---'")
    if not end.explicit:
        raise DataError(
            f"{source}:{end.start_mark.line + 1}: the document that begins at line {line} does not"
            " end with '...'; it was cut short"
        )
    if not isinstance(node, MappingNode):
        raise DataError(f"{source}:{line}: a document is a mapping of keys to values")
    return _value(node, source)


def load_value(text: str) -> Any:
    """One value without document markers, as in `key=value`; DataError when it is not YAML."""
    try:
        node = next(_Reader(text).documents(), (None, None, None))[1]
        return None if node is None else _value(node, "")
    except yaml.MarkedYAMLError as error:
        raise DataError(str(error.problem or error.context)) from None
    except yaml.YAMLError as error:
        raise DataError(" ".join(str(error).split())) from None


def _value(node: Node, source: str) -> Any:
    """Plain Python data from a node."""
    if isinstance(node, MappingNode):
        return _mapping(node, source)
    if isinstance(node, SequenceNode):
        return [_value(item, source) for item in node.value]
    assert isinstance(node, ScalarNode)
    if node.style is not None:
        return node.value
    try:
        return scalar(node.value)
    except ValueError as error:  # thousands of digits
        raise _error(str(error), node) from None


def _mapping(node: MappingNode, source: str) -> Document:
    """A mapping whose keys are distinct strings; a key is its text, so `1:` and `no:` are too."""
    mapping: Document = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            raise _error("a key must be a string", key_node)
        key = Key(key_node.value)
        if key in mapping:
            raise _error(f"the key '{key}' stands twice", key_node)
        if source:
            key.origin = f"{source}:{key_node.start_mark.line + 1}"
        mapping[key] = _value(value_node, source)
    return mapping


class _Writer(yaml.SafeDumper):
    """PyYAML's writer, quoting whatever YAML 1.1 or our reader would not read as a string."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Writer.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Writer.add_multi_representer(str, lambda w, text: w.represent_scalar(_STRING, str(text)))
_Writer.add_multi_representer(PurePath, lambda w, path: w.represent_scalar(_STRING, str(path)))
_Writer.add_multi_representer(float, lambda w, number: w.represent_float(float(number)))


STYLE: Document = {"default_flow_style": None, "sort_keys": False, "allow_unicode": True}
STYLE |= {"explicit_start": True, "explicit_end": True, "width": math.inf}


def dump(document: Document) -> str:
    """The document as `---` … `...`, keys in their order, floats that read back as themselves.

    The sections stand in blocks, what is innermost in one line. Raises TypeError for what is
    neither a mapping, list, string, number, path, bool nor None.
    """
    stream = io.StringIO()
    writer = _Writer(stream, **STYLE)
    try:
        writer.open()
        root: Any = writer.represent_data(document)
        for _, section in root.value:
            section.flow_style = not section.value if isinstance(section, MappingNode) else None
        root.flow_style = False
        writer.serialize(root)
        writer.close()
    except yaml.representer.RepresenterError as error:
        raise TypeError(f"a manifest cannot hold {error.args[-1]!r}") from None
    finally:
        writer.dispose()
    return stream.getvalue()
