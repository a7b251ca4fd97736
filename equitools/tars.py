"""Tar files as flat lists of (name, offset, size), and their digests.

A USTAR member is one 512-byte header and its bytes, padded to 512, so an index needs headers only.
Tar files of other make (PAX or GNU extensions) are read through the standard library.
Format: POSIX.1-2001, "pax - portable archive interchange", section "ustar Interchange Format".
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from equitools.errors import DataError

BLOCK = 512
RECORD = 20 * BLOCK
# One read of this size holds the small members of a sample and the header of its image.
PEEK = 4096
# What stands between name and size, and between type and prefix, in every header.
_OWNER = b"0000644\0" + 2 * b"0000000\0"
_MAGIC = bytes(100) + b"ustar\x0000" + bytes(80)
_FIXED = sum(_OWNER) + sum(b"%011o\0" % 0) + 8 * ord(" ") + ord("0") + sum(_MAGIC)


def header(name: bytes, size: int) -> bytes:
    """The 512-byte USTAR header of a regular file; the same bytes for the same name and size.

    Owner 0, mode 644 and time 0 always. Raises DataError when the name does not fit (100 bytes,
    or 155 + 100 split at a slash) or the size does not (8 GiB).
    """
    prefix, base = _split(name)
    if size >= 1 << 33:
        raise DataError(
            f"{name.decode(errors='replace')} has {size} bytes; a USTAR member is < 8 GiB"
        )
    base, prefix, length = base.ljust(100, b"\0"), prefix.ljust(155, b"\0"), b"%011o\0" % size
    total = _FIXED + sum(base) + sum(prefix) + sum(length)
    return base + _OWNER + length + b"%011o\0%06o\0 0" % (0, total) + _MAGIC + prefix + bytes(12)


def member(name: bytes, data: bytes) -> bytes:
    """Header, bytes and padding of one regular file."""
    return header(name, len(data)) + data + bytes(-len(data) % BLOCK)


def ending(length: int) -> bytes:
    """The zero blocks that end an archive of `length` bytes and fill its last record of 10 KiB."""
    return bytes(2 * BLOCK + -(length + 2 * BLOCK) % RECORD)


def fits(name: bytes) -> bool:
    """Can USTAR hold this name?"""
    try:
        _split(name)
    except DataError:
        return False
    return True


def _split(name: bytes) -> tuple[bytes, bytes]:
    if len(name) <= 100:
        return b"", name
    cut = name.rfind(b"/", 0, 156)
    if cut < 1 or not 0 < len(name) - cut - 1 <= 100:
        raise DataError(f"name too long for a tar file: {name.decode(errors='replace')}")
    return name[:cut], name[cut + 1 :]


def walk(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset of its bytes, size) of every regular file of a tar, in file order.

    Raises DataError naming the tar (and member) when it is no uncompressed tar, truncated, or
    holds an absolute path or one with `..`.
    """
    try:
        members = _walk_ustar(path)
        if members is None:
            members = _walk_tarfile(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    for name, offset, size in members:
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{path}: member '{name}' points outside of the archive; refused")
        yield name, offset, size


def _walk_ustar(path: Path) -> list[tuple[str, int, int]] | None:
    """The members of a plain USTAR file; None when it has extensions that need a full reader."""
    members: list[tuple[str, int, int]] = []
    with path.open("rb", buffering=0) as file:
        descriptor, end = file.fileno(), os.fstat(file.fileno()).st_size
        position, start, buffer = 0, 0, os.pread(descriptor, PEEK, 0)
        while True:
            at = position - start
            if at + BLOCK > len(buffer):
                start, buffer = position, os.pread(descriptor, PEEK, position)
                at = 0
            block = buffer[at : at + BLOCK]
            if block[:1] == b"\0" and not block.strip(b"\0") and len(block) == BLOCK:
                return members
            if len(block) < BLOCK:
                raise DataError(f"{path} is truncated after {end} bytes; make or fetch it again")
            kind = block[156:157]
            if block[257:262] != b"ustar" or kind not in b"05\0" or block[124] & 0x80:
                return None
            size = _octal(block[124:136], path)
            if _octal(block[148:156], path) != sum(block) - sum(block[148:156]) + 256:
                raise DataError(f"{path} is damaged: wrong header checksum at byte {position}")
            if position + BLOCK + size > end:
                raise DataError(f"{path} is truncated after {end} bytes; make or fetch it again")
            if kind != b"5":
                members.append((_name(block), position + BLOCK, size))
            position += BLOCK + size + -size % BLOCK


def _octal(field: bytes, path: Path) -> int:
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise DataError(f"{path} is damaged: not a number in a tar header") from None


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    # GNU tar marks its own dialect with a space; there, times may stand where USTAR has a prefix.
    prefix = block[345:500].split(b"\0", 1)[0] if block[262:263] == b"\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _walk_tarfile(path: Path) -> list[tuple[str, int, int]]:
    members: list[tuple[str, int, int]] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if info.isreg() and not info.issparse():
                    members.append((info.name, info.offset_data, info.size))
            end = path.stat().st_size
            if end < archive.offset + BLOCK or any(o + size > end for _, o, size in members):
                raise DataError(f"{path} is truncated after {end} bytes; make or fetch it again")
    except tarfile.TarError as error:
        raise DataError(f"{path} is no readable, uncompressed tar file: {error}") from error
    return members


def sha256(path: Path) -> str:
    """The hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_digest(sums: Iterable[tuple[str, str]]) -> str:
    """One digest of (file name, hex sha256) pairs: that of the sorted `sha256 name` lines."""
    lines = sorted(f"{hexadecimal} {name}\n" for name, hexadecimal in sums)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def pattern(names: list[str]) -> str:
    """`train-{000000..000003}.tar` for what is numbered so; the name itself for one file."""
    if len(names) == 1:
        return names[0]
    stem, first = names[0][:-4].rsplit("-", 1)
    last = names[-1][:-4].rsplit("-", 1)[1]
    return f"{stem}-{{{first}..{last}}}.tar"
