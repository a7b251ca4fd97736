"""Figures and their numbers from the documents of a stream: points, attention, robustness, a page.

Each takes the documents and `where`, which is told the folder that a figure would go to and says
the one that it goes to, draws a file there, and returns what is printed. Knobs are keyword-only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from equitools import manifest, tables
from equitools.errors import DataError, UsageError

Format = Literal["md", "csv", "latex"]
Documents = Sequence[dict[str, Any]]
Where = Callable[[Path], Path]


def home(document: dict[str, Any], file: str) -> Path:
    """The folder of a file of a document, or where we are."""
    entry = (document.get("files") or {}).get(file)
    return Path(entry["path"]).parent if entry else Path.cwd()


def tsne(
    documents: Documents,
    where: Where,
    *,
    split: str = "val",
    classes: int = 20,
    limit: int = 1000,
    perplexity: float = 30.0,
    components: int = 50,
    seed: int = 0,
    format: Format = "md",
) -> str:
    """Draw tsne.png of the embeddings of the documents, and measure them in feature space.

    split: train or val. classes: so many at random; limit: points in all; seed: of both and of
    t-SNE. perplexity, components: of t-SNE and of the principal components before it.
    """
    from equitools import figures
    from equitools.evals.embed import read
    from equitools.evals.tsne import NAMES, look

    panels, rows = [], []
    for document in documents:
        name, found = tables.method(document), (*read(document, split), classes, limit, seed)
        cloud = look(*found, perplexity=perplexity, components=components)
        panels.append((name, cloud.plane, cloud.labels.numpy()))
        scores = [f"{cloud.scores[key]:.3f}" for key in NAMES]
        rows.append([name, len(cloud.labels.unique()), *cloud.features.shape, *scores])
    drawn = figures.scatter(panels, where(home(documents[0], "embeddings")) / "tsne.png")
    text = tables.render(["method", "classes", "points", "dims", *NAMES], rows, format)
    return _with_picture(text, drawn, format)


def attention(
    documents: Documents,
    where: Where,
    *,
    images: int = 2,
    first: int = 0,
    split: str = "val",
    folder: str | None = None,
    masks: str | None = None,
    changes: list[str] = ["original", "rotated", "jittered"],  # noqa: B006
    angle: float = 90.0,
    heads: Literal["each", "mean"] = "each",
    size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    format: Format = "md",
) -> str:
    """Draw attention.png: the class token's attention in the last block of each document's ViT,
    over the same pictures, and print what can be measured of it.

    images, first: so many pictures of the split, from that number on, or of a `folder`; masks: a
    folder with their true foregrounds (ECSSD's gt), to be compared with where heads look. changes:
    original, rotated (by `angle` degrees, counter-clockwise), jittered (seeded). heads: each, or
    their mean. size: side of the pictures in pixels, the encoder's own by default.
    """
    from equitools import attention

    index = attention.pictures_of(documents[0], split, folder)
    keys, found = attention.look(
        documents, index, images=images, first=first, changes=changes, angle=angle, size=size,
        seed=seed, device=device, masks=masks,
    )  # fmt: skip
    drawn = where(home(documents[0], "encoder")) / "attention.png"
    attention.draw(keys, found, heads, drawn)
    text = tables.render(attention.columns(found), attention.rows(found), format)
    return _with_picture(text, drawn, format)


def robustness(
    documents: Documents, where: Where, *, part: str = "all", format: Format = "md"
) -> str:
    """Draw robustness.png: accuracy of every run over the columns of the grid, and over angle and
    strength where equi-perturb swept them; the numbers as a table."""
    from equitools import figures

    panels, columns, rows = _perturbed(documents, part)
    drawn = figures.lines(panels, where(Path.cwd()) / "robustness.png", "top-1")
    return _with_picture(tables.render(columns, rows, format), drawn, format)


def sweep(
    documents: Documents,
    where: Where,
    *,
    keys: list[str],
    score: str = "probe/linear/all/top1",
    format: Format = "md",
) -> str:
    """Draw sweep.png: a score over each of some knobs of the recipe (backbone.split,…), of the runs
    that differ from the first document in that knob alone; the numbers as a table."""
    from equitools import figures
    from equitools.robustness import sweep as along

    found = along(documents, keys, score)
    panels = {key: {score: [(f"{x:g}", y.mean, y.sd) for x, y in curve]}
              for key, curve in found.items()}  # fmt: skip
    drawn = figures.lines(panels, where(Path.cwd()) / "sweep.png", "top-1")
    rows = [[key, f"{x:g}", y] for key, curve in found.items() for x, y in curve]
    return _with_picture(tables.render(["knob", "value", score], rows, format), drawn, format)


def sheet(documents: Documents, where: Where, *, folders: list[str], images: int = 4) -> str:
    """Draw sheet.png: pictures of the same name from several folders, side by side.

    images: so many names, the first ones that all folders have.
    """
    from equitools import figures
    from equitools import images as decoding

    found = [{file.name: file for file in Path(folder).glob("*.png")} for folder in folders]
    shared = sorted(set.intersection(*map(set, found))) if found else []
    if not shared:
        raise DataError(f"no picture (.png) is in all of {', '.join(folders) or 'no folder'}")
    parts = [Path(folder).parts for folder in folders]
    names = ["/".join(p for p in one if not all(p in other for other in parts)) for one in parts]
    rows = []
    for name in shared[:images]:
        cells = [decoding.decode(one[name].read_bytes(), str(one[name])) for one in found]
        titles = [f"{name}\n{names[0]}", *names[1:]]
        others = [(title, cell, "") for title, cell in zip(titles, cells, strict=True)][1:]
        rows.append((titles[0], cells[0], others))
    return f"{figures.contact_sheet(rows, where(Path.cwd()) / 'sheet.png')}\n"


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
    from equitools import pages

    if not documents and not include:
        raise UsageError("a page needs documents on stdin, or files: include=table.md,figure.png")
    sections = [pages.file(Path(path)) for path in include]
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
    manifest.write_atomic(folder_out / "page.html", pages.page(title, sections))
    return f"{folder_out / 'page.html'}\n"


# --- Parts of the page -----------------------------------------------------------------------


def _scores(documents: Documents, patterns: Sequence[str]) -> str:
    """The scores of one document in full, of several with a column for each."""
    from equitools import pages

    columns, rows = tables.score_table(documents, patterns)
    if len(documents) == 1:
        return pages.table(columns, rows)
    turned = list(zip(columns, *rows, strict=True))
    return pages.table(["", *(str(i + 1) for i in range(len(rows)))], turned)


def _curves(documents: Documents, out: Path) -> list[tuple[str, str]]:
    from equitools import figures, pages, runs

    trained: dict[str, dict[str, Any]] = {}
    for document in documents:
        if entry := (document.get("files") or {}).get("metrics"):
            trained.setdefault(str(entry.get("digest") or entry["path"]), document)
    if not trained:
        return []
    drawn = figures.curves(runs.metrics(list(trained.values())), out / "curves.png")
    return [("Curves", pages.picture(drawn, "losses, rates and the collapse watch over epochs"))]


def _robust(documents: Documents, part: str, out: Path) -> list[tuple[str, str]]:
    from equitools import figures, pages

    try:
        panels, columns, rows = _perturbed(documents, part)
    except DataError:
        return []
    drawn = figures.lines(panels, out / "robustness.png", "top-1")
    shown = pages.picture(drawn, "accuracy over what is done to the pictures")
    return [("Robustness", shown + pages.table(columns, rows))]


def _attention(
    documents: Documents, split: str, folder: str | None, heads: str, out: Path,
    asked: dict[str, Any],
) -> list[tuple[str, str]]:  # fmt: skip
    """Pictures and numbers of the encoders that have attention; what the others are instead."""
    from equitools import attention, pages

    apart: dict[Any, dict[str, Any]] = {}
    for document in documents:
        entry = (document.get("files") or {}).get("encoder")
        if entry and tables.encoder(document) is None:
            apart.setdefault(entry.get("digest") or entry["path"], document)
    found: list[attention.Seen] = []
    keys: list[str] = []
    notes: list[str] = []
    for document in apart.values():
        try:
            index = attention.pictures_of(document, split, folder)
            keys, seen = attention.look(
                [document], index, changes=attention.CHANGES, angle=90.0, seed=0, **asked
            )
            found += seen
        except (DataError, UsageError) as error:
            notes.append(f"- {tables.method(document)}: {error}")
    said = pages.markdown("\n".join(dict.fromkeys(notes)))
    if not found:
        return [("Attention", said)] if notes else []
    drawn = attention.draw(keys, found, heads, out / "attention.png")
    numbers = pages.table(attention.COLUMNS, attention.rows(found))
    return [("Attention", pages.picture(drawn, "attention over pictures") + numbers + said)]


def _perturbed(
    documents: Documents, part: str
) -> tuple[dict[str, Any], list[str], list[list[Any]]]:
    """Panels for `figures.lines`, and the same numbers as a table with a column for each run.

    Raises DataError without a perturbation score.
    """
    from equitools import robustness

    panels = robustness.columns(documents, part) | robustness.curves(documents, part)
    if not panels:
        raise DataError(
            f"no document has a perturbation score of part {part}; equi-perturb grid and"
            " equi-perturb invariance make them"
        )
    names = list(dict.fromkeys(name for runs in panels.values() for name in runs))
    rows = []
    for what, runs in panels.items():
        points = dict.fromkeys(x for name in runs for x, _ in runs[name])
        found = {name: dict(curve) for name, curve in runs.items()}
        rows += [[what, x if isinstance(x, str) else f"{x:g}",
                  *(found.get(name, {}).get(x) for name in names)] for x in points]  # fmt: skip
    drawn = {
        what: {name: [(x, y.mean, y.sd) for x, y in curve] for name, curve in runs.items()}
        for what, runs in panels.items()
    }
    return drawn, ["pictures", "strength", *names], rows


def _with_picture(text: str, drawn: Path, format: str) -> str:
    return f"{text}\n{drawn}\n" if format == "md" else text
