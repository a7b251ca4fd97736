"""The scores of a document: repetitions folded into a mean and a spread.

A score's name is a path, stage/eval/part/seed/metric. What only counts repetitions (seed0, draw3)
is taken out of the name, and the value becomes their mean ± standard deviation.
"""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from equitools.report.describe import Document

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


Point = tuple[Any, Value]  # of a curve: a number or a name, and the score there
Curves = dict[str, list[Point]]  # of each run


def summary(document: Document) -> dict[str, Value]:
    """The scores of a document, repetitions folded, in the order of first appearance.

    A `mean` (and `sd`) that the evaluation wrote itself is taken as it is.
    """
    repeated: dict[str, dict[str, list[float]]] = {}
    for key, value in (document.get("scores") or {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        words = key.split("/")
        kind = next((word for word in words if word in ("mean", "sd")), "each")
        name = "/".join(w for w in words if w not in ("mean", "sd") and not _REPEAT.fullmatch(w))
        repeated.setdefault(name, {}).setdefault(kind, []).append(float(value))
    return {name: _value(kinds) for name, kinds in repeated.items() if kinds.keys() != {"sd"}}


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
