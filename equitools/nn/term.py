"""What terms share: which views meet, and whose heads a term goes with."""

from __future__ import annotations

from typing import Any

from equitools.core.errors import UsageError
from equitools.core.records import Features, Step


def global_views(step: Step) -> list[int]:
    """The indices of the views that a slow encoder sees, in the order of `step.target`."""
    return [i for i, view in enumerate(step.views) if view.group == "global"]


def two_views(step: Step, name: str) -> tuple[Features, Features]:
    """What the encoder says of the two global views; UsageError naming the objective otherwise."""
    found = [step.online[i] for i in global_views(step)]
    if len(found) != 2:
        raise UsageError(f"{name} compares two global views, not {len(found)}")
    return found[0], found[1]


def partners(step: Step) -> list[tuple[int, ...]]:
    """For every view the slow views that it is compared with, as positions in `step.target`.

    A view meets all slow views but its own. Raises UsageError when the slow views are not one for
    every global view, or when no two views can meet.
    """
    owners, found = global_views(step), len(step.target or [])
    if len(owners) != found:
        raise UsageError(f"{found} slow views for {len(owners)} global views")
    met = [
        tuple(i for i, owner in enumerate(owners) if owner != view)
        for view in range(len(step.views))
    ]
    if not any(met):
        raise UsageError("no two views to compare; say views.global.count=2")
    return met


# What a term may ask of an objective's heads (`needs` of the one, `pairs` of the other).
HEADS = {
    "distribution": "a head over prototypes",
    "projector": "a projector and a predictor",
}


def goes_with(term: Any, objective: Any) -> bool:
    """Has the objective the heads that the term asks for, if it asks? Classes or objects."""
    return getattr(term, "needs", None) in (None, getattr(objective, "pairs", None))


def check_pair(term: Any, name: str, dim: int, objective: Any) -> None:
    """Refuse a term whose objective has no heads of the kind that it pairs with, or no EF part."""
    if not goes_with(term, objective):
        other = type(objective).__name__.lower()
        raise UsageError(
            f"{name} does not go with {other}: it needs an objective with"
            f" {HEADS[term.needs]} (equi-pretrain --list shows the pairs)"
        )
    if dim < 1:
        raise UsageError(f"{name} needs an encoder that splits its output; say backbone.split=0.8")
