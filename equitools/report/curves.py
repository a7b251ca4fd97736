"""Losses, rates and the collapse watch over epochs."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from equitools.core.errors import DataError
from equitools.report.documents import Documents, Metrics, Where, home, read_metrics
from equitools.report.formats.figures import grid, save

# Panels in order, and those whose axis is logarithmic.
WATCHED = {"h": "head log10 Σp²", "z": "mean |z|", "rank": "effective rank"}
PANELS = ("loss", "losses", "lr", *WATCHED.values(), "kNN top-1")
LOGARITHMIC = ("mean |z|",)
STYLES = ("-", "--", ":", "-.")
Panels = dict[str, dict[str, list[tuple[float, float]]]]


def curves(documents: Documents, where: Where, *, metrics: tuple[str, ...] = ()) -> Path:
    """Losses, rates and the collapse watch over epochs, as a picture (curves.png).

    metrics: files metrics.jsonl of runs that have no manifest, because they are not finished.
    """
    runs = read_metrics(documents, metrics)
    folder = home(documents[0], "metrics") if documents else Path(metrics[0]).parent
    return draw(runs, where(folder) / "curves.png")


def series(lines: Metrics) -> Panels:
    """{panel: {curve: [(epoch, value)]}} of the lines of a metrics.jsonl; empty panels left out."""
    panels: Panels = {name: {} for name in PANELS}
    for line in lines:
        for panel, curve, value in _points(line):
            if isinstance(value, int | float) and math.isfinite(value):
                panels[panel].setdefault(curve, []).append((float(line["epoch"]), float(value)))
    return {name: curves for name, curves in panels.items() if curves}


def _points(line: dict[str, Any]) -> Iterable[tuple[str, str, object]]:
    """(panel, curve, value) of everything one line says."""
    for name in ("loss", "lr"):
        if name in line:
            yield name, name, line[name]
    for name, value in (line.get("losses") or {}).items():
        yield "losses", name, value
    for name, value in (line.get("watch") or {}).items():
        last = name.rpartition("/")[2]
        if panel := WATCHED.get(last.partition("_")[0]):
            yield panel, last, value
    for name, value in (line.get("knn") or {}).items():
        if "top1" in name:
            yield "kNN top-1", name, value


def draw(runs: dict[str, Metrics], path: Path) -> Path:
    """Draw the curves of some runs into a PNG, PDF or SVG file.

    One panel for each quantity over epochs, one line style for each run. Raises DataError when no
    run has a metric, EquiError without matplotlib.
    """
    panels_of = {name: series(lines) for name, lines in runs.items()}
    panels = [panel for panel in PANELS if any(panel in own for own in panels_of.values())]
    if not panels:
        raise DataError(f"no metrics in {', '.join(runs) or 'no run'}")
    figure, axes = grid(len(panels), columns=3, size=(4.5, 3.2))
    for axis, panel in zip(axes, panels, strict=True):
        for i, (run, own) in enumerate(panels_of.items()):
            for curve, points in own.get(panel, {}).items():
                axis.plot(
                    *zip(*points, strict=True),
                    STYLES[i % len(STYLES)],
                    linewidth=1.2,
                    marker="." if len(points) == 1 else "",
                    label=curve if len(runs) == 1 else f"{run} {curve}",
                )
        axis.set(title=panel, xlabel="epoch", yscale="log" if panel in LOGARITHMIC else "linear")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return save(figure, path)
