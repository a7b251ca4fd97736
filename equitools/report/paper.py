"""A paper's table, our number beside each of its numbers.

The table is data (manifests/table/*.yaml): columns that name a score or say what is missing, and
rows with what the paper prints and the cell that measures it. A result belongs to a row when its
recipe, every default written back, is the one that the row's cell spells; where rows are told apart
by epochs, it was trained as long. A column or row with `where` reads the documents that say so
alone (transfer.label, probe.split); `needs` says which folder would provide it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equitools.core.errors import UsageError
from equitools.manifest.cells import document_of
from equitools.report.describe import described, encoder, method
from equitools.report.documents import Document, Documents
from equitools.report.scores import Value, pool, summary

SECTIONS = ("objective", "equivariance", "backbone", "views", "optimizer")
# Scores that no document holds: in millions, and in 10⁹ multiply-adds. The first is of all that
# the paper's own recipe trains, the others are of a bare backbone.
COUNTED = ("parameters", "backbone/parameters", "backbone/flops")
NOT_COMPARABLE = (
    "Numbers on other data, backbones or epochs than the paper's are not comparable with it,"
    " and one seed says nothing about the order of methods."
)


@dataclass(frozen=True)
class Row:
    """A row: its labels; in the order of the columns the paper's numbers and ours, None where there
    is none; the documents that ours come from; and in words what became of it."""

    labels: list[object]
    paper: list[float | None]
    ours: list[Value | None]
    documents: Documents
    status: str

    @property
    def marks(self) -> list[object]:
        """The labels for people: yes and no are marks."""
        return [("✓" if x else "✗") if isinstance(x, bool) else x for x in self.labels]

    @property
    def ran(self) -> str | None:
        """What was run, in words; several when runs differ."""
        runs = []
        for words in map(trained_as, self.documents):
            epochs = words["epochs"] and f"{words['epochs']} epochs"
            runs.append(", ".join(filter(None, [words["backbone"], epochs, words["data"]])))
        return "; ".join(dict.fromkeys(runs)) or None


def trained_as(document: Document) -> dict[str, str]:
    """`describe.described`; pixels have no backbone, whatever the recipe beside them."""
    return described(document) | ({"backbone": ""} if encoder(document) == "pixels" else {})


def rows(table: Document, documents: Documents, scale: str) -> list[Row]:
    """The rows of a table in its order, then the documents that are no row of it.

    Rows without the paper's numbers are there only where they are run. Ours are pooled over runs.
    Raises UsageError for an unknown scale.
    """
    if scale not in table["scales"]:
        raise UsageError(f"scale is '{scale}'; it is one of {', '.join(table['scales'])}")
    identities = [identity(document) for document in documents]
    filled, taken = [], set()
    for row in table["rows"]:
        cell = (row.get("cells") or {}).get(scale)
        if "paper" not in row and not cell:
            continue
        recipe = document_of(cell)["recipe"] if cell else {}
        wanted = identity(document_of(cell)) if cell and documents else None
        epochs = recipe.get("epochs") if "epochs" in table["labels"] else None
        places = [
            i
            for i, document in enumerate(documents)
            if identities[i] == wanted
            and epochs in (None, (document.get("recipe") or {}).get("epochs"))
        ]
        taken |= set(places)
        if "paper" not in row:
            row = {"backbone": (recipe.get("backbone") or {}).get("name")} | row
        filled.append(_row(table, row, [documents[i] for i in places], scale))
    for document in [document for i, document in enumerate(documents) if i not in taken]:
        row = {"method": method(document), "task": "rotation", "part": "all"}
        other = "measured; not a row of the table"
        filled.append(replace(_row(table, row, [document], scale), status=other))
    return filled


def identity(document: Document) -> Document:
    """What two runs share when they are runs of one cell: all that shapes the encoder but data,
    epochs, batch and seed. Of an encoder that nobody trained, its backbone."""
    probed, recipe = encoder(document), document.get("recipe") or {}
    if probed == "pixels":
        return {"encoder": probed}
    if probed is not None or "objective" not in recipe:
        return {"encoder": probed, "backbone": (recipe.get("backbone") or {}).get("name")}
    from equitools.training.recipe import resolve

    full = resolve(recipe)
    return {"encoder": probed, **{section: full[section] for section in SECTIONS}}


def _row(table: Document, row: Document, documents: Documents, scale: str) -> Row:
    matching = [document for document in documents if fits(document, row, scale)]
    ours = [_ours(table, column, row, matching, scale) for column in table["columns"]]
    labels, printed = [row.get(key) for key in table["labels"]], row.get("paper")
    status = _status(table, row, ours, scale)
    return Row(labels, printed or [None] * len(ours), ours, documents, status)


def _ours(
    table: Document, column: Document, row: Document, documents: Documents, scale: str
) -> Value | None:
    name = score(column, row, scale)
    if name in COUNTED:
        return counted(name, table, row)
    scores = [summary(document) for document in documents if fits(document, column, scale)]
    values = [each[name] for each in scores if name in each]
    return pool(values) if values else None


def counted(name: str, table: Document, row: Document) -> Value | None:
    """One of COUNTED in a row; None where its cell trains nothing or its backbone has no layer."""
    if name == "parameters":
        cell = (row.get("cells") or {}).get("paper")
        recipe = document_of(cell)["recipe"] if cell else {}
        if "objective" not in recipe:
            return None
        from equitools.report import costs

        return Value(costs.trained(recipe) / 1e6)
    layer = table["backbones"].get(row.get("backbone"))
    if layer is None:
        return None
    from equitools.report import costs

    cost = costs.of_layer(layer)
    if cost is None:
        return None
    return Value(cost.flops / 1e9 if name == "backbone/flops" else cost.parameters / 1e6)


def score(column: Document, row: Document, scale: str) -> str | None:
    """The score that a column shows in a row at a scale; None where nothing measures it."""
    named = column.get("score")
    if isinstance(named, dict):
        named = named.get(scale)
    return None if named is None else named.format(**row)


def fits(document: Document, entry: Document, scale: str) -> bool:
    """Does a document say what the `where` of a column or row asks? True without one.

    where: {dotted key: a number, or a word that the last two names of a path have in them, in any
    case}, a list of such mappings of which one is enough, or {scale: either of these}.
    """
    where = entry.get("where") or {}
    if isinstance(where, dict) and scale in where:
        where = where[scale]
    choices = where if isinstance(where, list) else [where]
    return any(all(_says(document, key, wanted) for key, wanted in one.items()) for one in choices)


def _says(document: Document, key: str, wanted: object) -> bool:
    value: Any = document
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    if isinstance(wanted, str) and value is not None:
        return wanted.lower() in "/".join(Path(str(value)).parts[-2:]).lower()
    return value == wanted


def _status(table: Document, row: Document, ours: list[Value | None], scale: str) -> str:
    quoted = "quoted by the paper; " if row.get("quoted") else ""
    if "missing" in row:
        return f"{quoted}{row['missing']} is not built yet"
    if scale not in (cells := row.get("cells") or {}):
        return f"{quoted}not run at scale {scale}" if cells else f"{quoted}not run"
    scored = [
        (value, column.get("needs"))
        for column, value in zip(table["columns"], ours, strict=True)
        if score(column, row, scale) not in (None, *COUNTED)
    ]
    lacking = [need for value, need in scored if value is None]
    if not lacking:
        return f"{quoted}measured"
    if needs := list(dict.fromkeys(need for need in lacking if need)):
        needed = f"needs {', '.join(needs)}"
        return f"in part; {needed}" if any(value for value, _ in scored) else needed
    return "in part" if len(lacking) < len(scored) else f"{quoted}no result at scale {scale} yet"
