"""A name and its knobs become an object, or an error that lists the choices.

The package namespace is the menu, and the signature is the schema: what is keyword-only in a
constructor is a knob, with its default and its annotation.
"""

import copy
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, Union

from equitools.core.errors import UsageError
from equitools.manifest.strict_yaml import scalar


def pick(namespace: object, name: str, what: str = "name") -> Any:
    """The public object called `name` in a module or mapping; UsageError with the choices."""
    choices = _public(namespace)
    if isinstance(name, str) and name in choices:
        return choices[name]
    raise UsageError(f"no {what} '{name}'; {_hint(str(name), choices)}")


def menu(namespace: object) -> list[tuple[str, str]]:
    """Each choice of a module or mapping with the first line of its docstring."""
    choices = _public(namespace).items()
    return [(name, (inspect.getdoc(it) or "").partition("\n")[0]) for name, it in choices]


def _public(namespace: object) -> dict[str, Any]:
    """What a namespace offers: `__all__` if it has one, else its public classes and functions."""
    if isinstance(namespace, dict):
        return namespace
    if hasattr(namespace, "__all__"):
        return {name: getattr(namespace, name) for name in vars(namespace)["__all__"]}
    return {
        name: thing
        for name, thing in vars(namespace).items()
        if not name.startswith("_") and callable(thing)
    }


def _hint(name: str, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(choices), n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"the choices are {', '.join(choices)}" if choices else "there is none"


def knobs(thing: Callable[..., Any], given: dict[str, Any], where: str) -> dict[str, Any]:
    """What was given, checked, with every keyword-only default of `thing` written back.

    where: the dotted path of the mapping, for messages; keys that come from a file name it and the
    line. Raises UsageError for an unknown key, a wrong type, or a knob that must be given.
    """
    known = _schema(thing)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in _parameters(thing))
    for key in given:
        if key not in known and not open_ended:
            raise UsageError(
                f"{_label(thing, where)} takes no '{key}'; {_hint(key, known)}"
                f" ({_place(where, key)})"
            )
    filled: dict[str, Any] = {}
    for key, (default, annotation) in known.items():
        if key in given:
            written = next(k for k in given if k == key)
            filled[key] = _fit(given[key], annotation, where, written)
        elif default is inspect.Parameter.empty:
            raise UsageError(f"{_label(thing, where)} needs '{key}' ({_place(where, key)})")
        else:
            filled[key] = _plain(copy.deepcopy(default))
    return filled | {key: value for key, value in given.items() if key not in known}


def together(*functions: Callable[..., Any]) -> Callable[..., Any]:
    """One signature with the keyword-only parameters of all: the schema of a mapping with both."""

    def both() -> None: ...

    own: list[inspect.Parameter] = []
    for function in functions:
        hints = typing.get_type_hints(function)
        own += [p for p in _parameters(function) if p.kind is p.KEYWORD_ONLY]
        both.__annotations__ |= {name: hints[name] for name in own_knobs(function)}
    both.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    return both


def own_knobs(thing: Callable[..., Any]) -> list[str]:
    """The names of a function's keyword-only parameters."""
    return [p.name for p in _parameters(thing) if p.kind is p.KEYWORD_ONLY]


def _schema(thing: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Keyword-only parameters: {name: (default, annotation)}."""
    function = thing.__init__ if inspect.isclass(thing) else thing
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # an annotation that only the type checker can see
        hints = {}
    own = [p for p in _parameters(thing) if p.kind is p.KEYWORD_ONLY]
    return {p.name: (p.default, hints.get(p.name, Any)) for p in own}


def _parameters(thing: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(thing).parameters.values())


def _label(thing: Callable[..., Any], where: str) -> str:
    """What the user calls the thing: a term by its name, a settings function by its section."""
    return thing.__name__.lower() if inspect.isclass(thing) else where


def _place(where: str, key: str) -> str:
    origin = getattr(key, "origin", "")
    return f"{where}.{key}" + (f", {origin}" if origin else "")


def _plain(value: object) -> object:
    """Tuples become lists, as YAML reads them back."""
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _fit(value: object, annotation: Any, where: str, key: str) -> object:
    try:
        return _coerce(value, annotation)
    except ValueError:
        raise UsageError(
            f"{_place(where, key)} is {_written(value)}; it must be {_describe(annotation)}"
        ) from None


def _written(value: object) -> str:
    return "null" if value is None else repr(value)


def _coerce(value: object, annotation: Any) -> object:
    """The value as its annotation wants it; ValueError when it cannot be."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments)
    if origin is Literal:
        if value in arguments:
            return value
    elif annotation is None or annotation is types.NoneType:
        if value is None:
            return None
    elif (origin or annotation) in (list, tuple):
        return _coerce_list(value, arguments, origin is tuple and arguments[-1:] != (...,))
    elif annotation is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif not isinstance(origin or annotation, type) or isinstance(value, origin or annotation):
        return value
    raise ValueError


def _coerce_union(value: object, members: tuple) -> object:
    """The member whose type is the value's own, else the first that the value can become."""
    exact = [m for m in members if (typing.get_origin(m) or m) is type(value)]
    for member in (*exact, *members):
        try:
            return _coerce(value, member)
        except ValueError:
            continue
    raise ValueError


def _coerce_list(value: object, arguments: tuple, fixed: bool) -> list:
    """A list of the arguments' types; `all,ir,ef` and a lone value are lists on a command line."""
    if isinstance(value, str):
        value = [scalar(item.strip()) for item in value.split(",")]
    elif not isinstance(value, (list, tuple)):
        value = [value] if value is not None and not isinstance(value, dict) else None
    if value is None or (fixed and arguments and len(value) != len(arguments)):
        raise ValueError
    wanted = arguments if fixed and arguments else (arguments[:1] or (Any,)) * len(value)
    return [_coerce(item, kind) for item, kind in zip(value, wanted, strict=True)]


def _describe(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (list, tuple):
        inner = ", ".join(dict.fromkeys(_describe(a) for a in arguments if a is not ...))
        return f"a list of {inner}" + (
            f" ({len(arguments)} of them)" if origin is tuple and ... not in arguments else ""
        )
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    words |= {list: "a list", tuple: "a list", dict: "a mapping", types.NoneType: "null"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))
