"""Tar files: headers are read as the standard library reads them, and damage has a name."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from equitools.core.errors import DataError
from equitools.data.shards import table as shards_table
from equitools.data.shards import tar as shards_tar
from equitools.data.shards.tar import _walk_headers, _walk_tarfile, ending, header, walk


@pytest.mark.parametrize("name", ["a", "a/b.jpg", "p" * 90 + "/" + "q" * 80, "é/ü.json"])
@pytest.mark.parametrize("size", [0, 113_000, (1 << 33) - 1])
def test_a_header_is_the_one_of_the_standard_library(name: str, size: int) -> None:
    expected = tarfile.TarInfo(name)
    expected.size = size
    assert header(name.encode(), size) == expected.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_dialect_of_tar_is_indexed(tmp_path: Path, dialect: int) -> None:
    long = "deep/" * 15 + "n" * (60 if dialect == tarfile.USTAR_FORMAT else 190)
    with tarfile.open(tmp_path / "x.tar", "w", format=dialect) as archive:
        archive.addfile(tarfile.TarInfo("deep"))
        for name, data in ((f"{long}.png", b"image"), (f"{long}.cls", b"7\n")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    table = shards_table.read([_without_bare_names(tmp_path / "x.tar")])
    assert (table.keys[0], table.rows[0, 4]) == (long, 7)


def _without_bare_names(path: Path) -> Path:
    names = [name for name, _, _ in walk(path)]
    assert names[0] == "deep"
    with (
        tarfile.open(path) as old,
        tarfile.open(path.with_suffix(".2"), "w", format=old.format) as new,
    ):
        for member in old.getmembers()[1:]:
            new.addfile(member, old.extractfile(member))
    return path.with_suffix(".2")


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("name", ["../../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg"])
def test_a_member_that_escapes_is_refused_with_shard_and_member(
    tmp_path: Path, name: str, dialect: int
) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w", format=dialect) as archive:
        archive.addfile(
            tarfile.TarInfo(name if dialect == tarfile.USTAR_FORMAT else f"{name}{LONG}")
        )
    with pytest.raises(DataError, match=r"bad\.tar.*evil\.jpg"):
        list(walk(tmp_path / "bad.tar"))


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as archive:
        archive.add(__file__, "a.jpg")
    with pytest.raises(DataError, match="uncompressed"):
        list(walk(tmp_path / "x.tar"))


LONG = "n" * 200
ENTRIES = {
    "a.jpg": b"image",
    "a.json": b"{}",
    f"deep/{LONG}.jpg": bytes(700),
    "é/ü.cls": b"3",
    "empty.jpg": b"",
}


def made(path: Path, dialect: int, **pax: str) -> Path:
    """A tar with files, a folder, links and long names."""
    with tarfile.open(path, "w", format=dialect) as archive:
        folder = tarfile.TarInfo("deep")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"link{kind.decode()}{LONG}")
            link.type, link.linkname = kind, f"deep/{LONG}.jpg"
            archive.addfile(link)
        for name, data in ENTRIES.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            info.pax_headers = pax
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_need_no_other_reader(tmp_path: Path, dialect: int) -> None:
    path = made(tmp_path / "x.tar", dialect)
    found = _walk_headers(path)
    assert found == _walk_tarfile(path)
    assert [name for name, _, _ in found or []] == list(ENTRIES)


def test_what_is_rare_goes_to_the_standard_library(tmp_path: Path) -> None:
    path = made(tmp_path / "x.tar", tarfile.PAX_FORMAT, **{"GNU.sparse.other": "1"})
    assert _walk_headers(path) is None
    with tarfile.open(path, "w", pax_headers={"comment": "global"}) as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    assert _walk_headers(path) is None
    assert [name for name, _, _ in walk(path)] == ["a.jpg"]


def test_sizes_beyond_octal_digits_are_read(tmp_path: Path) -> None:
    size = 9 << 30
    for dialect in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("a.jpg")
        info.size = size
        head = info.tobuf(dialect)
        with (tmp_path / "x.tar").open("wb") as file:  # a hole takes no room
            file.write(head)
            file.truncate(len(head) + size + 1024)
        assert list(walk(tmp_path / "x.tar")) == [("a.jpg", len(head), size)]


@pytest.mark.parametrize(
    "body", [b"0 path=x\n", b"99 path=x\n", b"-9 path=x\n", b"path=x\n", b"11 size=-5\n", b"3 \n"]
)
def test_a_pax_header_that_makes_no_sense_is_damage(tmp_path: Path, body: bytes) -> None:
    extension = bytearray(header(b"x", len(body)))
    extension[156:157] = b"x"
    data = sealed(extension) + body.ljust(512, b"\0") + shards_tar.member(b"a.jpg", b"image")
    (tmp_path / "x.tar").write_bytes(data + ending(len(data)))
    with pytest.raises(DataError, match="damaged"):
        list(walk(tmp_path / "x.tar"))


def sealed(block: bytearray) -> bytes:
    """A header with the checksum that it should have."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_damage_is_an_error_or_stays_inside_of_the_file(tmp_path: Path, dialect: int) -> None:
    """Random bytes in random headers, with right checksums: no crash, no hang, no way out."""
    if dialect == tarfile.USTAR_FORMAT:
        whole = b"".join(shards_tar.member(f"{i}.jpg".encode(), bytes(600)) for i in range(5))
        whole += ending(len(whole))
    else:
        whole = made(tmp_path / "x.tar", dialect).read_bytes()
    heads = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    draw = random.Random(0)
    for _ in range(150):
        data, at = bytearray(whole), draw.choice(heads)
        for _ in range(draw.randint(1, 3)):
            place = draw.choice(
                (draw.randrange(512), draw.randrange(120, 160), draw.randrange(1024))
            )
            data[min(at + place, len(data) - 1)] = draw.choice(b"\0 01789x=-/\x80\xff\n")
        data[at : at + 512] = sealed(data[at : at + 512])
        (tmp_path / "y.tar").write_bytes(data)
        try:
            members = list(walk(tmp_path / "y.tar"))
        except DataError:
            continue
        assert all(0 <= offset <= offset + size <= len(data) for _, offset, size in members)
