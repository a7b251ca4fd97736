"""One HTML page that needs nothing else: no server, no network, no script, pictures inside it.

Whatever stands on it is escaped, and the page forbids its reader's browser to load anything.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from equitools.core.errors import DataError, UsageError

TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem; color: #1b1b1b; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
nav a { margin-right: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
th { border-bottom: 2px solid #888; white-space: nowrap; }
img { max-width: 100%; height: auto; }
"""

Section = tuple[str, str]  # a heading as text, and HTML


def page(title: str, sections: Iterable[Section]) -> str:
    """The page; headings are escaped here, the rest by who made it."""
    numbered = list(enumerate(sections))
    links = "".join(f'<a href="#s{i}">{escape(heading)}</a>\n' for i, (heading, _) in numbered)
    body = "".join(
        f'<section id="s{i}">\n<h2>{escape(heading)}</h2>\n{html}</section>\n'
        for i, (heading, html) in numbered
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<nav>\n{links}</nav>\n{body}</body>\n</html>\n"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; None is an empty cell."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = [
        "".join(f"<td>{'' if cell is None else escape(str(cell))}</td>" for cell in row)
        for row in rows
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def picture(path: Path, description: str) -> str:
    """A picture file as part of the page; description: what it shows, for who cannot see it."""
    kind = TYPES.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path} is no picture that a page can hold ({', '.join(TYPES)})")
    data = base64.b64encode(_read(path)).decode()
    return f'<p><img src="data:{kind};base64,{data}" alt="{escape(description)}"></p>\n'


def file(path: Path) -> Section:
    """What equi-report wrote, as a section: a picture, or a text (.md) with the picture that a line
    of it names.

    Raises DataError for a file that is not there, UsageError for one of another kind.
    """
    if path.suffix.lower() != ".md":
        return path.stem, picture(path, path.stem)
    text, pictures = [], []
    for line in _read(path).decode("utf-8", "replace").splitlines():
        named = Path(line) if Path(line).suffix in TYPES else None
        if named is not None and named.is_file():
            pictures.append(picture(named, path.stem))
        else:
            text.append(line)
    return path.stem, markdown("\n".join(text)) + "".join(pictures)


def markdown(text: str) -> str:
    """The Markdown that equi-report prints (tables, lists and plain paragraphs) as HTML."""
    parts = []
    for kind, lines in _blocks(text):
        if kind == "|":
            cells = [_cells(line) for line in lines]
            parts.append(table(cells[0], cells[2:]))
        elif kind == "-":
            items = "".join(f"<li>{escape(line[2:])}</li>\n" for line in lines)
            parts.append(f"<ul>\n{items}</ul>\n")
        else:
            parts.append(f"<p>{escape(' '.join(lines))}</p>\n")
    return "".join(parts)


def _blocks(text: str) -> list[tuple[str, list[str]]]:
    """Neighboring lines of one kind: `|` of a table, `-` of a list, or empty of a paragraph."""
    blocks: list[tuple[str, list[str]]] = []
    last = None
    for line in text.splitlines():
        kind = line[:1] if line.startswith(("|", "- ")) else ""
        if not line.strip():
            last = None
        elif kind == last:
            blocks[-1][1].append(line)
        else:
            blocks.append((kind, [line]))
            last = kind
    return blocks


def _cells(line: str) -> list[str]:
    """The cells of a table's line; a pipe with a backslash is a letter."""
    inner = line.strip().removeprefix("|").removesuffix("|").replace("\\|", "\0")
    return [cell.strip().replace("\0", "|") for cell in inner.split("|")]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
