"""One HTML page of several runs: scores, curves, robustness and attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from equitools.core.errors import DataError, UsageError
from equitools.core.files import write_atomic
from equitools.report.curves import draw
from equitools.report.describe import encoder, method
from equitools.report.documents import Document, Documents, Where, read_metrics
from equitools.report.formats import figures, html
from equitools.report.formats.html import Section
from equitools.report.robustness import perturbed
from equitools.report.table import score_table

if TYPE_CHECKING:
    from equitools.report.attention_maps import Options


def page(
    documents: Documents,
    where: Where,
    *,
    title: str = "equitools",
    include: tuple[str, ...] = (),
    scores: tuple[str, ...] = (),
    part: str = "all",
    images: int = 2,
    first: int = 0,
    split: str = "val",
    folder: str | None = None,
    heads: Literal["each", "mean"] = "each",
    size: int | None = None,
    device: str = "auto",
) -> Path:
    """One HTML page without a server: files (include=table.md,figure.png) and the documents.

    The included files are tables that equi-report wrote as .md, and pictures. Then come scores,
    curves, robustness and attention of the documents, as far as they have them; attention is of
    their own encoders. scores: patterns of what the table shows. part: of the robustness plot.
    images (0: none) and the rest: of the attention, as there.
    """
    if not documents and not include:
        raise UsageError("a page needs documents on stdin, or files: include=table.md,figure.png")
    sections = [html.file(Path(path)) for path in include]
    out = where(Path.cwd())
    sections += _scores(documents, scores)
    sections += _curves(documents, out)
    sections += _robustness(documents, part, out)
    if images:
        from equitools.report.attention_maps import Options

        options = Options(images, first, split, folder, size=size, device=device)
        sections += _attention(documents, options, heads, out)
    if not sections:
        raise DataError("the documents have no scores, metrics or encoder that a page could show")
    write_atomic(out / "page.html", html.page(title, sections))
    return out / "page.html"


# --- Parts of the page -----------------------------------------------------------------------


def _scores(documents: Documents, patterns: Sequence[str]) -> list[Section]:
    """The scores of one document in full, of several with a column for each."""
    if not any(document.get("scores") for document in documents):
        return []
    columns, rows = score_table(documents, patterns)
    if len(documents) > 1:
        turned = [list(line) for line in zip(columns, *rows, strict=True)]
        columns, rows = ["", *(str(i + 1) for i in range(len(rows)))], turned
    return [("Scores", html.table(columns, rows))]


def _curves(documents: Documents, out: Path) -> list[Section]:
    runs = _apart(documents, "metrics")
    if not runs:
        return []
    picture = draw(read_metrics(runs), out / "curves.png")
    return [("Curves", html.picture(picture, "losses, rates and the collapse watch over epochs"))]


def _apart(documents: Documents, file: str) -> list[Document]:
    """The documents that name a file, one for each content of it."""
    apart: dict[str, Document] = {}
    for document in documents:
        if entry := (document.get("files") or {}).get(file):
            apart.setdefault(str(entry.get("digest") or entry["path"]), document)
    return list(apart.values())


def _robustness(documents: Documents, part: str, out: Path) -> list[Section]:
    try:
        panels, numbers = perturbed(documents, part)
    except DataError:
        return []
    drawn = figures.lines(panels, out / "robustness.png", "top-1")
    picture = html.picture(drawn, "accuracy over what is done to the pictures")
    return [("Robustness", picture + html.table(*numbers))]


def _attention(documents: Documents, options: Options, heads: str, out: Path) -> list[Section]:
    """Pictures and numbers of the encoders that have attention; what the others are instead."""
    from equitools.report import attention_maps

    keys: list[str] = []
    maps: list[attention_maps.HeadMaps] = []
    refusals: list[str] = []
    for document in _apart([d for d in documents if encoder(d) is None], "encoder"):
        try:
            index = attention_maps.open_pictures(document, options)
            keys, own = attention_maps.measure([document], index, options)
            maps += own
        except (DataError, UsageError) as error:
            refusals.append(f"- {method(document)}: {error}")
    text = html.markdown("\n".join(dict.fromkeys(refusals)))
    if not maps:
        return [("Attention", text)] if refusals else []
    drawn = attention_maps.draw(keys, maps, heads, out / "attention.png")
    numbers = html.table(attention_maps.columns(maps), attention_maps.rows(maps))
    return [("Attention", html.picture(drawn, "attention over pictures") + numbers + text)]
