"""Masks as palette PNGs, whose pixels are labels: 0 background, 255 void, objects from 1."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from equitools.core import files
from equitools.core.errors import DataError

VOID = 255
SMALL = ("P", "L", "1")  # Pillow's names of what has no label beyond 255
MADE = ".made"  # says how the masks beside it were made


def check(path: Path) -> None:
    """DataError for what `labels` would refuse; most masks tell by their header."""
    with Image.open(path) as picture:
        if picture.mode in SMALL:
            return
    labels(path)


def labels(path: Path) -> np.ndarray:
    """The labels h w of a mask, uint8: the indices of a palette, or gray values as they are.

    Raises DataError, which names the file, for what is no such picture and for a label beyond 254
    that is not void.
    """
    try:
        with Image.open(path) as picture:
            mode, values = picture.mode, np.array(picture)
    except (OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read the mask {path}: {reason}") from error
    if mode not in SMALL and not mode.startswith("I"):
        raise DataError(f"{path} is a picture in {mode}; a mask is a palette or gray PNG of labels")
    if values.max() > VOID:
        raise DataError(f"{path} has label {values.max()}; labels are 0 to 254, and 255 is void")
    return values.astype(np.uint8)


def palette(path: Path) -> list[int]:
    """The palette of a mask as 768 numbers; that of DAVIS and Pascal VOC for a gray one."""
    with Image.open(path) as picture:
        own = picture.getpalette("RGB") if picture.mode == "P" else None
    usual = colors()
    return usual if own is None else own + usual[len(own) :]


def colors() -> list[int]:
    """The palette of DAVIS and Pascal VOC, 256 × RGB: bit k of a color's channel c is bit 3 (7 - k)
    + c of its number."""
    return [
        sum((label >> 3 * step + channel & 1) << 7 - step for step in range(3))
        for label in range(256)
        for channel in range(3)
    ]


def made_by(folder: Path) -> str | None:
    """How the masks of a folder were made, as `write` was told; None when nothing says so."""
    path = folder / MADE
    return path.read_text(encoding="utf-8") if path.is_file() else None


def write(
    folder: Path, made: str, first: Path, names: Sequence[str], masks: Iterable[np.ndarray]
) -> None:
    """Write the masks of a video, all or none: the first mask as it is, then labels h w with its
    palette. made: what `made_by` answers then. One process at a time writes there."""
    temporary = folder.with_name(f".{folder.name}~")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    try:
        shutil.copyfile(first, temporary / names[0])
        table = palette(first)
        for name, mask in zip(names[1:], masks, strict=True):
            picture = Image.fromarray(mask)
            picture.putpalette(table)
            picture.save(temporary / name, "PNG")
        files.write_atomic(temporary / MADE, made)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
