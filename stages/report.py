"""Tables, figures and answers from manifests; each document of the stream is a row."""

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from equitools import manifest, report
from equitools.core.files import write_atomic
from equitools.manifest import cells, schema
from equitools.report.documents import unfinished

from .cli.command import command
from .cli.program import Program, Request

SUFFIXES = {"md": "md", "csv": "csv", "latex": "tex"}


def run(request: Request) -> None:
    """Answer what the verb asks, on stdout, and with -o in a file; without a verb it is `table`."""
    settings = dict(request.settings)
    verb = settings.pop("verb", "table")
    answer = schema.pick(report, verb, "report")
    knobs = schema.knobs(answer, settings, "report")
    given = {
        "documents": request.documents,
        "where": lambda home: request.choose_out(request.out or home),
        "layers": {key: item for key, item in request.document.items() if key != "report"},
        "out": request.out,
        "say": request.stdout.write,
    }
    taken = {name: given[name] for name in inspect.signature(answer).parameters if name in given}
    text = answer(**taken, **knobs)
    if isinstance(text, Path):
        text = f"{text}\n"
    elif request.out is not None:
        suffix = SUFFIXES[knobs.get("format", "md")]
        write_atomic(request.choose_out(request.out) / f"{verb}.{suffix}", text)
    request.stdout.write(text)


def _help() -> str:
    """The reports, each with the first line of its docstring and its knobs."""
    lines = [
        "Tables, figures and answers from manifests, read from files, run folders or stdin.\n",
        "Each document of the stream is a row. What is said goes to stdout and, with -o DIR, into a"
        " file there (DIR/table.md, DIR/why.md), beside the figures.\n\n\b",
    ]
    for name, line in schema.menu(report):
        lines.append(f"{name:11} {line}")
        lines += [" " * 12 + knobs for knobs in textwrap.wrap(_knobs(getattr(report, name)), 86)]
    return "\n".join(lines)


def _knobs(answer: Callable[..., str | Path]) -> str:
    """The knobs of a report as words, with their choices or defaults."""
    hints, parameters = get_type_hints(answer), inspect.signature(answer).parameters
    words = []
    for name in schema.own_knobs(answer):
        default = parameters[name].default
        if get_origin(hints[name]) is Literal:
            default = "|".join(get_args(hints[name]))
        elif isinstance(default, tuple):
            default = ",".join(map(str, default))
        words.append(
            f"{name}={'' if default in (None, inspect.Parameter.empty) else str(default).lower()}"
        )
    return " ".join(words)


PROGRAM = Program(
    name="report",
    section="report",
    reads=manifest.KINDS,
    folders=cells.FOLDERS,
    run=run,
    help=_help(),
    required=False,
    folds=False,
    verbs=tuple(name for name, _ in schema.menu(report)),
    menus={"reports": lambda: report},
)


def spell_out(words: Sequence[str]) -> list[str]:
    """Words as the frame reads them: a run folder ends with a slash, the metrics of one that is
    not finished are `metrics=`, and `why KEY` is `why score=KEY`, since the name of a score looks
    like a path and is none."""
    started = [word for word in words if not word.startswith("-") and unfinished(Path(word))]
    finished = [word for word in words if word not in started]
    spelled = [f"{w}/" if Path(w, "manifest.yaml").is_file() else w for w in finished]
    if started:
        spelled.append("metrics=" + ",".join(str(Path(w, "metrics.jsonl")) for w in started))
    for i, (word, score) in enumerate(pairwise(spelled), 1):
        if word == "why" and not re.match(r"-|[\w.]+=", score) and not score.endswith(".yaml"):
            spelled[i] = f"score={score}"
    return spelled


def main() -> None:
    """The console script."""
    command(PROGRAM)(args=spell_out(sys.argv[1:]))


if __name__ == "__main__":
    main()
