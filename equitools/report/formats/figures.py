"""Figures: lines, points and pictures side by side.

matplotlib is an extra; it is imported when a figure is drawn, without a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equitools.core.errors import EquiError


def pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise EquiError("figures need matplotlib: pip install 'equitools[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(plots: Any, figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:  # an ending that matplotlib cannot write
        raise EquiError(f"{path}: {error}") from None
    finally:
        plots.close(figure)
    return path


def lines(
    panels: dict[str, dict[str, list[tuple[Any, float, float | None]]]], path: Path, measure: str
) -> Path:
    """Draw {panel: {run: [(x, mean, sd or None)]}} side by side, over numbers or over names."""
    plots = pyplot()
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plots.subplots(
        rows, columns, figsize=(5.6 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )
    for axis, (title, runs) in zip(axes.flat, panels.items(), strict=False):
        for name, points in runs.items():
            x, mean, sd = zip(*points, strict=True)
            spread = [value or 0.0 for value in sd]
            axis.errorbar(x, mean, spread, marker="o", markersize=3, linewidth=1.2, label=name)
        axis.set(title=title, ylabel=measure)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    return save(plots, figure, path)


# --- Points ----------------------------------------------------------------------------------


def scatter(panels: Sequence[tuple[str, np.ndarray, np.ndarray]], path: Path) -> Path:
    """Draw (title, points n 2, classes n) side by side, a color for each class, without axes.

    Raises EquiError without matplotlib or for a file ending that it cannot write.
    """
    plots = pyplot()
    figure, axes = plots.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 4.4), squeeze=False, layout="constrained"
    )
    for axis, (title, points, classes) in zip(axes[0], panels, strict=True):
        numbers = np.unique(classes, return_inverse=True)[1]
        axis.scatter(*points.T, c=numbers % 20, cmap="tab20", vmin=0, vmax=19, s=6, linewidths=0)
        axis.set_title(title, fontsize=8)
        axis.set(xticks=[], yticks=[])
    return save(plots, figure, path)


# --- Views -----------------------------------------------------------------------------------


def parameters(action: dict[str, Sequence[float]]) -> str:
    """What was done to one view, an operation a line; short numbers."""
    return "\n".join(
        f"{name} {' '.join(f'{value:.3g}' for value in values)}" for name, values in action.items()
    )


def contact_sheet(
    rows: Sequence[tuple[str, np.ndarray, Sequence[tuple[str, np.ndarray, str]]]], path: Path
) -> Path:
    """Draw pictures beside their views, the parameters of each printed under it.

    rows: (name, source picture h w 3, [(title, view h w 3, parameters)]), one for each picture.
    Raises EquiError without matplotlib or for a file ending that it cannot write.
    """
    plots = pyplot()
    columns = 1 + max(len(views) for _, _, views in rows)
    text_lines = max((text.count("\n") + 1 for _, _, v in rows for _, _, text in v), default=1)
    height = 1.9 + 0.105 * text_lines
    figure, axes = plots.subplots(
        len(rows), columns, figsize=(1.9 * columns, height * len(rows)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for line, (name, source, views) in zip(axes, rows, strict=True):
        cells = [(name, source, f"{source.shape[1]}×{source.shape[0]}"), *views]
        for axis, (title, image, text) in zip(line, cells, strict=False):
            axis.imshow(image, interpolation="nearest")
            axis.set_title(title, fontsize=7)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(text, fontsize=5, loc="left", family="monospace")
        for axis in line[len(cells) :]:
            axis.axis("off")
    return save(plots, figure, path)


def heat(values: np.ndarray) -> np.ndarray:
    """Numbers h w in [0, 1] as colors h w 3 from dark to bright."""
    plots = pyplot()
    return plots.get_cmap("inferno")(values.clip(0, 1))[..., :3]
