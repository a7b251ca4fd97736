"""Tables of scores for people and programs: Markdown, CSV and LaTeX from the same rows.

A score's name is a path, stage/eval/part/seed/metric. What only counts repetitions (seed0, draw3)
is taken out of the name, and the value becomes their mean ± standard deviation.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equitools.errors import DataError, UsageError

FORMATS = ("md", "csv", "latex")
_REPEAT = re.compile(r"(seed|draw|run)\d+")
_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "—": "--"} | {c: rf"\{c}" for c in "&%$#_{}"}


@dataclass(frozen=True)
class Value:
    """A score: its mean, the standard deviation over `count` repetitions (None when unknown).

    As text: percents with one decimal, below 10 with two, and below 1 (cosines) with three.
    """

    mean: float
    sd: float | None = None
    count: int = 1

    def __str__(self) -> str:
        digits = 1 if abs(self.mean) >= 10 else 2 if abs(self.mean) >= 1 else 3
        spread = f" ± {self.sd:.{digits}f}" if self.sd is not None and self.count > 1 else ""
        return f"{self.mean:.{digits}f}{spread}"


# --- Rendering -------------------------------------------------------------------------------


def render(columns: Sequence[str], rows: Iterable[Sequence[Any]], format: str = "md") -> str:
    """The table as text that ends with a newline; None is an empty cell.

    Raises UsageError for a format that is not md, csv or latex.
    """
    if format not in FORMATS:
        raise UsageError(f"format is '{format}'; it is one of {', '.join(FORMATS)}")
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    return {"md": _markdown, "csv": _csv, "latex": _latex}[format](list(columns), cells)


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    table = [
        [cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [columns, *rows]
    ]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in table
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _csv(columns: list[str], rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def _latex(columns: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        escaped = ["".join(_LATEX.get(letter, letter) for letter in cell) for cell in cells]
        return " & ".join(escaped) + r" \\"

    body = [line(columns), r"\hline", *map(line, rows)]
    begin = rf"\begin{{tabular}}{{{'l' * len(columns)}}}"
    return "\n".join([begin, r"\hline", *body, r"\hline", r"\end{tabular}"]) + "\n"


# --- Scores ----------------------------------------------------------------------------------


def summary(scores: dict[str, Any]) -> dict[str, Value]:
    """Scores with their repetitions folded into mean ± sd, in the order of first appearance.

    A `mean` (and `sd`) that the evaluation wrote itself is taken as it is.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for key, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        words = key.split("/")
        kept = [
            word for word in words if word not in ("mean", "sd") and not _REPEAT.fullmatch(word)
        ]
        kind = next((word for word in words if word in ("mean", "sd")), "each")
        found.setdefault("/".join(kept), {}).setdefault(kind, []).append(float(value))
    return {name: _value(kinds) for name, kinds in found.items() if kinds.keys() != {"sd"}}


def _value(kinds: dict[str, list[float]]) -> Value:
    each, sds = kinds.get("each", []), kinds.get("sd")
    means = kinds.get("mean") or each
    sd = statistics.fmean(sds) if sds else statistics.stdev(each) if len(each) > 1 else None
    return Value(statistics.fmean(means), sd, max(1, len(each)))


def pool(values: Sequence[Value]) -> Value:
    """Several runs as one value: the mean of their means, and the spread between runs."""
    if len(values) == 1:
        return values[0]
    means = [value.mean for value in values]
    return Value(statistics.fmean(means), statistics.stdev(means), len(means))


