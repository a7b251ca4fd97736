"""A paper's table, our number beside each of its numbers.

The table is data (manifests/table/ser-*.yaml, clever-*.yaml): columns that name a score or say what
is missing, and rows with what the paper prints and the cell that measures it. A result belongs to a
row when its recipe, every default written back, is the one that the row's cell spells.
A column or row with `where` reads the documents that say so alone (transfer.label, probe.split);
`needs` says which folder would provide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equitools.core.errors import UsageError
from equitools.manifest.cells import document_of
from equitools.report.describe import described, encoder, method
from equitools.report.scores import Value, pool, summary

SECTIONS = ("objective", "equivariance", "backbone", "views", "optimizer")


def compare(
    table: dict[str, Any], documents: Sequence[dict[str, Any]], scale: str
) -> list[dict[str, Any]]:
    """The rows of a table, each {labels, paper, ours: [...], ran, status}, in its order.

    ours holds a tables.Value (spread over runs where there are several) or None for each column.
    Documents that are no row of the table come last. Raises UsageError for an unknown scale.
    """
    if scale not in table["scales"]:
        raise UsageError(f"scale is '{scale}'; it is one of {', '.join(table['scales'])}")
    known = [(identity(document), document) for document in documents]
    rows, taken = [], []
    for row in table["rows"]:
        cell = (row.get("cells") or {}).get(scale)
        wanted = identity(document_of(cell)) if cell else None
        ours = [document for found, document in known if found == wanted]
        taken += ours
        if "paper" in row or cell:
            rows.append(_row(table, row, ours, scale))
    left = [document for document in documents if not any(document is one for one in taken)]
    return rows + [_own(table, document, scale) for document in left]


def identity(document: dict[str, Any]) -> dict[str, Any]:
    """What two runs share when they are runs of one cell: all that shapes the encoder but data,
    epochs, batch and seed. Of an encoder that nobody trained, its backbone."""
    asked, recipe = encoder(document), document.get("recipe") or {}
    if asked is not None or "objective" not in recipe:
        return {"encoder": asked, "backbone": (recipe.get("backbone") or {}).get("name")}
    from equitools.training.recipe import resolve

    full = resolve(recipe)
    return {"encoder": asked, **{section: full[section] for section in SECTIONS}}


def _row(
    table: dict[str, Any], row: dict[str, Any], ours: list[dict[str, Any]], scale: str
) -> dict[str, Any]:
    scores = [summary(document.get("scores") or {}) for document in ours]
    own: list[Value | None] = []
    for column in table["columns"]:
        name = score(column, row, scale)
        values = [
            found[name]
            for document, found in zip(ours, scores, strict=True)
            if name in found and said(document, column, scale) and said(document, row, scale)
        ]
        own.append(pool(values) if values else None)
        if name == "parameters":
            own[-1] = trained((row.get("cells") or {}).get("paper"))
    return {
        "labels": [row.get(key) for key in table["labels"]],
        "paper": row.get("paper") or [None] * len(table["columns"]),
        "ours": own,
        "ran": _ran(ours),
        "status": _status(table, row, own, scale),
    }


def trained(cell: str | None) -> Value | None:
    """Millions of parameters, heads too, that a cell's recipe trains; None where it trains none."""
    recipe = document_of(cell)["recipe"] if cell else {}
    if "objective" not in recipe:
        return None
    import torch

    from equitools.training.learner import build
    from equitools.training.recipe import resolve

    with torch.device("meta"):
        built = build(resolve(recipe))
    return Value(sum(p.numel() for p in built.parameters() if p.requires_grad) / 1e6)


def score(column: dict[str, Any], row: dict[str, Any], scale: str) -> str | None:
    """The score that a column shows in a row at a scale; None where nothing measures it."""
    named = column.get("score")
    if isinstance(named, dict):
        named = named.get(scale)
    return None if named is None else named.format(**row)


def said(document: dict[str, Any], entry: dict[str, Any], scale: str) -> bool:
    """Does a document say what the `where` of a column or row asks? True without one.

    where: {dotted key: a number, or a word that the last two names of a path have in them, in any
    case}, a list of such mappings of which one is enough, or {scale: either of these}.
    """
    where = entry.get("where") or {}
    if isinstance(where, dict) and scale in where:
        where = where[scale]
    choices = where if isinstance(where, list) else [where]
    return any(all(_says(document, key, wanted) for key, wanted in one.items()) for one in choices)


