"""Which samples of a source are packed: classes, file lists, seeded fractions, a held-out split.

Every choice goes by a hash of (seed, file name), so it does not depend on the order of files, and
a smaller fraction lies within a larger one, as the 1 % and 10 % lists of SimCLR do (Chen et al.,
2020).
"""

import gzip
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from equitools.core.errors import DataError, UsageError
from equitools.data.sources import EMBEDDED, open_source
from equitools.data.sources.source import Sample, Source, rank

Samples = list[Sample]


def select(settings: dict[str, Any]) -> Source:
    """The source's listing, after classes, held-out split, list and fraction."""
    wanted = class_names(settings["classes"])
    source = keep_classes(open_source(settings, wanted), wanted)
    source = hold_out(source, settings["holdout"], settings["seed"])
    source = take_listed(source, settings["list"])
    return take_fraction(source, settings["fraction"], settings["seed"])


def class_names(classes: str | int | list | None) -> list[str] | None:
    """The classes that were asked for, sorted: `in100`, a file with one name a line, or names.

    Text after a tab is a comment. Raises UsageError for names that stand twice, DataError for a
    file that is not there or empty.
    """
    if classes is None:
        return None
    if isinstance(classes, list):
        names = [str(name) for name in classes]
    elif str(classes) in EMBEDDED or "/" in str(classes) or str(classes).endswith(".txt"):
        lines = read_list(EMBEDDED.get(str(classes), classes))
        names = [line.split("\t")[0].strip() for line in lines]
    else:
        names = [name.strip() for name in str(classes).split(",")]
    if len(set(names)) < len(names) or not all(names):
        raise UsageError(f"shard.classes names a class twice or an empty one: {classes}")
    return sorted(names)


def read_list(path: str | int | Path) -> list[str]:
    """The lines of a text file (or .gz) that are neither empty nor begin with #."""
    path = Path(str(path))
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list {path}: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise DataError(f"the list {path} is empty")
    return lines


def keep_classes(source: Source, wanted: list[str] | None) -> Source:
    """The source with these classes alone, labelled by their position; DataError if one lacks."""
    if wanted is None or source.classes == wanted:
        return source
    known = {name: label for label, name in enumerate(source.classes or [])}
    if missing := [name for name in wanted if name not in known]:
        has = ", ".join(known)[:200]
        raise DataError(f"{source.name} has no class '{missing[0]}'; it has {has}")
    new = {known[name]: label for label, name in enumerate(wanted)}
    splits = {
        split: [replace(one, label=new[one.label]) for one in samples if one.label in new]
        for split, samples in source.splits.items()
    }
    return replace(source, splits=splits, classes=wanted)


def hold_out(source: Source, share: float, seed: int) -> Source:
    """Move a seeded share of train, the same of every class, to val; each class keeps one at least.

    A source that has a val split keeps it, and where every class has one image, the draw is over
    all images; a note says so. Raises UsageError for a share outside of [0, 1), DataError when
    there is one image.
    """
    if not 0 <= share < 1:
        raise UsageError(f"shard.holdout={share}; it is a share of train, from 0 to below 1")
    if share == 0:
        return source
    notes = list(source.notes)
    if "val" in source.splits:
        notes.append(f"{source.name} has a val split: holdout is not used")
        return replace(source, notes=notes)
    train = source.splits["train"]
    held, rest = _divide(train, share, seed, "holdout", spare=1)
    if not held:
        held, rest = _divide(train, share, seed, "holdout", spare=1, by_class=False)
        notes.append(
            f"holdout={share}: every class has one image, so {len(held)} of {len(train)} are drawn"
            " over all of them, and train lacks the classes of val"
        )
    if not held:
        raise DataError(f"shard.holdout={share} of {len(train)} image leaves a split empty")
    return replace(source, splits={"train": rest, "val": held}, notes=notes)


def take_fraction(source: Source, share: float, seed: int) -> Source:
    """Keep a seeded share of train, the same of every class; at least one of a class."""
    if not 0 < share <= 1:
        raise UsageError(f"shard.fraction={share}; it is a share of train, above 0 up to 1")
    if share == 1 or "train" not in source.splits:
        return source
    taken, _ = _divide(source.splits["train"], share, seed, "fraction")
    return replace(source, splits={**source.splits, "train": taken})


def _divide(
    samples: Samples, share: float, seed: int, purpose: str, spare: int = 0, by_class: bool = True
) -> tuple[Samples, Samples]:
    """(the share, the rest), class by class, each in the order it came.

    The share takes at least one of a class, and leaves at least `spare`.
    """
    classes = defaultdict(list)
    for one in samples:
        classes[one.label if by_class else -1].append(one)
    taken = set()
    for members in classes.values():
        ranked = sorted(members, key=lambda one: rank(seed, purpose, one.file))
        count = min(max(1, round(share * len(ranked))), len(ranked) - spare)
        taken |= {one.file for one in ranked[:count]}
    return [s for s in samples if s.file in taken], [s for s in samples if s.file not in taken]


def take_listed(source: Source, path: str | None) -> Source:
    """Keep the files of train that a list names, by base name (as SimCLR's lists) or by path.

    Names that the source lacks are noted: a list of all classes fits a source of some. Raises
    DataError when it has none of them, or a base name means several files.
    """
    if path is None:
        return source
    samples = source.splits.get("train", [])
    names = set(read_list(path))
    by_base = defaultdict(list)
    for one in samples:
        by_base[one.file.rpartition("/")[2]].append(one.file)
    chosen: set[str] = set()
    for name in names:
        files = by_base.get(name, []) if "/" not in name else []
        if len(files) > 1:
            raise DataError(f"'{name}' in {path} means {len(files)} files; write class/{name}")
        chosen |= set(files) or {name}
    train = [one for one in samples if one.file in chosen]
    if not train:
        raise DataError(f"none of the {len(names)} files in {path} is in the source's train split")
    note = f"{path}: {len(train)} of {len(names)} listed files are in the source and taken"
    return replace(source, splits={**source.splits, "train": train}, notes=[*source.notes, note])
