"""The files that a manifest speaks of: where they are, what they hold, and writing them whole.

A file is found by its path, else beside its manifest, else in $EQUITOOLS_STORE/<digest>; what it
holds is said by the sha256 of its bytes.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from equitools.core.errors import DataError
from equitools.manifest.strict_yaml import Document

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def absolute(path: str | Path, folder: Path | None = None) -> Path:
    """The path from the root, without `..`; symbolic links stay, since their names say the type."""
    return Path(os.path.normpath((folder or Path.cwd()) / path))


def expand(path: str) -> list[str]:
    """The paths that a pattern such as `train-{000000..000126}.tar` stands for, in order."""
    match = _BRACES.search(path)
    if not match:
        return [path]
    first, last = match[1], match[2]
    numbers = (str(i).zfill(len(first)) for i in range(int(first), int(last) + 1))
    return [path[: match.start()] + number + path[match.end() :] for number in numbers]


def exists(path: str) -> bool:
    """Is there a file at a path, or at the first path of a pattern?"""
    return Path(expand(path)[0]).exists()


def digest_file(path: str | Path) -> str:
    """`sha256:<hex>` of a file's bytes, for a folder that of the files right in it; DataError when
    there is no such file."""
    if Path(path).is_dir():
        return digest_files(inside(Path(path)))
    try:
        with Path(path).open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"no file {path}") from None


def digest_files(paths: Iterable[str | Path]) -> str:
    """The digest of a set of files: the sha256 of its sorted `sha256 name` lines."""
    lines = sorted(f"{digest_file(p).removeprefix('sha256:')} {Path(p).name}\n" for p in paths)
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def inside(folder: Path) -> list[Path]:
    """The files right in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def entry(path: str | Path, **extra: object) -> Document:
    """What `files` says of one file, or of a folder of files: path, bytes, digest and more."""
    path = absolute(path)
    digest, members = digest_file(path), inside(path) if path.is_dir() else [path]
    size = sum(member.stat().st_size for member in members)
    return {"path": str(path), "bytes": size, "digest": digest, **extra}


def locate(entry: Document, name: str) -> Path:
    """Where the file of an entry is; a pattern of shards answers with the pattern.

    Looks at its path (which `load_file` has set beside its manifest if it moved there), then in
    $EQUITOOLS_STORE under the hex of its digest: the file itself, or a folder that holds it.
    Raises DataError that says where it looked.
    """
    path = str(entry.get("path", ""))
    if path and exists(path):
        return Path(path)
    places = [path or "no path"]
    store, digest = os.environ.get("EQUITOOLS_STORE"), str(entry.get("digest", ""))
    if store and digest:
        stored = Path(store) / digest.rpartition(":")[2]
        for candidate in (stored / Path(path).name, stored):
            if exists(str(candidate)) and not candidate.is_dir():
                return candidate
        places.append(str(stored))
    hint = "" if store else "; if it has moved, set EQUITOOLS_STORE or name its manifest.yaml"
    raise DataError(f"{name} is not at {' nor at '.join(places)}{hint}")


def verify(entry: Document, name: str) -> Path:
    """`locate`, and check the digest; DataError names both digests when they differ."""
    path = locate(entry, name)
    shards, recorded = name.startswith("shards."), entry.get("digest")
    digest = digest_files(expand(str(path))) if shards else digest_file(path)
    if recorded is not None and digest != recorded:
        raise DataError(f"{name} has changed: {path} is {digest}, its manifest says {recorded}")
    return path