def score_table(
    documents: Sequence[dict[str, Any]], patterns: Sequence[str] = ()
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the scores of a stream of documents.

    One document: a row for each evaluation and part, a column for each metric. Several: a row for
    each document, a column for each score. patterns: shell patterns of score names, as in
    `probe/*/top1`; by default all but what pretraining says, of several documents their top-1.
    Raises DataError when no document has a score, UsageError when no score fits the patterns.
    """
    found = [summary(document.get("scores") or {}) for document in documents]
    names = list(dict.fromkeys(name for scores in found for name in scores))
    if not names:
        raise DataError("no document has scores; equi-probe and equi-perturb make them")
    chosen = _choose(names, patterns, len(documents) > 1)
    if len(documents) == 1:
        return _by_part(found[0], chosen)
    columns = ["method", "backbone", "epochs", "data", *chosen]
    rows = [
        [*described(document).values(), *(scores.get(name) for name in chosen)]
        for document, scores in zip(documents, found, strict=True)
    ]
    return columns, rows


def _choose(names: list[str], patterns: Sequence[str], several: bool) -> list[str]:
    if patterns:
        chosen = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
        if not chosen:
            raise UsageError(f"no score fits {', '.join(patterns)}; there is {', '.join(names)}")
        return chosen
    later = [name for name in names if not name.startswith("pretrain/")] or names
    first = [name for name in later if name.endswith("/top1") and "/best/" not in name]
    return first if several and first else later


def _by_part(scores: dict[str, Value], chosen: list[str]) -> tuple[list[str], list[list[Any]]]:
    pairs = [name.rpartition("/")[::2] for name in chosen]
    metrics = list(dict.fromkeys(metric for _, metric in pairs))
    parts = list(dict.fromkeys(part for part, _ in pairs))
    rows = [[part, *(scores.get(f"{part}/{metric}") for metric in metrics)] for part in parts]
    return ["score", *metrics], rows


# --- Names for people ------------------------------------------------------------------------


def described(document: dict[str, Any]) -> dict[str, str]:
    """Method, backbone, epochs and data of a document in the words of a table."""
    recipe = document.get("recipe") or {}
    return {
        "method": method(document),
        "backbone": str((recipe.get("backbone") or {}).get("name", "")),
        "epochs": epochs(document),
        "data": data(document),
    }


def named(document: dict[str, Any]) -> str:
    """Method, backbone and augmentation: `dino+clever vit_mini CAug`."""
    words = described(document)
    return " ".join(filter(None, (words["method"], words["backbone"], warps(document))))


def warps(document: dict[str, Any]) -> str:
    """BAug, CAug or CAug+, in the paper's words; empty where no recipe says."""
    views = (document.get("recipe") or {}).get("views")
    if not views or encoder(document) is not None:
        return ""
    return "BAug" if not views.get("rotation") else "CAug+" if views.get("elastic") else "CAug"


def encoder(document: dict[str, Any]) -> str | None:
    """Which encoder was asked when it is not the one that the recipe trained: pixels, random…"""
    stages = ("transfer", "perturb", "probe")
    asked = [(document.get(stage) or {}).get("encoder") for stage in stages]
    return next(filter(None, asked), None)


def method(document: dict[str, Any]) -> str:
    """`dino+clever`, `simsiam+ddcl w/o L_PReg`, or the encoder that was probed instead."""
    if wanted := encoder(document):
        return {"pixels": "raw pixels", "random": "random encoder"}.get(wanted, wanted)
    recipe = document.get("recipe") or {}
    words = [(recipe.get("objective") or {}).get("name") or "?"]
    for name, knobs in (recipe.get("equivariance") or {}).items():
        bare = isinstance(knobs, dict) and knobs.get("regularization") == 0
        words.append(f"{name} w/o L_PReg" if bare else name)
    return "+".join(words)


def epochs(document: dict[str, Any]) -> str:
    """Passes over the data that the run made, else those that its recipe asks for."""
    runs = [r for r in document.get("history") or [] if r.get("stage") == "pretrain"]
    asked = (document.get("recipe") or {}).get("epochs")
    said = runs[-1].get("epochs", asked) if runs else asked
    if said is None or encoder(document):
        return ""
    return f"{round(said, 1):g}" if said >= 1 else f"{said:.2g}"


def data(document: dict[str, Any]) -> str:
    """The source of the shards, a folder by its last name, with the class list if there is one."""
    shard = document.get("shard") or {}
    words = [Path(str(shard["source"])).name] if shard.get("source") else []
    return " ".join([*words, *([str(shard["classes"])] if shard.get("classes") else [])])
