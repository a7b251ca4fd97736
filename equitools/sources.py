"""Where pictures come from, folders and embedded sets: each becomes a list of samples.

A folder keeps its files' own bytes; what has no files (arrays, drawings) is encoded as PNG when it
is packed. Class folders give labels in the order of their sorted names, as torchvision's
ImageFolder does; a folder without class folders gives pictures without labels.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from equitools import images, scenes
from equitools.errors import DataError, EquiError, UsageError

# The suffixes that torchvision's ImageFolder reads; .jpeg and .jpe are packed as jpg.
SUFFIXES = {
    ".jpg": "jpg", ".jpeg": "jpg", ".jpe": "jpg", ".png": "png", ".webp": "webp", ".bmp": "bmp",
    ".ppm": "ppm", ".pgm": "pgm", ".tif": "tif", ".tiff": "tif",
}  # fmt: skip
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid", "test")
DIGITS_VAL = 360


def suffix(name: str) -> str:
    """`.jpeg` of `cat/1.JPEG`."""
    stem, dot, end = name.rpartition("/")[2].rpartition(".")
    return dot + end.lower() if stem else ""


@dataclass(frozen=True)
class Sample:
    """One picture: a file, or a function that makes (bytes, facts for its JSON).

    file   its name within the source's split, with forward slashes; the order depends on it alone
    label  the class, -1 for none
    """

    file: str
    label: int
    path: str | None = None
    make: Callable[[], tuple[bytes, dict[str, Any]]] | None = None
    bytes: int = 0
    stamp: int = 0

    @property
    def extension(self) -> str:
        """The member's extension in the shard."""
        return SUFFIXES[suffix(self.file)]


@dataclass
class Source:
    """The splits of a source, sorted by file name; `ignored` are paths of what is no image by its
    name; `notes` are for the user's eyes."""

    name: str
    splits: dict[str, list[Sample]]
    classes: list[str] | None
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """sha256 of the listing: names, labels, sizes and times of every file, and the classes."""
        total = hashlib.sha256(repr(self.classes).encode())
        for split in sorted(self.splits):
            for one in self.splits[split]:
                line = f"{split}\0{one.file}\0{one.label}\0{one.bytes}\0{one.stamp}\n"
                total.update(os.fsencode(line))
        return f"sha256:{total.hexdigest()}"


# --- Folders ---------------------------------------------------------------------------------


