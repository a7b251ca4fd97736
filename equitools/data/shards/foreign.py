"""Shards that others have made: described where they lie, checked, and not copied."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from equitools.core.errors import DataError
from equitools.data import images
from equitools.data.shards import remote
from equitools.data.shards.tar import set_digest, sha256
from equitools.manifest import files

SUFFIXES = (".tar", ".tars")


def is_shards(source: str) -> bool:
    """Does a source name tar files (`x/train-{000..146}.tar`) rather than a folder?"""
    return source.endswith(SUFFIXES) or (remote.is_url(source) and ".tar" in source)


def describe(
    pattern: str, name: str, verify: bool, advance: Callable[[int], None]
) -> tuple[dict[str, Any], int]:
    """The `files` entry of shards that lie at a pattern or URL, and how many have no label.

    Every header is read, and every picture decoded once if `verify`. Raises DataError for what is
    missing, damaged, not decodable (it cannot be dropped without a copy), or for a key twice.
    """
    from equitools.data.shards.index import ShardIndex, locate  # here, as they need torch

    paths = locate({"path": pattern}, name)
    index = ShardIndex(paths)
    if len(index) == 0:
        raise DataError(f"zero images in {pattern}")
    seen: set[str] = set()
    for i, key in enumerate(index.keys):
        if key in seen:
            raise DataError(f"the key '{key}' comes twice; the second time in {index.where(i)}")
        seen.add(key)
    for i in range(len(index)) if verify else ():
        picture = images.examine(index.image(i))
        if picture.broken:
            what = f"{index.where(i)} is {picture.broken}: {picture.reason}"
            raise DataError(f"{what}; unpack and repack it")
        advance(1)
    entry = {
        "path": pattern,
        "samples": len(index),
        "classes": int(index.labels.max()) + 1 if index.labels.max() >= 0 else None,
        "bytes": sum(path.stat().st_size for path in paths),
        "digest": set_digest((path.name, sha256(path)) for path in paths),
    }
    return entry, int((index.labels < 0).sum())


def listing(patterns: dict[str, str]) -> list[Any]:
    """What identifies foreign shards for a second run: names, sizes and times of local files."""
    return [
        [split, path, None if remote.is_url(path) else _stat(Path(path))]
        for split, pattern in sorted(patterns.items())
        for path in files.expand(pattern)
    ]


def _stat(path: Path) -> list[int]:
    try:
        facts = path.stat()
    except OSError:
        raise DataError(f"no shard {path}") from None
    return [facts.st_size, facts.st_mtime_ns]
