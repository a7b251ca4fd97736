"""Accuracy over what is done to the pictures, or over a knob, as curves of several runs.

A curve's points are scores that are there already: `perturb/<test>/<column>/<part>/top1`, whose
column says what was done (ro90: within ±90°, at30: by 30°, et50: elastic with alpha 50), or one
score of runs whose recipes differ in one knob alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from equitools import tables
from equitools.errors import DataError

Point = tuple[Any, tables.Value]
Panel = dict[str, list[Point]]

GRID = "changed test pictures"
CURVES = {
    "ro": "rotated within ± degrees",
    "at": "rotated by degrees",
    "et": "elastic warp, alpha",
}
_COLUMN = re.compile(r"perturb/(\w+)/([^/]+)/(\w+)/top1")
_STRENGTH = re.compile(r"(ro|at|et)([\d.]+)")


def curves(documents: Sequence[dict[str, Any]], part: str = "all") -> dict[str, Panel]:
    """{what is done: {run: [(strength, accuracy)]}}, strength 0 being the untouched pictures."""
    found: dict[str, Panel] = {}
    for name, scores in _named(documents):
        for key, value in scores.items():
            column = _COLUMN.fullmatch(key)
            if column is None or column[1] == "grid" or column[3] != part:
                continue
            orig = scores.get(f"perturb/{column[1]}/orig/{part}/top1")
            if strength := _STRENGTH.fullmatch(column[2]):
                curve = found.setdefault(CURVES[strength[1]], {}).setdefault(name, [])
                if not curve and orig is not None:
                    curve.append((0.0, orig))
                curve.append((float(strength[2]), value))
    for panel in found.values():
        for curve in panel.values():
            curve.sort(key=lambda point: point[0])
    return found


def columns(documents: Sequence[dict[str, Any]], part: str = "all") -> dict[str, Panel]:
    """{GRID: {run: [(column, accuracy)]}} of the grid, in its order; empty without one."""
    found: Panel = {}
    for name, scores in _named(documents):
        for key, value in scores.items():
            column = _COLUMN.fullmatch(key)
            if column and column[1] == "grid" and column[3] == part:
                found.setdefault(name, []).append((column[2], value))
    return {GRID: found} if found else {}


def sweep(
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
        same: dict[float, list[tables.Value]] = {}
        for setting, value in zip(settings, values, strict=True):
            others = [i for i in range(len(keys)) if setting[i] != settings[0][i]]
            if others in ([], [place]):
                same.setdefault(setting[place], []).append(value)
        if len(same) > 1:
            found[key] = [(x, tables.pool(same[x])) for x in sorted(same)]
    if not found:
        raise DataError(f"the runs do not differ in {', '.join(keys)}")
    return found


def _knob(document: dict[str, Any], key: str) -> float:
    value: Any = document.get("recipe") or {}
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"a run of {tables.method(document)} has no number recipe.{key}")
    return float(value)


def _score(document: dict[str, Any], score: str) -> tables.Value:
    found = tables.summary(document.get("scores") or {})
    if score not in found:
        raise DataError(f"a run of {tables.method(document)} has no score {score}")
    return found[score]


def _named(documents: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, tables.Value]]]:
    """(name, scores) of documents that have perturbation scores; documents of one run are one."""
    runs: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for document in documents:
        scores = document.get("scores") or {}
        if not any(key.startswith("perturb/") for key in scores):
            continue
        digest = ((document.get("files") or {}).get("encoder") or {}).get("digest")
        words = tables.described(document)
        name = tables.named(document)
        key = f"{name} {digest} {words['data']}"
        if key not in names:
            taken = sum(other == name or other.startswith(f"{name} (") for other in names.values())
            names[key] = f"{name} ({taken + 1})" if taken else name
        runs.setdefault(names[key], {}).update(scores)
    return [(name, tables.summary(scores)) for name, scores in runs.items()]
