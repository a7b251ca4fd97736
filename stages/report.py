"""Tables, figures and answers from manifests; each document of the stream is a row."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from equitools import manifest
from equitools.core import files
from equitools.core.errors import DataError, UsageError
from equitools.manifest import cells, schema
from equitools.report import attention, lineage, magnitudes, robustness
from equitools.report import curves as report_curves
from equitools.report import sheet as report_sheet
from equitools.report import table2 as report_table2
from equitools.report.formats import tables
from equitools.report.page import page
from equitools.report.prerequisites import prerequisites
from equitools.report.scores import score_table
from equitools.report.sweep import sweep
from equitools.report.table2 import COLUMNS, counter, notes, show_table2
from equitools.report.tsne import tsne

from .cli.command import command
from .cli.program import Program, Request

Format = Literal["md", "csv", "latex"]
SUFFIXES = {"md": "md", "csv": "csv", "latex": "tex"}
PICTURES = ("curves", "views", "sheet", "page")

HELP = """Tables, figures and answers from manifests, read from files, run folders or stdin.

Each document of the stream is a row. What is said goes to stdout and, with -o DIR, into a file
there (DIR/table.md, DIR/why.md), beside the figures.

\b
table     scores: scores=probe/*/top1,… chooses, format=md|csv|latex
table1    magnitudes of heads and representations while a run trains (CLeVER, Table 1); also of a
          folder whose run is not finished
table2    the paper's Table 2 with our numbers beside it: scale=mini|small|paper
compare   a paper's table from the stream (manifests/table/clever-*.yaml, ser-*.yaml), our number
          beside each of its numbers: scale=mini|paper
curves    losses, rates and the collapse watch over epochs, as a picture
views     the views that a recipe makes of some pictures, with their parameters
tsne      classes in the features that equi-probe embed wrote: silhouette, neighbors' purity and
          Davies-Bouldin index of each document, and a picture: classes=20 limit=1000 split=val
attention what the heads of the last block of each ViT look at, as a picture and in numbers:
          images=2 folder=DIR changes=original,rotated,jittered angle=90 heads=each|mean
robustness  accuracy over the columns of the grid, over angle and over strength: part=all
sweep     a score over knobs that runs differ in: keys=backbone.split,… score=…
sheet     pictures of the same name from several folders, side by side: folders=a,b images=4
page      one HTML page without a server: include=table.md,figure.png, and scores, curves,
          robustness and attention of the documents
prerequisites  what make builds for tables=manifests/table/table2.yaml,… at scale=mini
why       from a score back to the shards: equi-report why probe/linear/all/mean/top1 m.yaml
verify    digests of all files that the documents name
diff      where two documents differ
"""


def run(request: Request) -> None:
    """Answer what the verb asks, on stdout."""
    settings = dict(request.settings)
    verb = settings.pop("verb", "table")
    answer = schema.pick(VERBS, verb, "report")
    knobs = schema.knobs(answer, settings, "report")
    text = answer(request, **knobs)
    if request.out is not None and verb not in PICTURES:
        suffix = SUFFIXES[knobs.get("format", "md")]
        files.write_atomic(request.choose_out(request.out) / f"{verb}.{suffix}", text)
    request.stdout.write(text)


# --- Tables ----------------------------------------------------------------------------------


def table(request: Request, *, scores: list[str] = [], format: Format = "md") -> str:  # noqa: B006
    """The scores of the documents, several side by side or one in full."""
    columns, rows = score_table(_documents(request), scores)
    return tables.render(columns, rows, format)


def table1(
    request: Request,
    *,
    epochs: list[float] = [],  # noqa: B006
    metrics: list[str] = [],  # noqa: B006
    format: Format = "md",
) -> str:
    """log10 of heads (Σp²) and representations (mean |z|) by epoch, the paper's rows below.

    metrics: files metrics.jsonl of runs that have no manifest, because they are not finished.
    """
    layer = _table(request, "table1")
    rows: list[list[Any]] = []
    for name, lines in _runs(request, metrics).items():
        found = magnitudes.magnitudes(lines)
        if not found:
            raise DataError(f"{name}: no watch step in its metrics; recipe.watch_every sets them")
        chosen = magnitudes.at_epochs(found, epochs or magnitudes.usual_epochs(found))
        rows += [
            [name, f"{row['epoch']:.4g}", int(row["step"]), *_heads(row), magnitudes.verdict(row)]
            for row in chosen
        ]
    rows += [
        [row["run"], row["epoch"], None, *_heads(row), magnitudes.verdict(row)]
        for row in layer["rows"]
    ]
    text = tables.render(["run", "epoch", "step", *magnitudes.HEADS, "status"], rows, format)
    return f"{layer['caption']}\n\n{text}" if format == "md" else text


def _heads(row: dict[str, float]) -> list[str]:
    return [f"{row[name]:.2f}" if name in row else "" for name in magnitudes.HEADS]


def table2(
    request: Request, *, scale: str = "mini", count: bool = True, format: Format = "md"
) -> str:
    """The paper's Table 2, ours beside it; with -o DIR also as DIR/table2.csv.

    count: measure parameters and operations of the paper's backbones.
    """
    layer = _table(request, "table2")
    costs = counter(request.say) if count else lambda layer: None
    rows = report_table2.table2(layer, request.documents, scale, costs)
    if request.out is not None:
        whole = tables.render(COLUMNS, [list(row.values()) for row in rows], "csv")
        request.choose_out(request.out)
        files.write_atomic(request.out / "table2.csv", whole)
    if format == "csv":
        return tables.render(COLUMNS, [list(row.values()) for row in rows], "csv")
    columns, shown = show_table2(rows)
    text = tables.render(columns, shown, format)
    return f"{layer['caption']}\n\n{text}\n{notes(rows, layer, scale)}" if format == "md" else text


def compare(request: Request, *, scale: str = "mini", format: Format = "md") -> str:
    """The table that came with the stream, ours beside the paper's; as CSV in columns apart."""
    from equitools.report import paper

    layer = request.document.get("table")
    if not layer or "columns" not in layer:
        raise UsageError(
            "compare needs a table with columns: cat manifests/table/ser-table1.yaml …"
        )
    rows = paper.compare(layer, request.documents, scale)
    shown = paper.spread(layer, rows) if format == "csv" else paper.show(layer, rows)
    text = tables.render(*shown, format)
    if format != "md":
        return text
    return f"{layer['caption']}\n\n{text}\n{paper.notes(layer, scale)}"


def _table(request: Request, name: str) -> dict[str, Any]:
    """The table that came with the stream, else the one that is built in."""
    given = request.document.get("table")
    return given if given else manifest.layer(name, ("table",))["table"]


# --- Figures ---------------------------------------------------------------------------------


def curves(request: Request, *, metrics: list[str] = []) -> str:  # noqa: B006
    """Draw DIR/curves.png from the metrics of the runs; prints where it is."""
    from equitools.report import curves as report_curves

    found = _runs(request, metrics)
    where = request.choose_out(request.out or _home(request, metrics))
    return f"{report_curves.curves(found, where / 'curves.png')}\n"


def _home(request: Request, metrics: list[str]) -> Path:
    """The folder of the first run's metrics."""
    if metrics and not request.documents:
        return Path(metrics[0]).parent
    return Path(_documents(request)[0]["files"]["metrics"]["path"]).parent


def views(
    request: Request, *, images: int = 4, seed: int = 0, epoch: int = 0, split: str = "train"
) -> str:
    """Draw DIR/views.png: some pictures of the shards, and every view that the recipe makes."""
    from equitools.data.shards.index import open_split
    from equitools.report.formats import figures
    from equitools.report.views import rows

    document = manifest.join([*_documents(request), _layers(request)])
    if not document.get("recipe", {}).get("views"):
        raise UsageError("views needs a recipe: name layers, as in equi-report views dino caug")
    index = open_split(document, split)
    sheet = rows(document["recipe"], index, count=images, seed=seed, epoch=epoch)
    where = request.choose_out(request.out or Path.cwd())
    return f"{figures.contact_sheet(sheet, where / 'views.png')}\n"


def drawn(answer: Callable[..., str], needed: bool = True) -> Callable[..., str]:
    """A figure of equitools.reports as a verb, its knobs the same; `needed`: without documents it
    is refused."""

    @functools.wraps(answer)
    def verb(request: Request, **knobs: Any) -> str:
        documents = _documents(request) if needed else request.documents
        return answer(documents, lambda home: request.choose_out(request.out or home), **knobs)

    return verb


def _layers(request: Request) -> dict[str, Any]:
    """What the words say besides the report itself."""
    return {key: item for key, item in request.document.items() if key not in ("report", "table")}


# --- Answers ---------------------------------------------------------------------------------


def why(request: Request, *, score: str) -> str:
    """Where a score comes from: the record that wrote it, and its parents back to the shards."""
    found = lineage.scored(_documents(request), score)
    return "\n".join(lineage.why(document, score) for document in found)


def verify(request: Request) -> str:
    """Check the digest of every file; DataError after the table when one is missing or changed."""
    rows, problems = lineage.verified(_documents(request))
    text = tables.render(["file", "path", "digest"], rows)
    if problems:
        request.stdout.write(text)
        raise DataError("; ".join(problems))
    return text


def diff(request: Request) -> str:
    """Where two documents differ, key by key; seconds and ids of the history are left out."""
    documents = _documents(request)
    if len(documents) != 2:
        raise UsageError(f"diff compares two documents and got {len(documents)}")
    rows = lineage.differences(*documents)
    return tables.render(["key", "first", "second"], rows) if rows else "no difference\n"


VERBS: dict[str, Callable[..., str]] = {
    "table": table, "table1": table1, "table2": table2, "compare": compare, "curves": curves,
    "views": views, "tsne": drawn(tsne), "attention": drawn(attention.attention),
    "robustness": drawn(robustness.robustness), "sweep": drawn(sweep),
    "sheet": drawn(report_sheet.sheet, needed=False), "page": drawn(page, needed=False),
    "prerequisites": drawn(prerequisites, needed=False), "why": why, "verify": verify, "diff": diff,
}  # fmt: skip


# --- What came in ----------------------------------------------------------------------------


def _documents(request: Request) -> list[dict[str, Any]]:
    if not request.documents:
        raise UsageError(
            "no manifest was given; pipe documents in, or name manifest.yaml files or run folders"
        )
    return request.documents


def _runs(request: Request, metrics: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """{name: lines of metrics.jsonl} of every document, then of metrics files."""
    return report_curves.metrics(request.documents if metrics else _documents(request), metrics)


PROGRAM = Program(
    name="report", section="report", reads=manifest.KINDS, folders=cells.FOLDERS, run=run,
    help=HELP, required=False, folds=False, verbs=tuple(VERBS), menus={"reports": lambda: VERBS},
)  # fmt: skip


def spell_out(words: Sequence[str]) -> list[str]:
    """Words as the frame reads them: a run folder ends with a slash, the metrics of one that is
    not finished are `metrics=`, and `why KEY` is `why score=KEY`, since the name of a score looks
    like a path and is none."""
    unfinished = [w for w in words if not w.startswith("-") and report_curves.unfinished(Path(w))]
    found = [f"{w}/" if Path(w, "manifest.yaml").is_file() else w for w in words]
    found = [word for word in found if word not in unfinished]
    if unfinished:
        found.append("metrics=" + ",".join(str(Path(w, "metrics.jsonl")) for w in unfinished))
    for i, word in enumerate(found[:-1]):
        score = found[i + 1]
        if word == "why" and not re.match(r"-|[\w.]+=", score) and not score.endswith(".yaml"):
            found[i + 1] = f"score={score}"
    return found


def main() -> None:
    """The console script."""
    command(PROGRAM)(args=spell_out(sys.argv[1:]))


if __name__ == "__main__":
    main()
