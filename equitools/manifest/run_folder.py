"""The folder of a run: finished already, locked, or another stage's."""

import fcntl
import logging
import os
from pathlib import Path
from typing import IO

from equitools.core.errors import DataError, EquiError, UsageError
from equitools.manifest import files
from equitools.manifest.document import load_file
from equitools.manifest.history import last_record
from equitools.manifest.strict_yaml import Document

log = logging.getLogger(__name__)


def check_writable(folder: Path) -> None:
    """Raise OSError now if the folder could not be made or written when the work is done."""
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise NotADirectoryError(20, "not a folder", str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(13, "no permission to write", str(existing))


def refuse_other_stage(out: Path, name: str) -> None:
    """Raise UsageError when a folder holds the manifest of a stage that is not `name`."""
    path = out / "manifest.yaml"
    stage = last_record(load_file(path)[0]).get("stage", name) if path.is_file() else name
    if stage != name:
        raise UsageError(f"{out} is the folder of equi-{stage}; choose another with -o")


def finished(out: Path, id: str) -> Document | None:
    """The manifest of a folder whose last record has this id and whose files are there, else None.

    A stage that is asked again for what it has done says so and returns this.
    """
    path = Path(out) / "manifest.yaml"
    if not path.is_file():
        return None
    document = load_file(path)[0]
    if last_record(document).get("id") != id:
        return None
    try:
        for name, entry in (document.get("files") or {}).items():
            if str(entry.get("path", "")).startswith(f"{files.absolute(out)}/"):
                files.locate(entry, name)
    except DataError as error:
        log.warning("%s; doing it again", error)
        return None
    return document


_LOCKS: list[IO[str]] = []  # a lock lives as long as its file is open


def lock(directory: str | Path) -> IO[str]:
    """Lock a folder until this process ends, or until the file that is returned is closed.

    A POSIX record lock: a forked worker does not inherit it. Raises EquiError when it is taken.
    """
    directory = Path(directory)
    file = (directory / ".lock").open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise EquiError(f"{directory} is in use by another process") from None
    _LOCKS.append(file)
    return file
