"""A paper's table with our numbers beside it, each row saying where its number comes from.

A row of the table is data (manifests/table/): what the paper prints, and the layers of the recipe
that measures it. A result belongs to a row when its own recipe says what those layers say, however
the run was named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from equitools import manifest
from equitools.core.errors import DataError, EquiError, UsageError
from equitools.manifest.cells import document_of
from equitools.report import describe as report_describe
from equitools.report.describe import encoder, method
from equitools.report.scores import Value, pool, summary

COLUMNS = (
    "method", "epochs", "rotation", "backbone", "paper_params", "ours_params", "paper_gflops",
    "ours_gflops", "paper_top1", "paper_top5", "ours_top1", "ours_top1_sd", "ours_top5",
    "ours_top5_sd", "ours_backbone", "ours_epochs", "ours_data", "ours_runs", "status",
)  # fmt: skip
# (parameters, multiply-adds) of a backbone layer's network, or None when it cannot be counted.
Count = Callable[[str], tuple[float, float] | None]


# --- Table 2 ---------------------------------------------------------------------------------


def table2(
    table: dict[str, Any], documents: Sequence[dict[str, Any]], scale: str, count: Count
) -> list[dict[str, Any]]:
    """The rows of a table as mappings of COLUMNS; percents, millions, GFLOPs; None is unknown.

    table: the `table` section of a layer of manifests/table. documents: scores. count: measures a
    backbone by its layer's name. Raises UsageError for an unknown scale, DataError for a document
    without the table's score.
    """
    if scale not in table["scales"]:
        raise UsageError(f"scale is '{scale}'; it is one of {', '.join(table['scales'])}")
    for document in documents:
        _score(document, table["score"])
    left = list(documents)
    found = []
    for row in table["rows"]:
        cell = (row.get("cells") or {}).get(scale)
        stated = document_of(cell) if cell else None
        ours = [document for document in left if stated and fits(stated, document)]
        left = [document for document in left if not any(document is one for one in ours)]
        if "top1" not in row:
            if stated is None:
                continue  # stands beside the paper's rows only where it is run
            row = row | {"backbone": _name(stated["recipe"], "backbone")}
        found.append(_row(row, ours, table, scale, count))
    found += [_own(document, table["score"]) for document in left]
    return found


def _row(
    row: dict[str, Any], ours: list[dict], table: dict[str, Any], scale: str, count: Count
) -> dict[str, Any]:
    line = dict.fromkeys(COLUMNS) | {
        key: row.get(key) for key in ("method", "epochs", "rotation", "backbone")
    }
    line |= {f"paper_{key}": row.get(key) for key in ("params", "gflops", "top1", "top5")}
    layer = table["backbones"].get(row.get("backbone"))
    if layer and (cost := count(layer)):
        line["ours_params"], line["ours_gflops"] = round(cost[0] / 1e6, 3), round(cost[1] / 1e9, 3)
    if ours:
        line |= _measured(ours, table["score"])
    return line | {"status": _status(row, ours, scale)}


def _measured(documents: list[dict], score: str) -> dict[str, Any]:
    line: dict[str, Any] = {"ours_runs": len(documents)}
    for metric in ("top1", "top5"):
        values = [value for d in documents if (value := _score(d, score).get(metric))]
        if values:
            pooled = pool(values)
            line[f"ours_{metric}"] = round(pooled.mean, 2)
            line[f"ours_{metric}_sd"] = None if pooled.sd is None else round(pooled.sd, 2)
    words = report_describe.described(documents[0])
    if encoder(documents[0]) == "pixels":
        words["backbone"] = ""
    return line | {f"ours_{key}": words[key] or None for key in ("backbone", "epochs", "data")}


def _own(document: dict[str, Any], score: str) -> dict[str, Any]:
    """A result that is no row of the table."""
    line = dict.fromkeys(COLUMNS) | {"method": method(document)}
    return line | _measured([document], score) | {"status": "measured; not a row of the table"}


def _status(row: dict[str, Any], ours: list[dict], scale: str) -> str:
    quoted = "quoted by the paper; " if row.get("quoted") else ""
    if ours:
        return f"{quoted}measured"
    if row.get("missing"):
        return f"{quoted}{row['missing']} is not built yet"
    if scale in (cells := row.get("cells") or {}):
        return f"{quoted}no result at scale {scale} yet"
    return f"{quoted}not run at scale {scale}" if cells else f"{quoted}not run"


def _score(document: dict[str, Any], score: str) -> dict[str, Value]:
    """{metric: value} of a score such as probe/linear/all; DataError when there is none."""
    found = summary(document.get("scores") or {})
    metrics = {
        n.removeprefix(score + "/"): v for n, v in found.items() if n.startswith(score + "/")
    }
    if not metrics:
        raise DataError(
            f"a document of {method(document)} has no score {score};"
            f" it has {', '.join(found) or 'none'}"
        )
    return metrics


def counter(say: Callable[[str], Any]) -> Count:
    """Counts each backbone layer once; says so when it cannot."""

    @cache
    def count(layer: str) -> tuple[float, float] | None:
        from equitools import backbones
        from equitools.report import costs

        described = manifest.layer(layer, ("backbone",))["recipe"]["backbone"]
        try:
            cost = costs.measure(backbones.create(described))
        except EquiError as error:
            say(f"{layer} is not counted: {error}")
            return None
        return cost.parameters, cost.flops

    return count


# --- Which row a result belongs to -----------------------------------------------------------


def fits(stated: dict[str, Any], document: dict[str, Any]) -> bool:
    """Whether a document's recipe is the one that a cell states (`cells.document_of`).

    Compared: the encoder that was probed, objective, equivariance terms with the knobs that the
    layers state, backbone, rotation and elastic warps, and epochs where the layers state them.
    """
    if encoder(stated) != encoder(document):
        return False
    if encoder(stated) == "pixels":
        return True
    want, have = stated["recipe"], document.get("recipe") or {}
    if _name(want, "backbone") != _name(have, "backbone"):
        return False
    if encoder(stated) == "random":
        return True
    terms, others = want.get("equivariance") or {}, have.get("equivariance") or {}
    warps = ("rotation", "elastic")
    views, shown = want.get("views") or {}, have.get("views") or {}
    return (
        _name(want, "objective") == _name(have, "objective")
        and terms.keys() == others.keys()
        and all(_holds(terms[name], others[name]) for name in terms)
        and all(_holds(views.get(w), shown.get(w)) for w in warps)
        and want.get("epochs") in (None, have.get("epochs"))
    )


def _name(recipe: dict[str, Any], section: str) -> str | None:
    return (recipe.get(section) or {}).get("name")


def _holds(want: Any, have: Any) -> bool:
    """Everything that `want` states stands in `have`; defaults that were written back may too."""
    if isinstance(want, dict) and isinstance(have, dict):
        return all(key in have and _holds(value, have[key]) for key, value in want.items())
    return want == have


# --- Table 2 for people ----------------------------------------------------------------------


def notes(rows: list[dict[str, Any]], layer: dict[str, Any], scale: str) -> str:
    """What a reader has to know about the table before comparing."""
    counted = any(row["ours_params"] is not None for row in rows)
    done = sum(row["ours_top1"] is not None for row in rows)
    return "\n".join([
        f"- Ours: rows measured: {done}; scale {scale}: {layer['scales'][scale]}.",
        "- ± is the spread over runs where a row has several, else over seeds of the probe.",
        "- Numbers on other data, backbones or epochs than the paper's are not comparable with it,"
        " and one seed says nothing about the order of methods.",
        "- #Params and GFLOPs are "
        + ("counted on the backbones that are named; * only the paper's number."
           if counted else "the paper's (*)."),
    ]) + "\n"  # fmt: skip


def show_table2(rows: Iterable[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """The rows of `table2` in the columns of the paper, ours beside it."""
    columns = ["Method", "Epochs", "Rotation", "Backbone", "#Params", "GFLOPs", "Top-1 paper",
               "Top-5 paper", "Top-1 ours", "Top-5 ours", "Ours ran", "Status"]  # fmt: skip
    return columns, [
        [
            row["method"], row["epochs"], {True: "✓", False: "✗", None: None}[row["rotation"]],
            row["backbone"], _cost(row, "params", "M", 1), _cost(row, "gflops", "G", 2),
            row["paper_top1"], row["paper_top5"], _ours(row, "top1"), _ours(row, "top5"),
            _ran(row), row["status"],
        ]
        for row in rows
    ]  # fmt: skip


def _cost(row: dict[str, Any], what: str, unit: str, digits: int) -> str | None:
    """What we count; beside it the paper's number where they differ; `*` marks a number that is
    only the paper's."""
    paper, ours = row[f"paper_{what}"], row[f"ours_{what}"]
    if ours is None:
        return None if paper is None else f"{paper:.{digits}f}{unit}*"
    text = f"{ours:.{digits}f}{unit}"
    return text if paper in (None, round(ours, digits)) else f"{text} (paper {paper}{unit})"


def _ours(row: dict[str, Any], metric: str) -> str | None:
    if row[f"ours_{metric}"] is None:
        return None
    sd = row[f"ours_{metric}_sd"]
    return f"{row[f'ours_{metric}']:.1f}" + ("" if sd is None else f" ± {sd:.1f}")


def _ran(row: dict[str, Any]) -> str | None:
    epochs = row["ours_epochs"] and f"{row['ours_epochs']} epochs"
    words = [row["ours_backbone"], epochs, row["ours_data"]]
    return ", ".join(word for word in words if word) or None
