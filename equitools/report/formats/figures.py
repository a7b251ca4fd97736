"""Figures: lines, points and pictures side by side.

matplotlib is an extra; it is imported when a figure is drawn, without a display."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equitools.core.errors import EquiError
from equitools.report.scores import Curves

Figure = Any  # matplotlib's, which need not be installed
Axes = Any
Panel = tuple[str, np.ndarray, str]  # title, picture h w 3, and a text below it
SheetRow = tuple[str, np.ndarray, Sequence[Panel]]  # name, source picture h w 3, panels


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise EquiError("figures need matplotlib: pip install 'equitools[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def grid(panels: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels of a size in inches, and their axes, row by row.

    Raises EquiError without matplotlib.
    """
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure, axes = _pyplot().subplots(
        rows,
        columns,
        figsize=(size[0] * columns, size[1] * rows),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[panels:]:
        axis.axis("off")
    return figure, list(axes.flat[:panels])


def save(figure: Figure, path: Path) -> Path:
    """Write and close a figure. Raises EquiError for a file ending that matplotlib cannot write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise EquiError(f"{path}: {error}") from None
    finally:
        _pyplot().close(figure)
    return path


def lines(panels: dict[str, Curves], path: Path, measure: str) -> Path:
    """Draw panels of curves side by side, over numbers or over names."""
    figure, axes = grid(len(panels), columns=2, size=(5.6, 3.6))
    for axis, (title, runs) in zip(axes, panels.items(), strict=True):
        for name, points in runs.items():
            x, values = zip(*points, strict=True)
            mean, spread = [v.mean for v in values], [v.sd or 0.0 for v in values]
            axis.errorbar(x, mean, spread, marker="o", markersize=3, linewidth=1.2, label=name)
        axis.set(title=title, ylabel=measure)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return save(figure, path)


def scatter(panels: Sequence[tuple[str, np.ndarray, np.ndarray]], path: Path) -> Path:
    """Draw (title, points n 2, classes n) side by side, a color for each class, without axes."""
    figure, axes = grid(len(panels), columns=len(panels), size=(4.2, 4.4))
    for axis, (title, points, classes) in zip(axes, panels, strict=True):
        numbers = np.unique(classes, return_inverse=True)[1]
        axis.scatter(*points.T, c=numbers % 20, cmap="tab20", vmin=0, vmax=19, s=6, linewidths=0)
        axis.set_title(title, fontsize=8)
        axis.set(xticks=[], yticks=[])
    return save(figure, path)


# --- Pictures --------------------------------------------------------------------------------


def parameters(action: Mapping[str, Sequence[float]]) -> str:
    """What was done to one view, an operation a line; short numbers."""
    return "\n".join(
        f"{name} {' '.join(f'{value:.3g}' for value in values)}" for name, values in action.items()
    )


def contact_sheet(rows: Sequence[SheetRow], path: Path) -> Path:
    """Draw pictures beside their panels, such as views, the text of each printed under it."""
    columns = 1 + max(len(panels) for _, _, panels in rows)
    breaks = [text.count("\n") for _, _, panels in rows for _, _, text in panels]
    height = 1.9 + 0.105 * (1 + max(breaks, default=0))
    figure, axes = grid(len(rows) * columns, columns, size=(1.9, height))
    for i, (name, source, panels) in enumerate(rows):
        cells = [(name, source, f"{source.shape[1]}×{source.shape[0]}"), *panels]
        line = axes[i * columns : (i + 1) * columns]
        for axis, (title, image, text) in zip(line, cells, strict=False):
            axis.imshow(image, interpolation="nearest")
            axis.set_title(title, fontsize=7)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(text, fontsize=5, loc="left", family="monospace")
        for axis in line[len(cells) :]:
            axis.axis("off")
    return save(figure, path)


def heat(values: np.ndarray) -> np.ndarray:
    """Numbers h w in [0, 1] as colors h w 3 from dark to bright."""
    return _pyplot().get_cmap("inferno")(values.clip(0, 1))[..., :3]
