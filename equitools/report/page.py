"""One HTML page of several runs: scores, curves, robustness and attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from equitools.core import files
from equitools.core.errors import DataError, UsageError
from equitools.report.describe import encoder, method
from equitools.report.documents import Documents, Where
from equitools.report.robustness import perturbed
from equitools.report.scores import score_table


def page(
    documents: Documents,
    where: Where,
    *,
    title: str = "equitools",
    include: list[str] = [],  # noqa: B006
    scores: list[str] = [],  # noqa: B006
    part: str = "all",
    images: int = 2,
    first: int = 0,
    split: str = "val",
    folder: str | None = None,
    heads: Literal["each", "mean"] = "each",
    size: int | None = None,
    device: str = "auto",
) -> str:
    """Write page.html, one file that a browser shows without a server: the included files (tables
    that equi-report wrote as .md, pictures), then scores, curves, robustness and attention of the
    documents, as far as they have them. Attention is of the documents' own encoders.

    scores: patterns of what the table shows. part: of the robustness plot. images (0: none) and
    the rest: of the attention, as there.
    """
    from equitools.report.formats import html

    if not documents and not include:
        raise UsageError("a page needs documents on stdin, or files: include=table.md,figure.png")
    sections = [html.file(Path(path)) for path in include]
    folder_out = where(Path.cwd())
    if any(document.get("scores") for document in documents):
        sections.append(("Scores", _scores(documents, scores)))
    sections += _curves(documents, folder_out)
    sections += _robust(documents, part, folder_out)
    if images:
        asked = {"images": images, "first": first, "size": size, "device": device}
        sections += _attention(documents, split, folder, heads, folder_out, asked)
    if not sections:
        raise DataError("the documents have no scores, metrics or encoder that a page could show")
    files.write_atomic(folder_out / "page.html", html.page(title, sections))
    return f"{folder_out / 'page.html'}\n"


# --- Parts of the page -----------------------------------------------------------------------


def _scores(documents: Documents, patterns: Sequence[str]) -> str:
    """The scores of one document in full, of several with a column for each."""
    from equitools.report.formats import html

    columns, rows = score_table(documents, patterns)
    if len(documents) == 1:
        return html.table(columns, rows)
    turned = list(zip(columns, *rows, strict=True))
    return html.table(["", *(str(i + 1) for i in range(len(rows)))], turned)


def _curves(documents: Documents, out: Path) -> list[tuple[str, str]]:
    from equitools.report.curves import curves, metrics
    from equitools.report.formats import html

    trained: dict[str, dict[str, Any]] = {}
    for document in documents:
        if entry := (document.get("files") or {}).get("metrics"):
            trained.setdefault(str(entry.get("digest") or entry["path"]), document)
    if not trained:
        return []
    drawn = curves(metrics(list(trained.values())), out / "curves.png")
    return [("Curves", html.picture(drawn, "losses, rates and the collapse watch over epochs"))]


def _robust(documents: Documents, part: str, out: Path) -> list[tuple[str, str]]:
    from equitools.report.formats import figures, html

    try:
        panels, columns, rows = perturbed(documents, part)
    except DataError:
        return []
    drawn = figures.lines(panels, out / "robustness.png", "top-1")
    shown = html.picture(drawn, "accuracy over what is done to the pictures")
    return [("Robustness", shown + html.table(columns, rows))]


def _attention(
    documents: Documents, split: str, folder: str | None, heads: str, out: Path,
    asked: dict[str, Any],
) -> list[tuple[str, str]]:  # fmt: skip
    """Pictures and numbers of the encoders that have attention; what the others are instead."""
    from equitools.report import attention_maps
    from equitools.report.formats import html

    apart: dict[Any, dict[str, Any]] = {}
    for document in documents:
        entry = (document.get("files") or {}).get("encoder")
        if entry and encoder(document) is None:
            apart.setdefault(entry.get("digest") or entry["path"], document)
    found: list[attention_maps.Seen] = []
    keys: list[str] = []
    notes: list[str] = []
    for document in apart.values():
        try:
            index = attention_maps.pictures_of(document, split, folder)
            keys, seen = attention_maps.look(
                [document], index, changes=attention_maps.CHANGES, angle=90.0, seed=0, **asked
            )
            found += seen
        except (DataError, UsageError) as error:
            notes.append(f"- {method(document)}: {error}")
    said = html.markdown("\n".join(dict.fromkeys(notes)))
    if not found:
        return [("Attention", said)] if notes else []
    drawn = attention_maps.draw(keys, found, heads, out / "attention.png")
    numbers = html.table(attention_maps.COLUMNS, attention_maps.rows(found))
    return [("Attention", html.picture(drawn, "attention over pictures") + numbers + said)]
