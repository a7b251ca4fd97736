"""Tar files as flat lists of (name, offset, size), and their digests.

A member is one 512-byte header and its bytes, padded to 512, so an index needs headers only. Long
names and sizes may stand in a member of their own before it (PAX, GNU); what is rarer than that is
left to the standard library.
Format: POSIX.1-2001, "pax - portable archive interchange", sections "pax Header Block" and "ustar
Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from equitools.core.errors import DataError

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
        text = name.decode(errors="replace")
        raise DataError(f"{text} has {size} bytes; a USTAR member is < 8 GiB")
    base, prefix, length = base.ljust(100, b"\0"), prefix.ljust(155, b"\0"), b"%011o\0" % size
    total = _FIXED + _sum(base) + _sum(prefix) + _sum(length)
    return base + _OWNER + length + b"%011o\0%06o\0 0" % (0, total) + _MAGIC + prefix + bytes(12)


def _sum(data: bytes) -> int:
    """The sum of up to 256 bytes: Adler-32 has 1 + it, mod 65521, in its lower half, and is many
    times as quick as `sum`."""
    return (zlib.adler32(data) & 0xFFFF) - 1


def member(name: bytes, data: bytes) -> bytes:
    """Header, bytes and padding of one regular file."""
    return header(name, len(data)) + data + bytes(-len(data) % BLOCK)


def ending(length: int) -> bytes:
    """The zero blocks that end an archive of `length` bytes and fill its last record of 10 KiB."""
    return bytes(2 * BLOCK + -(length + 2 * BLOCK) % RECORD)


def fits(name: bytes) -> bool:
    """Can USTAR hold this name?"""
    with suppress(DataError):
        return bool(_split(name))
    return False


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
        members = _walk_headers(path)
        if members is None:
            members = _walk_tarfile(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    for name, offset, size in members:
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{path}: member '{name}' points outside of the archive; refused")
        yield name, offset, size


def _walk_headers(path: Path) -> list[tuple[str, int, int]] | None:
    """The members of a tar; None when it has something that needs a full reader."""
    members: list[tuple[str, int, int]] = []
    long: dict[str, Any] = {}
    position = 0
    with path.open("rb", buffering=0) as file:
        peek = _Peek(file.fileno(), path)
        while True:
            block = peek(position, BLOCK)
            if block[:1] == b"\0" and block == _EMPTY:
                return members
            kind = block[156:157]
            if block[257:262] != b"ustar" or kind not in _KINDS:
                return None
            _check_sum(block, path, position)
            at = position + BLOCK
            size = 0 if kind in _BODILESS else _size(block[124:136], path)
            if kind in _BEFORE:
                if size > PEEK or (extension := _extension(kind, peek(at, size), path)) is None:
                    return None
                long |= extension
            else:
                if kind not in _BODILESS:
                    size = long.get("size", size)
                    members.append((long.get("path") or _name(block), at, size))
                long = {}
            position = at + size + -size % BLOCK
            if at + size > peek.end:
                raise _truncated(path, peek.end)


_EMPTY = bytes(BLOCK)
_FILES, _BODILESS, _BEFORE = b"0\0", b"123456", b"xLK"
_KINDS = _FILES + _BODILESS + _BEFORE


class _Peek:
    """Bytes of a file by offset: many small ones by one read. Raises DataError at its end."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor, self._path = descriptor, path
        self.end, self._start, self._buffer = os.fstat(descriptor).st_size, 0, b""

    def __call__(self, position: int, size: int) -> bytes:
        at = position - self._start
        if at + size > len(self._buffer):
            self._start, at = position, 0
            self._buffer = os.pread(self._descriptor, max(PEEK, size), position)
        block = self._buffer[at : at + size]
        if len(block) < size:
            raise _truncated(self._path, self.end)
        return block


def _truncated(path: Path, end: int) -> DataError:
    return DataError(f"{path} is truncated after {end} bytes; make or fetch it again")


def _check_sum(block: bytes, path: Path, position: int) -> None:
    """DataError unless the header's bytes add up to what it says, its own sum read as spaces."""
    actual = _sum(block) - _sum(block[148:156]) + 8 * ord(" ")
    if (actual - _octal(block[148:156], path)) % 65521:
        raise DataError(f"{path} is damaged: wrong header checksum at byte {position}")


def _size(field: bytes, path: Path) -> int:
    """A size in octal digits, or in GNU's binary form for what they cannot say."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _octal(field, path)


def _octal(field: bytes, path: Path) -> int:
    digits = field.strip(b" \0") or b"0"
    if digits.strip(b"01234567"):
        raise DataError(f"{path} is damaged: not a number in a tar header")
    return int(digits, 8)


def _extension(kind: bytes, data: bytes, path: Path) -> dict[str, Any] | None:
    """What a PAX or GNU member says of the next one's path and size; None for sparse files."""
    if kind == b"K":  # a long name of a link
        return {}
    if kind == b"L":
        return {"path": _text(data.split(b"\0", 1)[0])}
    fields: dict[str, Any] = {}
    while data:
        digits, _, rest = data.partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, _, value = rest[: length - len(digits) - 2].partition(b"=")
        if not len(digits) + 2 < length <= len(data) or (key == b"size" and not value.isdigit()):
            raise DataError(f"{path} is damaged: a PAX header cannot be read")
        if key.startswith(b"GNU.sparse"):
            return None
        if key in (b"path", b"size"):
            fields[key.decode()] = _text(value) if key == b"path" else int(value)
        data = data[length:]
    return fields


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    # GNU tar marks its own dialect with a space; there, times may stand where USTAR has a prefix.
    prefix = block[345:500].split(b"\0", 1)[0] if block[262:263] == b"\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _walk_tarfile(path: Path) -> list[tuple[str, int, int]]:
    members: list[tuple[str, int, int]] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if info.isreg() and not info.issparse():
                    members.append((info.name, info.offset_data, info.size))
            end = path.stat().st_size
            if end < archive.offset + BLOCK or any(o + size > end for _, o, size in members):
                raise _truncated(path, end)
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
