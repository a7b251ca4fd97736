"""A score over knobs that runs differ in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equitools.core.errors import DataError
from equitools.report.describe import method
from equitools.report.documents import Document, Documents, Where, required
from equitools.report.formats.tables import Format, render, with_picture
from equitools.report.scores import Curves, Value, pool, summary


def sweep(
    documents: Documents,
    where: Where,
    *,
    keys: list[str],
    score: str = "probe/linear/all/top1",
    format: Format = "md",
) -> str:
    """A score over knobs that runs differ in, drawn and as a table: keys=backbone.split,…

    Each knob of the recipe is of the runs that differ from the first document in it alone.
    """
    from equitools.report.formats import figures

    curves = along(required(documents), keys, score)
    panels = {key: {score: [(f"{x:g}", y) for x, y in curve]} for key, curve in curves.items()}
    picture = figures.lines(panels, where(Path.cwd()) / "sweep.png", "top-1")
    rows = [[key, f"{x:g}", y] for key, curve in curves.items() for x, y in curve]
    return with_picture(render(["knob", "value", score], rows, format), picture, format)


def along(documents: Documents, keys: Sequence[str], score: str) -> Curves:
    """{knob: [(its value, score)]} of the runs that differ from the first in that knob alone.

    keys: knobs of the recipe that are compared, dotted. Runs of the same values are pooled. Raises
    DataError when a document has no such score or knob, or nothing differs.
    """
    settings = [tuple(_knob(document, key) for key in keys) for document in documents]
    values = [_score(document, score) for document in documents]
    curves: Curves = {}
    for place, key in enumerate(keys):
        same: dict[float, list[Value]] = {}
        for setting, value in zip(settings, values, strict=True):
            others = [i for i in range(len(keys)) if setting[i] != settings[0][i]]
            if others in ([], [place]):
                same.setdefault(setting[place], []).append(value)
        if len(same) > 1:
            curves[key] = [(x, pool(same[x])) for x in sorted(same)]
    if not curves:
        raise DataError(f"the runs do not differ in {', '.join(keys)}")
    return curves


def _knob(document: Document, key: str) -> float:
    value: Any = document.get("recipe") or {}
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"a run of {method(document)} has no number recipe.{key}")
    return float(value)


def _score(document: Document, score: str) -> Value:
    scores = summary(document)
    if score not in scores:
        raise DataError(f"a run of {method(document)} has no score {score}")
    return scores[score]