def _says(document: dict[str, Any], key: str, wanted: Any) -> bool:
    value: Any = document
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    if isinstance(wanted, str) and value is not None:
        return wanted.lower() in "/".join(Path(str(value)).parts[-2:]).lower()
    return value == wanted


def _status(table: dict[str, Any], row: dict[str, Any], own: list[Value | None], scale: str) -> str:
    if "missing" in row:
        return f"{row['missing']} is not built yet"
    if scale not in row["cells"]:
        return f"not run at scale {scale}"
    asked = [(score(column, row, scale), column) for column in table["columns"]]
    scored = [
        (value, column.get("needs"))
        for (name, column), value in zip(asked, own, strict=True)
        if name not in (None, "parameters")
    ]
    lacking = [need for value, need in scored if value is None]
    if not lacking:
        return "measured"
    if needs := list(dict.fromkeys(need for need in lacking if need)):
        needed = f"needs {', '.join(needs)}"
        return f"in part; {needed}" if any(value for value, _ in scored) else needed
    return "in part" if len(lacking) < len(scored) else f"no result at scale {scale} yet"


def _own(table: dict[str, Any], document: dict[str, Any], scale: str) -> dict[str, Any]:
    """A result that is no row of the table."""
    row = {"method": method(document), "task": "rotation", "part": "all"}
    found = summary(document.get("scores") or {})
    return {
        "labels": [row.get(key) for key in table["labels"]],
        "paper": [None] * len(table["columns"]),
        "ours": [
            found.get(score(column, row, scale) or "") if said(document, column, scale) else None
            for column in table["columns"]
        ],
        "ran": _ran([document]),
        "status": "measured; not a row of the table",
    }


def _ran(documents: Sequence[dict[str, Any]]) -> str | None:
    """What was run for a row, in words; several when runs differ."""
    said = [described(document) for document in documents]
    epochs = [f"{words['epochs']} epochs" if words["epochs"] else "" for words in said]
    found = [
        ", ".join(filter(None, [words["backbone"], length, words["data"]]))
        for words, length in zip(said, epochs, strict=True)
    ]
    return "; ".join(dict.fromkeys(found)) or None


# --- For people and programs -----------------------------------------------------------------


def show(table: dict[str, Any], rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list]]:
    """Columns and rows for people: `paper / ours` in every cell."""
    names = [column["name"] for column in table["columns"]]
    columns = [*table["labels"].values(), *names, "Ours ran", "Status"]
    shown = [
        [
            *row["labels"], *map(_both, table["columns"], row["paper"], row["ours"]),
            row["ran"], row["status"],
        ]
        for row in rows
    ]  # fmt: skip
    return columns, shown


def _both(column: dict[str, Any], paper: float | None, ours: Value | None) -> str | None:
    if paper is None and ours is None:
        return None
    text = f"{ours.mean:.2f}" if ours and column.get("score") == "parameters" else str(ours)
    return f"{'—' if paper is None else paper} / {'—' if ours is None else text}"


def spread(table: dict[str, Any], rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list]]:
    """The same for programs: paper, ours and standard deviation in columns of their own."""
    columns = list(table["labels"])
    for column in table["columns"]:
        columns += [f"{column['name']} {kind}" for kind in ("paper", "ours", "sd")]
    lines = []
    for row in rows:
        cells = []
        for paper, ours in zip(row["paper"], row["ours"], strict=True):
            cells += [paper, ours and ours.mean, ours and ours.sd]
        lines.append([*row["labels"], *cells, row["ran"], row["status"]])
    return [*columns, "ran", "status"], lines


def notes(table: dict[str, Any], scale: str) -> str:
    """What a reader has to know before comparing, and what is not here yet."""
    data = list(dict.fromkeys(c["missing"] for c in table["columns"] if "missing" in c))
    needs = list(dict.fromkeys(c["needs"] for c in table["columns"] if "needs" in c))
    lines = [
        "Each cell: paper / ours.",
        f"Ours, scale {scale}: {table['scales'][scale]}.",
        "± is the spread over runs where a row has several, else over seeds of the evaluation.",
        "Numbers on other data, backbones or epochs than the paper's are not comparable with it,"
        " and one seed says nothing about the order of methods.",
    ]
    if any(column.get("score") == "parameters" for column in table["columns"]):
        lines.append("Param: trained parameters, counted on the paper's own recipe.")
    lines += table.get("notes", [])
    if needs:
        lines.append(f"Data that make is told of, at any scale: {'; '.join(needs)}.")
    if data:
        lines.append(f"Columns that are not measured here yet: {', '.join(data)}.")
    return "".join(f"- {line}\n" for line in lines)
