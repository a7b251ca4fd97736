"""What goes with what: objectives with views and batches, and the matrix that `--list` prints.

Everything is read off the classes: an objective says which views it takes (`crops`) and what heads
it has (`heads_kind`), a term what heads, parts, maps and views it asks for (`needs`, `split`,
`maps`, `portion`). A run is possible where its objective and its backbone both go with its terms.
"""

from types import ModuleType
from typing import Any

import torch

from equitools import augment, backbones, equivariance, objectives
from equitools.core.errors import UsageError
from equitools.manifest import schema
from equitools.nn.term import HEADS, Objective, Term, goes_with

CROPS = {
    "two": "two global views",
    "global": "two or more global views",
    "all": "two or more views, local crops too",
}


def check(name: str, objective: Objective, views: dict[str, Any], batch_size: int) -> None:
    """Refuse views that an objective cannot compare, and a batch that does not suit it.

    views: a resolved recipe's. Raises UsageError with what would work.
    """
    groups = {key: group for key, group in views.items() if _is_whole(group)}
    count = groups.get("global", {}).get("count", 0)
    local = [key for key in groups if key != "global"]
    wants = f"{name} compares {CROPS[objective.crops]}"
    if local and objective.crops != "all":
        others = " or ".join(n for n, o in _all_of(objectives).items() if o.crops == "all")
        raise UsageError(
            f"{wants} and takes no others; leave out views.{local[0]} (views.{local[0]}=null), or"
            f" choose an objective that takes local crops: {others}"
        )
    if count < 1 or (count < 2 and not local) or (count != 2 and objective.crops == "two"):
        raise UsageError(f"{wants}, and the recipe has {count}; say views.global.count=2")
    objective.check_batch(batch_size)


def check_actions(name: str, term: type[Term], views: dict[str, Any]) -> None:
    """Refuse views in which an operation that a term reads the numbers of is never carried out."""
    operations = augment.operations.menu()
    for action in term.actions:
        if action in operations and action not in augment.used(views, operations):
            raise UsageError(
                f"{name} reads by how much views differ in {action}, and these views have none; set"
                f" views.{action}"
            )


def _is_whole(group: object) -> bool:
    """Is this setting a group of views of every sample?"""
    return isinstance(group, dict) and "count" in group and not group.get("portion")


def with_objectives() -> list[tuple[str, str]]:
    """A table for people: which term goes with which objective, and what objectives want."""
    terms = _all_of(equivariance)
    rows = [("", _cells(list(terms), "views"))]
    for name, base in _all_of(objectives).items():
        marks = [_mark(goes_with(term, base), key) for key, term in terms.items()]
        target = "; keeps a target network" if base.target else ""
        rows.append((name, _cells(marks, CROPS[base.crops] + target)))
    return rows


def with_backbones() -> list[tuple[str, str]]:
    """A table for people: which term goes with which backbone of ours."""
    terms = _all_of(equivariance)
    rows = [("", _cells(list(terms)))]
    for name in backbones.menu():
        marks = [_mark(_has(name, term), key) for key, term in terms.items()]
        rows.append((name, _cells(marks)))
    return rows


def needs() -> list[tuple[str, str]]:
    """What each term asks of the rest of a recipe, in words."""
    return [(name, _of_term(term)) for name, term in _all_of(equivariance).items()]


def _all_of(namespace: ModuleType) -> dict[str, Any]:
    return {name: schema.pick(namespace, name) for name, _ in schema.menu(namespace)}


def _cells(texts: list[str], rest: str = "") -> str:
    return "  ".join([*texts, rest]).rstrip()


def _mark(yes: bool, heading: str) -> str:
    return f"{'yes' if yes else '-':{len(heading)}}"


def _of_term(term: type[Term]) -> str:
    needs = []
    if (kind := term.needs) is not None:
        bases = _all_of(objectives).items()
        having = ", ".join(name for name, base in bases if base.heads_kind == kind)
        needs.append(f"an objective with {HEADS[kind]} ({having})")
    if term.split:
        needs.append("backbone.split")
    if term.portion:
        needs.append("a view group with a portion of the batch")
    if term.maps:
        needs.append("maps of a block or stage")
    needs += [f"views with {action}" for action in term.actions]
    return "; ".join(needs) or "nothing"


def _has(backbone: str, term: type[Term]) -> bool:
    """Has a backbone of ours the inner maps that a term asks for, if it asks?"""
    if not term.maps:
        return True
    try:
        with torch.device("meta"):
            return backbones.create({"name": backbone}).channels(1) > 0
    except UsageError:
        return False
