"""Pictures of the same name from several folders, side by side."""

from pathlib import Path

from equitools.core.errors import DataError
from equitools.report.documents import Documents, Where


def sheet(documents: Documents, where: Where, *, folders: list[str], images: int = 4) -> Path:
    """Pictures of the same name from several folders, side by side (sheet.png): folders=a,b

    images: so many names, the first ones that all folders have.
    """
    from equitools.data.images import decode
    from equitools.report.formats import figures

    files = [{file.name: file for file in Path(folder).glob("*.png")} for folder in folders]
    shared = sorted(set.intersection(*map(set, files))) if files else []
    if not shared:
        raise DataError(f"no picture (.png) is in all of {', '.join(folders) or 'no folder'}")
    parts = [Path(folder).parts for folder in folders]
    titles = ["/".join(p for p in one if not all(p in other for other in parts)) for one in parts]
    rows = []
    for name in shared[:images]:
        first, *others = [decode(one[name].read_bytes(), str(one[name])) for one in files]
        panels = [(title, picture, "") for title, picture in zip(titles[1:], others, strict=True)]
        rows.append((f"{name}\n{titles[0]}", first, panels))
    return figures.contact_sheet(rows, where(Path.cwd()) / "sheet.png")
