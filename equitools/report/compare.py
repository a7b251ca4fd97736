"""A paper's table for people and programs: `paper / ours` in a cell, or in columns apart."""

from collections.abc import Sequence

from equitools.core.errors import UsageError
from equitools.report import paper
from equitools.report.documents import Document, Documents, Where
from equitools.report.formats.tables import Format, Table, render
from equitools.report.scores import Value


def compare(
    documents: Documents,
    where: Where,
    layers: Document,
    *,
    scale: str = "mini",
    format: Format = "md",
) -> str:
    """The paper's table that came with the stream, ours beside each of its numbers.

    The tables are manifests/table/clever-*.yaml and ser-*.yaml. CSV has paper and ours apart.
    """
    table = layers.get("table")
    if not table or "columns" not in table:
        raise UsageError(
            "compare needs a table with columns: cat manifests/table/ser-table1.yaml …"
        )
    rows = paper.rows(table, documents, scale)
    text = render(*(apart if format == "csv" else beside)(table, rows), format)
    return f"{table['caption']}\n\n{text}\n{notes(table, scale)}" if format == "md" else text


def beside(table: Document, rows: Sequence[paper.Row]) -> Table:
    """Columns and rows for people: `paper / ours` in every cell."""
    names = [column["name"] for column in table["columns"]]
    lines = [
        [*row.marks, *map(_both, table["columns"], row.paper, row.ours), row.ran, row.status]
        for row in rows
    ]
    return [*table["labels"].values(), *names, "Ours ran", "Status"], lines


def _both(column: Document, printed: float | None, ours: Value | None) -> str | None:
    if printed is None and ours is None:
        return None
    text = f"{ours.mean:.2f}" if ours and column.get("score") in paper.COUNTED else str(ours)
    return f"{'—' if printed is None else printed} / {'—' if ours is None else text}"


def apart(table: Document, rows: Sequence[paper.Row]) -> Table:
    """The same for programs: paper, ours and standard deviation in columns of their own."""
    columns = list(table["labels"])
    for column in table["columns"]:
        columns += [f"{column['name']} {kind}" for kind in ("paper", "ours", "sd")]
    lines = []
    for row in rows:
        cells: list[float | None] = []
        for printed, ours in zip(row.paper, row.ours, strict=True):
            cells += [printed, *((ours.mean, ours.sd) if ours else (None, None))]
        lines.append([*row.labels, *cells, row.ran, row.status])
    return [*columns, "ran", "status"], lines


def notes(table: Document, scale: str) -> str:
    """What a reader has to know before comparing, and what is not here yet."""
    missing = list(dict.fromkeys(c["missing"] for c in table["columns"] if "missing" in c))
    needs = list(dict.fromkeys(c["needs"] for c in table["columns"] if "needs" in c))
    lines = [
        "Each cell: paper / ours.",
        f"Ours, scale {scale}: {table['scales'][scale]}.",
        "± is the spread over runs where a row has several, else over seeds of the evaluation.",
        paper.NOT_COMPARABLE,
    ]
    if any(column.get("score") == "parameters" for column in table["columns"]):
        lines.append("Param: trained parameters, counted on the paper's own recipe.")
    lines += table.get("notes", [])
    if needs:
        lines.append(f"Data that make is told of, at any scale: {'; '.join(needs)}.")
    if missing:
        lines.append(f"Columns that are not measured here yet: {', '.join(missing)}.")
    return "".join(f"- {line}\n" for line in lines)
