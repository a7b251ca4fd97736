"""Image folders as a source.

A folder keeps its files' own bytes. Class folders give labels in the order of their sorted names,
as torchvision's ImageFolder does; a folder without class folders gives pictures without labels.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from equitools.core.errors import DataError
from equitools.data.sources.source import SUFFIXES, Sample, Source, of_file, suffix

TRAIN_NAMES = ("train", "training")
Names = list[str] | None
VAL_NAMES = ("val", "validation", "valid", "test")


def folder(root: Path, wanted: Names, train_split: str | None, val_split: str | None) -> Source:
    """The splits of a folder: train/ and val/ (validation/, valid/, test/), else all as train.

    train_split, val_split: the folder to take instead, "." for the folder itself. wanted: class
    folders to take, in the order of their labels. Raises DataError for a folder, class or image
    that is not there, naming it.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}")
    folders, notes = _split_folders(root, train_split, val_split)
    source = Source(root.name, {}, wanted, notes=notes)
    for split, path in folders.items():
        source.splits[split] = list(_list_split(path, source, split, wanted))
        if not source.splits[split]:
            raise DataError(f"no images in {path}; it wants {', '.join(SUFFIXES)}")
    return source


def _split_folders(
    root: Path, train_split: str | None, val_split: str | None
) -> tuple[dict[str, Path], list[str]]:
    named = {"train": train_split, "val": val_split}
    folders, notes = {}, []
    for split, names in (("train", TRAIN_NAMES), ("val", VAL_NAMES)):
        if named[split] is not None:
            folders[split] = root / str(named[split])
            if not folders[split].is_dir():
                raise DataError(f"{split}_split={named[split]}: no folder {folders[split]}")
        elif "." not in named.values():
            there = [root / name for name in names if (root / name).is_dir()]
            if there:
                folders[split] = there[0]
            notes += [f"{path}/ is left out: {split} is {there[0].name}/" for path in there[1:]]
    return folders or {"train": root}, notes


def _list_split(path: Path, source: Source, split: str, wanted: Names) -> Iterator[Sample]:
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
                listed.append(of_file(prefix + name, label, entry.path, _stat(entry)))

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
