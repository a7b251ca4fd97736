"""What a source lists: samples by split, in the order of their file names."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

# The suffixes that torchvision's ImageFolder reads; .jpeg and .jpe are packed as jpg.
ENDS = ("jpg", "jpeg", "jpe", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff")
SUFFIXES = {f".{end}": {"jpeg": "jpg", "jpe": "jpg", "tiff": "tif"}.get(end, end) for end in ENDS}


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


def of_file(name: str, label: int, path: str, facts: os.stat_result) -> Sample:
    """The sample that a file is."""
    return Sample(name, label, path, None, facts.st_size, facts.st_mtime_ns)


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


def rank(seed: int, purpose: str, name: str) -> bytes:
    """A number by which names are put into a random order that no other name influences.

    Taking the first k by rank gives nested subsets: the 1 % lies within the 10 %.
    """
    return hashlib.sha256(os.fsencode(f"{seed}\0{purpose}\0{name}")).digest()


def by_file(source: Source) -> Source:
    """The source with the samples of each split in order, empty splits left out."""
    splits = {name: samples for name, samples in source.splits.items() if samples}
    ordered = {name: sorted(splits[name], key=lambda one: one.file) for name in splits}
    return replace(source, splits=ordered)
