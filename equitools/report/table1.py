"""Magnitudes of heads and representations over epochs (Song et al., 2024, Table 1)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from equitools.core.errors import DataError
from equitools.report.documents import Document, Documents, Where, read_metrics, table_layer
from equitools.report.formats.tables import Format, render

HEADS = ("h_V", "h_I", "z_V", "z_I")


def table1(
    documents: Documents,
    where: Where,
    layers: Document,
    *,
    epochs: tuple[float, ...] = (),
    metrics: tuple[str, ...] = (),
    format: Format = "md",
) -> str:
    """log10 of heads (Σp²) and representations (mean |z|) by epoch, CLeVER's Table 1 below.

    metrics: files metrics.jsonl of runs that have no manifest, because they are not finished.
    """
    paper = table_layer(layers, "table1")
    rows: list[list[object]] = []
    for name, lines in read_metrics(documents, metrics).items():
        run = magnitudes(lines)
        if not run:
            raise DataError(f"{name}: no watch step in its metrics; recipe.watch_every sets them")
        rows += [
            [name, f"{row['epoch']:.4g}", int(row["step"]), *_cells(row)]
            for row in at_epochs(run, epochs or usual_epochs(run))
        ]
    rows += [[row["run"], row["epoch"], None, *_cells(row)] for row in paper["rows"]]
    text = render(["run", "epoch", "step", *HEADS, "status"], rows, format)
    return f"{paper['caption']}\n\n{text}" if format == "md" else text


def _cells(row: dict[str, float]) -> list[str]:
    heads = [f"{row[name]:.2f}" if name in row else "" for name in HEADS]
    return [*heads, verdict(row)]


def magnitudes(lines: Iterable[dict[str, Any]]) -> list[dict[str, float]]:
    """`epoch`, `step` and log10 of heads and representations (HEADS) at every watch step of a run.

    lines: the objects of metrics.jsonl, where h is log10 Σp² already and z is a mean |z|.
    """
    rows = []
    for line in lines:
        watch = {key.rpartition("/")[2]: value for key, value in (line.get("watch") or {}).items()}
        row = {"epoch": float(line.get("epoch", 0)), "step": float(line.get("step", 0))}
        row |= {name: float(watch[name]) for name in HEADS if name in watch}
        for name in ("z_V", "z_I"):
            if name in row:
                row[name] = math.log10(row[name]) if row[name] > 0 else -math.inf
        if len(row) > 2:
            rows.append(row)
    return rows


def at_epochs(rows: list[dict[str, float]], epochs: Sequence[float]) -> list[dict[str, float]]:
    """The rows nearest to some epochs, each once, those beyond the run left out."""
    last = rows[-1]["epoch"] if rows else 0.0
    reach = last + max(0.5, 0.05 * last)
    near = [min(rows, key=lambda r: abs(r["epoch"] - e)) for e in epochs if e <= reach]
    return [row for i, row in enumerate(near) if row not in near[:i]]


def usual_epochs(rows: list[dict[str, float]]) -> list[float]:
    """The paper's epochs where the run is that long, else five of its own, evenly spaced."""
    last = rows[-1]["epoch"] if rows else 0.0
    if last >= 50:
        return [epoch for epoch in (10.0, 50.0, 100.0, 200.0) if epoch < last] + [last]
    return [rows[round(i * (len(rows) - 1) / 4)]["epoch"] for i in range(5)] if rows else []


def verdict(row: dict[str, float]) -> str:
    """The paper's words for a row: two decades between heads or representations are a collapse.

    Where the invariant representation has gone as well (mean |z| below 1e-3) it is another one.
    """
    if "h_V" not in row or "h_I" not in row:
        return "one head"
    z_I, z_V = row.get("z_I", 0.0), row.get("z_V", 0.0)
    if z_I < -3 and z_V < -3:
        return "both parts collapse"
    gap = max(row["h_I"] - row["h_V"], z_I - z_V)
    return "collapse / trivial solution" if gap > 2 else "similar projection"
