"""Scores of several documents side by side."""

import fnmatch
from collections.abc import Sequence

from equitools.core.errors import DataError, UsageError
from equitools.report.describe import described
from equitools.report.documents import Documents, Where, required
from equitools.report.formats.tables import Format, Table, render
from equitools.report.scores import Value, summary


def table(
    documents: Documents, where: Where, *, scores: tuple[str, ...] = (), format: Format = "md"
) -> str:
    """Scores, several documents side by side or one in full: scores=probe/*/top1,… chooses."""
    return render(*score_table(required(documents), scores), format)


def score_table(documents: Documents, patterns: Sequence[str] = ()) -> Table:
    """Columns and rows of the scores of a stream of documents.

    One document: a row for each evaluation and part, a column for each metric. Several: a row for
    each document, a column for each score. patterns: shell patterns of score names, as in
    `probe/*/top1`; by default all but what pretraining says, of several documents their top-1.
    Raises DataError when no document has a score, UsageError when no score fits the patterns.
    """
    summaries = [summary(document) for document in documents]
    names = list(dict.fromkeys(name for scores in summaries for name in scores))
    if not names:
        raise DataError("no document has scores; equi-probe and equi-perturb make them")
    chosen = _choose(names, patterns, len(documents) > 1)
    if len(documents) == 1:
        return _by_part(summaries[0], chosen)
    rows = [
        [*described(document).values(), *(scores.get(name) for name in chosen)]
        for document, scores in zip(documents, summaries, strict=True)
    ]
    return ["method", "backbone", "epochs", "data", *chosen], rows


def _choose(names: list[str], patterns: Sequence[str], several: bool) -> list[str]:
    if patterns:
        chosen = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
        if not chosen:
            raise UsageError(f"no score fits {', '.join(patterns)}; there is {', '.join(names)}")
        return chosen
    later = [name for name in names if not name.startswith("pretrain/")] or names
    first = [name for name in later if name.endswith("/top1") and "/best/" not in name]
    return first if several and first else later


def _by_part(scores: dict[str, Value], chosen: list[str]) -> Table:
    pairs = [name.rpartition("/")[::2] for name in chosen]
    metrics = list(dict.fromkeys(metric for _, metric in pairs))
    parts = list(dict.fromkeys(part for part, _ in pairs))
    rows = [[part, *(scores.get(f"{part}/{metric}") for metric in metrics)] for part in parts]
    return ["score", *metrics], rows