def folder(
    root: Path, wanted: list[str] | None, train_split: str | None, val_split: str | None
) -> Source:
    """The splits of a folder: train/ and val/ (validation/, valid/, test/), else all as train.

    train_split, val_split: the folder to take instead, "." for the folder itself. wanted: class
    folders to take, in the order of their labels. Raises DataError for a folder, class or image
    that is not there, naming it.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}")
    found, notes = _split_folders(root, train_split, val_split)
    source = Source(root.name, {}, wanted, notes=notes)
    for split, path in found.items():
        source.splits[split] = list(_list_split(path, source, split, wanted))
        if not source.splits[split]:
            raise DataError(f"no images in {path}; it wants {', '.join(SUFFIXES)}")
    return source


def _split_folders(
    root: Path, train_split: str | None, val_split: str | None
) -> tuple[dict[str, Path], list[str]]:
    named = {"train": train_split, "val": val_split}
    found, notes = {}, []
    for split, names in (("train", TRAIN_NAMES), ("val", VAL_NAMES)):
        if named[split] is not None:
            found[split] = root / str(named[split])
            if not found[split].is_dir():
                raise DataError(f"{split}_split={named[split]}: no folder {found[split]}")
        elif "." not in named.values():
            present = [name for name in names if (root / name).is_dir()]
            if present:
                found[split] = root / present[0]
            notes += [
                f"{root / name}/ is left out: {split} is {present[0]}/" for name in present[1:]
            ]
    return found or {"train": root}, notes


def _list_split(
    path: Path, source: Source, split: str, wanted: list[str] | None
) -> Iterator[Sample]:
    """The samples of one split; without a choice, the first split with class folders decides."""
    names = {name for name, entry in _entries(path) if entry.is_dir()}
    if not names:
        if wanted is not None:
            raise DataError(f"{path} has no class folders, so classes= cannot choose among them")
        source.notes.append(f"{path} has no class folders: {split} is without labels")
        yield from _list_images(path, "", -1, source)
        return
    strange = sorted(names - set(source.classes or names))
    if strange and wanted is None:
        raise DataError(f"{path} has classes that train lacks: {_some(strange)}")
    source.classes = source.classes or sorted(names)
    if missing := sorted(set(source.classes) - names):
        lack = f"{path} lacks {len(missing)} of {len(source.classes)} classes: {_some(missing)}"
        if split == "train":
            raise DataError(lack)
        source.notes.append(lack)
    for label, name in enumerate(source.classes):
        listed = list(_list_images(path / name, f"{name}/", label, source)) if name in names else []
        if name in names and not listed:
            raise DataError(f"class folder {path / name} holds no images; fill it or remove it")
        yield from listed


def _list_images(path: Path, prefix: str, label: int, source: Source) -> Iterator[Sample]:
    """The images below a folder, sorted by name, through links; others are counted."""
    seen: set[tuple[int, int]] = set()
    listed: list[Sample] = []

    def visit(folder: Path, prefix: str) -> None:
        about = folder.stat()
        if (about.st_dev, about.st_ino) in seen:  # a link back to where we have been
            return
        seen.add((about.st_dev, about.st_ino))
        for name, entry in _entries(folder):
            if entry.is_dir():
                visit(folder / name, f"{prefix}{name}/")
            elif suffix(name) not in SUFFIXES:
                source.ignored.append(entry.path)
            else:
                facts = _stat(entry)
                listed.append(
                    Sample(prefix + name, label, entry.path, None, facts.st_size, facts.st_mtime_ns)
                )

    visit(path, prefix)
    return iter(sorted(listed, key=lambda one: one.file))


def _entries(path: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """What a folder holds, without hidden things (.DS_Store, ._copies, .git)."""
    try:
        with os.scandir(path) as entries:
            return [(entry.name, entry) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read folder {path}: {error.strerror}") from error


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        facts = entry.stat()
    except OSError as error:
        raise DataError(f"cannot read {entry.path}: {error.strerror} (a broken link?)") from error
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(f"{entry.path} is not a regular file")
    return facts


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


# --- Embedded sets ---------------------------------------------------------------------------


def digits(size: int) -> Source:
    """scikit-learn's 1797 handwritten digits (Alpaydin and Kaynak, 1998), enlarged from 8 px.

    The split is fixed: 1437 train, 360 val. Raises EquiError when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise EquiError(
            "digits come with scikit-learn, which is not installed: pip install 'equitools[digits]'"
        ) from None
    data = load_digits()
    ranks = sorted(range(len(data.target)), key=lambda i: rank(0, "digits", str(i)))
    val = set(ranks[:DIGITS_VAL])
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for i, (pixels, label) in enumerate(zip(data.images, data.target.tolist(), strict=True)):
        make = partial(_digit, pixels.astype(np.uint8), size)
        splits["val" if i in val else "train"].append(
            Sample(f"{label}/{i:04d}.png", label, make=make)
        )
    return _sorted(Source("digits", splits, [str(label) for label in range(10)]))


def _digit(pixels: np.ndarray, size: int) -> tuple[bytes, dict[str, Any]]:
    from PIL import Image

    gray = Image.fromarray((pixels.astype(np.float32) * (255 / 16) + 0.5).astype(np.uint8))
    return images.encode_png(np.asarray(gray.resize((size, size), Image.Resampling.BICUBIC))), {}


def drawn_scenes(size: int, train: int, val: int, seed: int) -> Source:
    """The procedural pictures of `scenes`, in as many samples as wanted."""
    if size < 16:
        raise UsageError(f"shard.size={size}; a scene needs at least 16 px")
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            label, make = i % len(scenes.CLASSES), partial(scenes.render, seed, split, i, size)
            name = f"{scenes.CLASSES[label]}/{i:06d}.png"
            splits[split].append(Sample(name, label, make=make))
    return _sorted(Source("scenes", splits, list(scenes.CLASSES)))


def _sorted(source: Source) -> Source:
    ordered = {
        split: sorted(samples, key=lambda one: one.file)
        for split, samples in source.splits.items()
        if samples
    }
    return replace(source, splits=ordered)


def rank(seed: int, purpose: str, name: str) -> bytes:
    """A number by which names are put into a random order that no other name influences.

    Taking the first k by rank gives nested subsets: the 1 % lies within the 10 %.
    """
    return hashlib.sha256(os.fsencode(f"{seed}\0{purpose}\0{name}")).digest()
