"""Tables as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

from equitools.core.errors import UsageError

Format = Literal["md", "csv", "latex"]
FORMATS = get_args(Format)
Table = tuple[Sequence[str], Sequence[Sequence[object]]]  # columns and rows
_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "—": "--"} | {c: rf"\{c}" for c in "&%$#_{}"}


def render(columns: Sequence[str], rows: Iterable[Sequence[object]], format: str = "md") -> str:
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


def with_picture(text: str, picture: Path, format: str) -> str:
    """A table for people with the path of its picture below it."""
    return f"{text}\n{picture}\n" if format == "md" else text
