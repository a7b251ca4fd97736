"""A score over knobs that runs differ in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equitools.core.errors import DataError
from equitools.report.describe import method
from equitools.report.documents import Documents, Where
from equitools.report.formats import tables
from equitools.report.formats.tables import Format, with_picture
from equitools.report.robustness import Point
from equitools.report.scores import Value, pool, summary


def sweep(
    documents: Documents,
    where: Where,
    *,
    keys: list[str],
    score: str = "probe/linear/all/top1",
    format: Format = "md",
) -> str:
    """Draw sweep.png: a score over each of some knobs of the recipe (backbone.split,…), of the runs
    that differ from the first document in that knob alone; the numbers as a table."""
    from equitools.report.formats import figures

    found = along(documents, keys, score)
    panels = {key: {score: [(f"{x:g}", y.mean, y.sd) for x, y in curve]}
              for key, curve in found.items()}  # fmt: skip
    drawn = figures.lines(panels, where(Path.cwd()) / "sweep.png", "top-1")
    rows = [[key, f"{x:g}", y] for key, curve in found.items() for x, y in curve]
    return with_picture(tables.render(["knob", "value", score], rows, format), drawn, format)


def along(
    documents: Sequence[dict[str, Any]], keys: Sequence[str], score: str
) -> dict[str, list[Point]]:
    """{knob: [(its value, score)]} of the runs that differ from the first in that knob alone.

    keys: knobs of the recipe that are compared, dotted. Runs of the same values are pooled. Raises
    DataError when a document has no such score or knob, or nothing differs.
    """
    if not documents:
        raise DataError("a sweep needs the documents of runs; pipe them in")
    settings = [tuple(_knob(document, key) for key in keys) for document in documents]
    values = [_score(document, score) for document in documents]
    found: dict[str, list[Point]] = {}
    for place, key in enumerate(keys):
        same: dict[float, list[Value]] = {}
        for setting, value in zip(settings, values, strict=True):
            others = [i for i in range(len(keys)) if setting[i] != settings[0][i]]
            if others in ([], [place]):
                same.setdefault(setting[place], []).append(value)
        if len(same) > 1:
            found[key] = [(x, pool(same[x])) for x in sorted(same)]
    if not found:
        raise DataError(f"the runs do not differ in {', '.join(keys)}")
    return found


def _knob(document: dict[str, Any], key: str) -> float:
    value: Any = document.get("recipe") or {}
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"a run of {method(document)} has no number recipe.{key}")
    return float(value)


def _score(document: dict[str, Any], score: str) -> Value:
    found = summary(document.get("scores") or {})
    if score not in found:
        raise DataError(f"a run of {method(document)} has no score {score}")
    return found[score]
