"""What runs wrote while they trained, and the same drawn over epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from equitools import manifest
from equitools.core.errors import DataError
from equitools.report.describe import described
from equitools.report.formats.figures import pyplot, save
from equitools.training.metrics import read_lines


def unfinished(folder: Path) -> bool:
    """Does a folder hold a run that has metrics but no manifest yet?"""
    return (folder / "metrics.jsonl").is_file() and not (folder / "manifest.yaml").is_file()


def metrics(
    documents: Sequence[dict[str, Any]], files: Iterable[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """{name: lines of metrics.jsonl} of every document, then of every file.

    Raises DataError for a document that names no metrics and for a file that is not there.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        entry = (document.get("files") or {}).get("metrics")
        if entry is None:
            raise DataError("a document has no files.metrics; equi-pretrain writes them")
        words = described(document)
        name = " ".join(words[key] for key in ("method", "backbone", "data") if words[key])
        label = name if name not in found else f"{name} ({len(found) + 1})"
        found[label] = read_lines(manifest.locate(entry, "metrics"))
    for path in map(Path, files):
        if not path.is_file():
            raise DataError(f"no file {path}")
        label = f"{path.parent} (not finished)" if unfinished(path.parent) else str(path)
        found[label] = read_lines(path)
    return found


# Panels of the curves, in order: what stands in each and how its axis is scaled.
PANELS = ("loss", "losses", "lr", "head log10 Σp²", "mean |z|", "effective rank", "kNN top-1")
LOGARITHMIC = ("mean |z|",)


# --- Curves ----------------------------------------------------------------------------------


def series(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """{panel: {curve: [(epoch, value)]}} of the lines of a metrics.jsonl; empty panels left out."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in PANELS}
    for line in lines:
        for panel, curve, value in _points(line):
            if isinstance(value, int | float) and math.isfinite(value):
                panels[panel].setdefault(curve, []).append((float(line["epoch"]), float(value)))
    return {name: curves for name, curves in panels.items() if curves}


def _points(line: dict[str, Any]) -> Iterable[tuple[str, str, Any]]:
    """(panel, curve, value) of everything one line says."""
    for name in ("loss", "lr"):
        if name in line:
            yield name, name, line[name]
    for name, value in (line.get("losses") or {}).items():
        yield "losses", name, value
    for name, value in (line.get("watch") or {}).items():
        last = name.rpartition("/")[2]
        if last in ("h_I", "h_V"):
            yield "head log10 Σp²", last, value
        elif last in ("z_I", "z_V"):
            yield "mean |z|", last, value
        elif last.startswith("rank_"):
            yield "effective rank", last, value
    for name, value in (line.get("knn") or {}).items():
        if "top1" in name:
            yield "kNN top-1", name, value


def curves(runs: dict[str, list[dict[str, Any]]], path: Path) -> Path:
    """Draw the curves of some runs ({name: lines of metrics.jsonl}) into a PNG, PDF or SVG file.

    One panel for each quantity over epochs, one line style for each run. Raises DataError when no
    run has a metric, EquiError without matplotlib.
    """
    drawn = {name: series(lines) for name, lines in runs.items()}
    panels = [panel for panel in PANELS if any(panel in found for found in drawn.values())]
    if not panels:
        raise DataError(f"no metrics in {', '.join(runs) or 'no run'}")
    plots = pyplot()
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plots.subplots(
        rows, columns, figsize=(4.5 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        for (run, found), style in zip(
            drawn.items(), ["-", "--", ":", "-."] * len(drawn), strict=False
        ):
            for curve, points in found.get(panel, {}).items():
                label = curve if len(drawn) == 1 else f"{run} {curve}"
                marker = "." if len(points) == 1 else ""
                axis.plot(
                    *zip(*points, strict=True), style, linewidth=1.2, marker=marker, label=label
                )
        axis.set(title=panel, xlabel="epoch", yscale="log" if panel in LOGARITHMIC else "linear")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    return save(plots, figure, path)
