"""Pictures of the same name from several folders, side by side."""

from __future__ import annotations

from pathlib import Path

from equitools.core.errors import DataError
from equitools.report.documents import Documents, Where


def sheet(documents: Documents, where: Where, *, folders: list[str], images: int = 4) -> str:
    """Draw sheet.png: pictures of the same name from several folders, side by side.

    images: so many names, the first ones that all folders have.
    """
    from equitools.data.images import decode
    from equitools.report.formats import figures

    found = [{file.name: file for file in Path(folder).glob("*.png")} for folder in folders]
    shared = sorted(set.intersection(*map(set, found))) if found else []
    if not shared:
        raise DataError(f"no picture (.png) is in all of {', '.join(folders) or 'no folder'}")
    parts = [Path(folder).parts for folder in folders]
    names = ["/".join(p for p in one if not all(p in other for other in parts)) for one in parts]
    rows = []
    for name in shared[:images]:
        cells = [decode(one[name].read_bytes(), str(one[name])) for one in found]
        titles = [f"{name}\n{names[0]}", *names[1:]]
        others = [(title, cell, "") for title, cell in zip(titles, cells, strict=True)][1:]
        rows.append((titles[0], cells[0], others))
    return f"{figures.contact_sheet(rows, where(Path.cwd()) / 'sheet.png')}\n"
