"""Accuracy over what is done to the pictures, as curves of several runs.

A curve's points are scores that are there already: `perturb/<test>/<column>/<part>/top1`, whose
column says what was done (ro90: within ±90°, at30: by 30°, et50: elastic with alpha 50).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from equitools.core.errors import DataError
from equitools.report.describe import described, named
from equitools.report.documents import Document, Documents, Where, required
from equitools.report.formats.tables import Format, Table, render, with_picture
from equitools.report.scores import Curves, Value, summary

GRID = "changed test pictures"
CURVES = {"ro": "rotated within ± degrees", "at": "rotated by degrees", "et": "elastic warp, alpha"}
_COLUMN = re.compile(r"perturb/(\w+)/([^/]+)/(\w+)/top1")
_STRENGTH = re.compile(r"(ro|at|et)([\d.]+)")


def robustness(
    documents: Documents, where: Where, *, part: str = "all", format: Format = "md"
) -> str:
    """Accuracy over the columns of the grid, angle and strength, drawn and as a table."""
    from equitools.report.formats import figures

    panels, numbers = perturbed(required(documents), part)
    picture = figures.lines(panels, where(Path.cwd()) / "robustness.png", "top-1")
    return with_picture(render(*numbers, format), picture, format)


def perturbed(documents: Documents, part: str) -> tuple[dict[str, Curves], Table]:
    """Panels for `figures.lines`, and the same numbers as a table with a column for each run.

    Raises DataError without a perturbation score.
    """
    panels = by_column(documents, part) | by_strength(documents, part)
    if not panels:
        raise DataError(
            f"no document has a perturbation score of part {part}; equi-perturb grid and"
            " equi-perturb invariance make them"
        )
    names = list(dict.fromkeys(name for runs in panels.values() for name in runs))
    rows: list[list[object]] = []
    for what, runs in panels.items():
        values = {name: dict(curve) for name, curve in runs.items()}
        for x in dict.fromkeys(x for curve in runs.values() for x, _ in curve):
            cells = [values.get(name, {}).get(x) for name in names]
            rows.append([what, x if isinstance(x, str) else f"{x:g}", *cells])
    return panels, (["pictures", "strength", *names], rows)


def by_column(documents: Documents, part: str = "all") -> dict[str, Curves]:
    """{GRID: {run: [(column, accuracy)]}} of the grid, in its order; empty without one."""
    curves: Curves = {}
    for run, test, column, value in _accuracies(documents, part):
        if test == "grid":
            curves.setdefault(run, []).append((column, value))
    return {GRID: curves} if curves else {}


def by_strength(documents: Documents, part: str = "all") -> dict[str, Curves]:
    """{what is done: {run: [(strength, accuracy)]}}, strength 0 being the untouched pictures."""
    panels: dict[str, Curves] = {}
    accuracies = [each for each in _accuracies(documents, part) if each[1] != "grid"]
    untouched = {each[:2]: each[3] for each in accuracies if each[2] == "orig"}
    for run, test, column, value in accuracies:
        if strength := _STRENGTH.fullmatch(column):
            curve = panels.setdefault(CURVES[strength[1]], {}).setdefault(run, [])
            if not curve and (run, test) in untouched:
                curve.append((0.0, untouched[run, test]))
            curve.append((float(strength[2]), value))
    for curves in panels.values():
        for curve in curves.values():
            curve.sort(key=lambda point: point[0])
    return panels


def _accuracies(documents: Documents, part: str) -> Iterator[tuple[str, str, str, Value]]:
    """(run, test, column, accuracy) of perturbed pictures; documents of one run are one."""
    runs: dict[str, Document] = {}
    names: dict[str, str] = {}
    for document in documents:
        scores = document.get("scores") or {}
        if not any(key.startswith("perturb/") for key in scores):
            continue
        digest = ((document.get("files") or {}).get("encoder") or {}).get("digest")
        name = named(document)
        key = f"{name} {digest} {described(document)['data']}"
        if key not in names:
            taken = sum(other == name or other.startswith(f"{name} (") for other in names.values())
            names[key] = f"{name} ({taken + 1})" if taken else name
        runs.setdefault(names[key], {}).update(scores)
    for run, scores in runs.items():
        for score, value in summary({"scores": scores}).items():
            column = _COLUMN.fullmatch(score)
            if column and column[3] == part:
                yield run, column[1], column[2], value
