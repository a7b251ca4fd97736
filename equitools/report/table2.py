"""Table 2 of CLeVER (Song et al., 2024): linear probes, and what their backbones cost."""

from collections.abc import Sequence
from pathlib import Path

from equitools.core.errors import DataError
from equitools.core.files import write_atomic
from equitools.report import paper
from equitools.report.describe import method
from equitools.report.documents import Document, Documents, Where, table_layer
from equitools.report.formats.tables import Format, render
from equitools.report.scores import Value, summary

SCORE = "probe/linear/all/"
NUMBERS = ("#Params", "GFLOPs", "Top-1 paper", "Top-5 paper", "Top-1 ours", "Top-5 ours")


def table2(
    documents: Documents,
    where: Where,
    layers: Document,
    out: Path | None,
    *,
    scale: str = "mini",
    count: bool = True,
    format: Format = "md",
) -> str:
    """The paper's Table 2, ours beside it; with -o DIR also as DIR/table2.csv.

    count: measure parameters and operations of the paper's backbones.
    """
    table = table_layer(layers, "table2")
    if not count:
        table = table | {"backbones": {}}
    rows = paper.rows(table, documents, scale)
    for document in documents:
        _check_score(document)
    records = [record(row) for row in rows]
    whole = render(list(records[0]), [list(line.values()) for line in records], "csv")
    if out is not None:
        write_atomic(where(out) / "table2.csv", whole)
    if format == "csv":
        return whole
    columns = [*table["labels"].values(), *NUMBERS, "Ours ran", "Status"]
    text = render(columns, map(printed, rows), format)
    return f"{table['caption']}\n\n{text}\n{_notes(rows, table, scale)}" if format == "md" else text


def _check_score(document: Document) -> None:
    """DataError for a document without a linear probe."""
    names = summary(document)
    if not any(name.startswith(SCORE) for name in names):
        raise DataError(
            f"a document of {method(document)} has no score {SCORE[:-1]};"
            f" it has {', '.join(names) or 'none'}"
        )


def record(row: paper.Row) -> dict[str, object]:
    """A row for programs: millions, 10⁹ multiply-adds, percent; None is unknown."""
    line = dict(zip(("method", "epochs", "rotation", "backbone"), row.labels, strict=True))
    for key, printed, ours in zip(("params", "gflops"), row.paper, row.ours, strict=False):
        line |= {f"paper_{key}": printed, f"ours_{key}": ours and round(ours.mean, 3)}
    line |= {"paper_top1": row.paper[2], "paper_top5": row.paper[3]}
    for key, value in zip(("top1", "top5"), row.ours[2:], strict=True):
        mean, sd = (value.mean, value.sd) if value else (None, None)
        line |= {f"ours_{key}": mean and round(mean, 2), f"ours_{key}_sd": sd and round(sd, 2)}
    run = paper.trained_as(row.documents[0]) if row.documents else {}
    line |= {f"ours_{key}": run.get(key) or None for key in ("backbone", "epochs", "data")}
    return line | {"ours_runs": len(row.documents) or None, "status": row.status}


def printed(row: paper.Row) -> list[object]:
    """A row for people."""
    params, gflops, top1, top5 = row.ours
    costs = _cost(row.paper[0], params, "M", 1), _cost(row.paper[1], gflops, "G", 2)
    scores = *row.paper[2:], _percent(top1), _percent(top5)
    return [*row.marks, *costs, *scores, row.ran, row.status]


def _cost(paper: float | None, ours: Value | None, unit: str, digits: int) -> str | None:
    """What we count; beside it the paper's number where they differ; `*` marks a number that is
    only the paper's."""
    if ours is None:
        return None if paper is None else f"{paper:.{digits}f}{unit}*"
    text = f"{ours.mean:.{digits}f}{unit}"
    return text if paper in (None, round(ours.mean, digits)) else f"{text} (paper {paper}{unit})"


def _percent(value: Value | None) -> str | None:
    if value is None:
        return None
    return f"{value.mean:.1f}" + ("" if value.sd is None else f" ± {value.sd:.1f}")


def _notes(rows: Sequence[paper.Row], table: Document, scale: str) -> str:
    """What a reader has to know about the table before comparing."""
    measured = sum(row.ours[2] is not None for row in rows)
    costs = "the paper's (*)."
    if any(row.ours[0] for row in rows):
        costs = "counted on the backbones that are named; * only the paper's number."
    lines = [
        f"Ours: rows measured: {measured}; scale {scale}: {table['scales'][scale]}.",
        "± is the spread over runs where a row has several, else over seeds of the probe.",
        paper.NOT_COMPARABLE,
        f"#Params and GFLOPs are {costs}",
    ]
    return "".join(f"- {line}\n" for line in lines)
