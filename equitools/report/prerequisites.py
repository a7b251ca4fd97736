"""What make builds for each table or figure: the score files that it reads of each of its cells.

A table of manifests/table/ (or a row of it) says `reads:` beside its cells, and a figure how to
`draw:` it. A read with data in its name, such as saliency-ECSSD, is left out where these are
lacking; of {first: […]} the first that is left is read.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from equitools import manifest
from equitools.report.documents import Documents, Where


def prerequisites(
    documents: Documents,
    where: Where,
    *,
    tables: tuple[str, ...],
    scale: str = "mini",
    lacks: tuple[str, ...] = (),
) -> str:
    """What make builds for tables=FILE,… and how it draws, as lines of a Makefile.

    tables: files of manifests/table/. scale: of the cells. lacks: data that are not there.
    """
    layers = {Path(path).stem: manifest.load_file(path)[0]["table"] for path in tables}
    return "".join(
        f"{variable}_{name} = {value}\n"
        for name, table in layers.items()
        for variable, value in _variables(table, scale, lacks)
    )


def _variables(
    table: dict[str, Any], scale: str, lacks: Collection[str]
) -> Iterator[tuple[str, str]]:
    read = dict.fromkeys(
        f"$R/{cell}/{name}"
        for row in table["rows"]
        if (cell := (row.get("cells") or {}).get(scale))
        for name in _left(row.get("reads") or table["reads"], lacks)
    )
    yield "reads", " ".join(f"{file}.yaml" for file in read)
    if "draw" in table:
        yield "draw", " ".join([*_words(table["draw"], scale, read), "- -o $(@:.md=)"])
    if "needs" in table and not _left(table["reads"], lacks):
        yield "needs", table["needs"]


def _left(reads: list[str] | dict[str, list[str]], lacks: Collection[str]) -> list[str]:
    """The reads that lack no data."""
    if isinstance(reads, dict):
        return _left(reads["first"], lacks)[:1]
    return [name for name in reads if not {*name.split("-")} & {*lacks}]


def _words(draw: dict[str, Any], scale: str, read: Collection[str]) -> Iterator[str]:
    """The words of equi-report: a value may differ by scale, and may hold each `{read}` in turn."""
    for key, value in draw.items():
        value = value.get(scale) if isinstance(value, dict) else value
        items = value if isinstance(value, list) else [value]
        each = dict.fromkeys(str(i).replace("{read}", file) for i in items for file in read or [""])
        if value is not None:
            yield ("" if key == "report" else f"{key}=") + ",".join(each)
