"""Scores of several documents side by side.

A score's name is a path, stage/eval/part/seed/metric. What only counts repetitions (seed0, draw3)
is taken out of the name, and the value becomes their mean ± standard deviation."""

from __future__ import annotations

import fnmatch
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from equitools.core.errors import DataError, UsageError
from equitools.report.describe import described

_REPEAT = re.compile(r"(seed|draw|run)\d+")


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
