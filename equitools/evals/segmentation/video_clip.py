"""A video: its frames, a mask for each of them, and the scores of labels that are found for it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from equitools.core.errors import DataError
from equitools.data import images
from equitools.evals.segmentation import j_and_f, palette_png
from equitools.evals.segmentation.j_and_f import frame
from equitools.evals.segmentation.palette_png import VOID


@dataclass(frozen=True)
class Clip:
    """A video: its frames and their masks (the same number), the labels h w of the first mask
    (void is background), and a digest of all files."""

    name: str
    frames: list[Path]
    masks: list[Path]
    first: np.ndarray
    digest: str

    @property
    def objects(self) -> int:
        """How many objects there are to follow."""
        return j_and_f.objects(self.first)


def read(name: str, frames: Path, masks: Path) -> Clip:
    """The video of two folders, all of whose files are there and of one size.

    Raises DataError, which names the file, for a frame or mask that is missing, for one of another
    size, and for what is no mask.
    """
    pictures, labels = _files(frames, (".jpg", ".jpeg", ".png")), _files(masks, (".png",))
    _check_pairs(name, pictures, labels, masks)
    digest, size = hashlib.sha256(), None
    for path in (*pictures.values(), *labels.values()):
        data = path.read_bytes()
        digest.update(f"{path.name} {hashlib.sha256(data).hexdigest()}\n".encode())
        shape = images.shape(data, str(path))
        size = size or shape
        if shape != size:
            sizes = f"{shape[1]}×{shape[0]} px, its first frame {size[1]}×{size[0]} px"
            raise DataError(f"{path} of {name} is {sizes}")
    paths = [labels[stem] for stem in pictures]
    for path in paths:
        palette_png.check(path)
    first = palette_png.labels(paths[0])
    first[first == VOID] = 0
    return Clip(name, list(pictures.values()), paths, first, digest.hexdigest())


def _check_pairs(
    name: str, pictures: dict[str, Path], labels: dict[str, Path], masks: Path
) -> None:
    """DataError for a frame without a mask, a mask without a frame, a number that is left out."""
    for number, stem in enumerate(pictures):
        if stem not in labels:
            which = "first frame" if not number else f"frame {stem}"
            raise DataError(f"no mask {masks / stem}.png for the {which} of {name}")
    if more := [path for stem, path in labels.items() if stem not in pictures]:
        raise DataError(f"no frame of {name} belongs to the mask {more[0]}")
    if all(stem.isdecimal() for stem in pictures):
        numbers = [int(stem) for stem in pictures]
        gaps = [a for a, b in pairwise(numbers) if b != a + 1]
        if gaps:
            raise DataError(f"frame {gaps[0] + 1} of {name} is missing, and its mask is too")


def _files(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """{stem: file} of a folder in order; DataError when there is none."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings)
    if not paths:
        raise DataError(f"{folder} has no {' or '.join(endings)} file")
    return {path.stem: path for path in paths}


def scored(clip: Clip, predicted: Iterable[np.ndarray]) -> np.ndarray:
    """J and F of labels of every frame but the first and the last: (frames, objects, 2)."""
    pairs = zip(predicted, clip.masks[1:-1], strict=True)
    return np.array(
        [frame(labels, palette_png.labels(path), clip.objects, str(path)) for labels, path in pairs]
    )
