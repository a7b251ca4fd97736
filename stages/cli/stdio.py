"""The three descriptors of a stage, and the processes it may be one of.

stdout carries one manifest and nothing else: a duplicate of descriptor 1 is kept for it, hidden
from child processes, and descriptor 1 itself points at stderr, so that no print of a library and
no program that it starts can corrupt a pipe.
"""

import errno
import fcntl
import os
import stat
import sys
from pathlib import Path

from equitools.core.errors import DataError, EquiError


class Stdout:
    """The real stdout. Nobody but `write` can reach it."""

    def __init__(self) -> None:
        for descriptor in (0, 2):  # a closed one would be taken by the next file that is opened
            if not _is_open(descriptor):
                _take(descriptor)
        if not _is_open(1):
            raise EquiError("stdout is closed, and the manifest goes there; say > /dev/null")
        self.descriptor: int | None = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
        # A forked worker that outlives us would keep the next stage waiting for the end.
        os.register_at_fork(after_in_child=self.close)
        if sys.stdout is not None:
            sys.stdout.flush()
        os.dup2(2, 1)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(line_buffering=True)

    def write(self, text: str) -> None:
        """Write the whole text; EquiError when it cannot be written."""
        if self.descriptor is None:
            return
        try:
            rest = memoryview(text.encode())
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
        except BrokenPipeError:
            raise EquiError("nobody reads stdout: the next stage has ended already") from None
        except OSError as error:
            raise EquiError(f"cannot write to stdout: {error.strerror}") from None

    def close(self) -> None:
        """Let the next stage see the end; some file systems report a full disk only here."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            try:
                os.close(descriptor)
            except OSError as error:
                raise EquiError(f"cannot write to stdout: {error.strerror}") from None


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return False
    return True


def _take(descriptor: int) -> None:
    """Fill a closed descriptor with /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def stdin_is_given() -> bool:
    """Is stdin a pipe, a socket or a file? A terminal and /dev/null give nothing."""
    if not _is_open(0):
        return False
    mode = os.fstat(0).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)


def read_stdin() -> str:
    """All of stdin; DataError when there is nothing in it or it is not text."""
    chunks = []
    while chunk := os.read(0, 1 << 20):
        chunks.append(chunk)
    data = b"".join(chunks)
    if not data.strip():
        raise DataError("stdin is empty: the stage before this one gave no manifest")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise DataError("stdin is not UTF-8 text, so it is not a manifest") from None


def stdin_folder() -> Path | None:
    """The folder of the file that stdin is, for its relative paths; None for a pipe."""
    if not stat.S_ISREG(os.fstat(0).st_mode):
        return None
    link = Path("/proc/self/fd/0")
    return link.readlink().parent if link.is_symlink() else None
