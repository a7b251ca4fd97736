"""Accuracy over what is done to the pictures, or over a knob, as curves of several runs.

A curve's points are scores that are there already: `perturb/<test>/<column>/<part>/top1`, whose
column says what was done (ro90: within ±90°, at30: by 30°, et50: elastic with alpha 50), or one
score of runs whose recipes differ in one knob alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equitools.core.errors import DataError
from equitools.report.describe import described, named
from equitools.report.documents import Documents, Where
from equitools.report.formats import tables
from equitools.report.formats.tables import Format, with_picture
from equitools.report.scores import Value, summary

Point = tuple[Any, Value]
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


def _named(documents: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Value]]]:
    """(name, scores) of documents that have perturbation scores; documents of one run are one."""
    runs: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for document in documents:
        scores = document.get("scores") or {}
        if not any(key.startswith("perturb/") for key in scores):
            continue
        digest = ((document.get("files") or {}).get("encoder") or {}).get("digest")
        words = described(document)
        name = named(document)
        key = f"{name} {digest} {words['data']}"
        if key not in names:
            taken = sum(other == name or other.startswith(f"{name} (") for other in names.values())
            names[key] = f"{name} ({taken + 1})" if taken else name
        runs.setdefault(names[key], {}).update(scores)
    return [(name, summary(scores)) for name, scores in runs.items()]


def robustness(
    documents: Documents, where: Where, *, part: str = "all", format: Format = "md"
) -> str:
    """Draw robustness.png: accuracy of every run over the columns of the grid, and over angle and
    strength where equi-perturb swept them; the numbers as a table."""
    from equitools.report.formats import figures

    panels, columns, rows = perturbed(documents, part)
    drawn = figures.lines(panels, where(Path.cwd()) / "robustness.png", "top-1")
    return with_picture(tables.render(columns, rows, format), drawn, format)


def perturbed(documents: Documents, part: str) -> tuple[dict[str, Any], list[str], list[list[Any]]]:
    """Panels for `figures.lines`, and the same numbers as a table with a column for each run.

    Raises DataError without a perturbation score.
    """
    panels = columns(documents, part) | curves(documents, part)
    if not panels:
        raise DataError(
            f"no document has a perturbation score of part {part}; equi-perturb grid and"
            " equi-perturb invariance make them"
        )
    names = list(dict.fromkeys(name for runs in panels.values() for name in runs))
    rows = []
    for what, runs in panels.items():
        points = dict.fromkeys(x for name in runs for x, _ in runs[name])
        found = {name: dict(curve) for name, curve in runs.items()}
        rows += [[what, x if isinstance(x, str) else f"{x:g}",
                  *(found.get(name, {}).get(x) for name in names)] for x in points]  # fmt: skip
    drawn = {
        what: {name: [(x, y.mean, y.sd) for x, y in curve] for name, curve in runs.items()}
        for what, runs in panels.items()
    }
    return drawn, ["pictures", "strength", *names], rows
