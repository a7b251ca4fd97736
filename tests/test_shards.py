"""Shards: what is written reads back everywhere, in an order that depends on nothing but a seed."""

from __future__ import annotations

import functools
import http.server
import io
import json
import multiprocessing
import pickle
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, make_folder, photo
from PIL import Image

from equitools import files, images, packers, packing, shards, shardset, sources, tars
from equitools.errors import DataError

SETTINGS: dict[str, Any] = {
    "seed": 0, "samples_per_shard": 8, "megabytes_per_shard": 500, "verify": False, "min_side": 8,
    "crop": 224,
}  # fmt: skip


def pack(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """The manifest of a folder, packed in this process."""
    source = sources.folder(folder, None, None, None)
    out.mkdir(exist_ok=True)
    jobs = packing.plan(source, out, **{**SETTINGS, **changes})
    written = packers.write_all(jobs, 1, lambda n: None)
    return {"files": shardset.finish(out, written, source.classes)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "set", {"train/cat": 11, "train/dog": 9, "val/cat": 3})


def test_a_packed_sample_has_the_bytes_and_label_of_its_file(folder: Path, tmp_path: Path) -> None:
    index = shards.open_split(pack(folder, tmp_path / "out"), "train")
    assert len(index) == 20
    assert index.counts == (6, 7, 7)
    assert index.classes == ["cat", "dog"]
    assert not index.unverified
    for i in range(20):
        info = index.info(i)
        assert index.image(i) == (folder / "train" / info["filename"]).read_bytes()
        assert index.classes[index.labels[i]] == info["class"] == index.keys[i].split("/")[0]
    assert len(set(index.keys)) == 20
    assert len(set(index.labels[:6].tolist())) == 2, "a streaming reader sees mixed classes"


def test_the_same_input_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = pack(folder, tmp_path / "a")
    copy = Path(shutil.copytree(folder, tmp_path / "copy" / "set"))
    for path in copy.rglob("*.JPEG"):
        path.touch()
    second = pack(copy, tmp_path / "b", verify=True)
    for split in ("shards.train", "shards.val"):
        assert first["files"][split]["digest"] == second["files"][split]["digest"]
    other = pack(folder, tmp_path / "c", seed=1)
    assert other["files"]["shards.train"]["digest"] != first["files"]["shards.train"]["digest"]


def test_the_digest_is_the_one_of_the_manifest_module(folder: Path, tmp_path: Path) -> None:
    entry = pack(folder, tmp_path / "out")["files"]["shards.train"]
    assert files.digest_files(files.expand(entry["path"])) == entry["digest"]


def test_gnu_tar_and_the_standard_library_read_the_shards(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "val-000000.tar") as archive:
        assert {member.mtime for member in archive} == {0}
        assert {Path(name).suffix for name in archive.getnames()} == {".cls", ".json", ".jpg"}
    assert (tmp_path / "out" / "val-000000.tar").stat().st_size % 10240 == 0


@pytest.mark.parametrize("name", ["a", "a/b.jpg", "p" * 90 + "/" + "q" * 80, "é/ü.json"])
@pytest.mark.parametrize("size", [0, 113_000, (1 << 33) - 1])
def test_a_header_is_the_one_of_the_standard_library(name: str, size: int) -> None:
    expected = tarfile.TarInfo(name)
    expected.size = size
    assert tars.header(name.encode(), size) == expected.tobuf(tarfile.USTAR_FORMAT)


def test_webdataset_reads_the_shards(folder: Path, tmp_path: Path) -> None:
    import webdataset

    entry = pack(folder, tmp_path / "out")["files"]["shards.train"]
    read = list(webdataset.WebDataset(entry["path"], shardshuffle=False).decode("rgb8"))
    assert len(read) == 20
    assert sorted(sample["cls"] for sample in read) == [0] * 11 + [1] * 9
    assert all(sample["jpg"].shape == (16, 24, 3) for sample in read)


def test_timm_reads_the_shards_unchanged(folder: Path, tmp_path: Path) -> None:
    from timm.data import create_dataset

    pack(folder, tmp_path / "out")
    dataset = create_dataset("wds/x", root=str(tmp_path / "out"), split="val", batch_size=1)
    read = list(dataset)
    assert [label for _, label in read] == [0, 0, 0]
    assert read[0][0].size == (24, 16)


def test_shards_written_by_webdataset_read_the_same(tmp_path: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(str(tmp_path / "x-%06d.tar"), maxcount=3, verbose=0) as writer:
        for i in range(5):
            sample = {"__key__": f"a/{i:03d}", "jpg": encoded(seed=i), "cls": i}
            writer.write(sample | {"json": {"n": i}})
    entry = {"path": str(tmp_path / "x-{000000..000001}.tar")}
    index = shards.open_split({"files": {"shards.train": entry}}, "train")
    assert index.labels.tolist() == [0, 1, 2, 3, 4]
    assert index.keys[4] == "a/004"
    assert index.image(4) == encoded(seed=4)
    assert index.info(3) == {"n": 3}
    assert index.classes is None


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_dialect_of_tar_is_indexed(tmp_path: Path, dialect: int) -> None:
    long = "deep/" * 15 + "n" * (60 if dialect == tarfile.USTAR_FORMAT else 190)
    with tarfile.open(tmp_path / "x.tar", "w", format=dialect) as archive:
        archive.addfile(tarfile.TarInfo("deep"))
        for name, data in ((f"{long}.png", b"image"), (f"{long}.cls", b"7\n")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    index = shards.ShardIndex([_without_bare_names(tmp_path / "x.tar")])
    assert (index.keys[0], index.image(0), index.labels.tolist()) == (long, b"image", [7])


def _without_bare_names(path: Path) -> Path:
    names = [name for name, _, _ in tars.walk(path)]
    assert names[0] == "deep"
    with (
        tarfile.open(path) as old,
        tarfile.open(path.with_suffix(".2"), "w", format=old.format) as new,
    ):
        for member in old.getmembers()[1:]:
            new.addfile(member, old.extractfile(member))
    return path.with_suffix(".2")


@pytest.mark.parametrize("name", ["../../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg"])
def test_a_member_that_escapes_is_refused_with_shard_and_member(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(name))
    entry = {"path": str(tmp_path / "bad.tar")}
    with pytest.raises(DataError, match=r"bad\.tar.*evil\.jpg"):
        shards.open_split({"files": {"shards.train": entry}}, "train")


@pytest.mark.parametrize("keep", [0.4, 0.001, -1024 * 20])
def test_a_truncated_tar_is_named(folder: Path, tmp_path: Path, keep: float) -> None:
    entry = pack(folder, tmp_path / "out")["files"]["shards.val"]
    data = Path(entry["path"]).read_bytes()
    cut = int(len(data) * keep) if keep > 0 else len(data.rstrip(b"\0")) // 512 * 512 + 512
    Path(entry["path"]).write_bytes(data[:cut])
    with pytest.raises(DataError, match=r"val-000000\.tar is truncated"):
        shards.ShardIndex([Path(entry["path"])])


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as archive:
        archive.add(__file__, "a.jpg")
    with pytest.raises(DataError, match="uncompressed"):
        list(tars.walk(tmp_path / "x.tar"))


def test_a_missing_split_says_how_to_get_one(folder: Path, tmp_path: Path) -> None:
    document = pack(folder, tmp_path / "out")
    del document["files"]["shards.val"]
    with pytest.raises(DataError, match=r"shards\.train; .*holdout=0\.1"):
        shards.open_split(document, "val")
    with pytest.raises(DataError, match="names no shards"):
        shards.open_split({}, "train")


def test_a_changed_shard_is_named_with_both_digests(folder: Path, tmp_path: Path) -> None:
    entry = (document := pack(folder, tmp_path / "out"))["files"]["shards.train"]
    path = tmp_path / "out" / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[4000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"sha256:\w+.*{entry['digest']}.*train-000001"):
        shards.open_split(document, "train")
    path.write_bytes(data[:-512])
    with pytest.raises(DataError, match=r"bytes.*train-000001"):
        shards.open_split(document, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"no shard .*train-000001\.tar"):
        shards.open_split(document, "train")


def test_large_sets_are_opened_by_size_and_say_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "VERIFY_BYTES", 100)
    assert shards.open_split(pack(folder, tmp_path / "out"), "train").unverified


def test_an_index_travels_to_other_processes(folder: Path, tmp_path: Path) -> None:
    index = shards.open_split(pack(folder, tmp_path / "out"), "train")
    expected = [index.image(i) for i in range(20)]
    copy = pickle.loads(pickle.dumps(index))
    assert not copy._open
    assert [copy.image(i) for i in range(20)] == expected
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(index.image, range(20)) == expected


def test_shards_come_from_urls_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = pack(folder, tmp_path / "out")["files"]["shards.train"]
    name = Path(entry["path"]).name
    near = {"files": {"shards.train": entry | {"path": f"file://{entry['path']}"}}}
    assert len(shards.open_split(near, "train")) == 20
    if shutil.which("curl") is None:
        pytest.skip("webdataset fetches with curl")
    monkeypatch.setenv("EQUITOOLS_STORE", str(tmp_path / "store"))
    handler = functools.partial(_Quiet, directory=str(tmp_path / "out"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_address[1]}"
        far = {"files": {"shards.train": entry | {"path": f"{root}/{name}"}}}
        assert len(shards.open_split(far, "train")) == 20
        gone = {"files": {"shards.train": entry | {"path": f"{root}/other.tar"}}}
        with pytest.raises(DataError, match=r"cannot fetch http.*other\.tar"):
            shards.open_split(gone, "train")
        server.shutdown()
    assert len(shards.open_split(far, "train")) == 20, "the second time without the server"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def test_a_manifest_never_runs_a_command(tmp_path: Path) -> None:
    entry = {"path": f"pipe:touch {tmp_path}/ran"}
    with pytest.raises(DataError, match="cannot be a command"):
        shards.open_split({"files": {"shards.train": entry}}, "train")
    assert not (tmp_path / "ran").exists()


class Sizes:
    """What `positions` needs of an index."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts

    def __len__(self) -> int:
        return sum(self.counts)


def test_every_epoch_visits_each_sample_once_and_epochs_join() -> None:
    index = Sizes(5, 3, 4)
    found = shards.positions(index, 7, 0, 36)
    assert [epoch for epoch, _ in found] == [0] * 12 + [1] * 12 + [2] * 12
    orders = [tuple(i for _, i in found[e * 12 : e * 12 + 12]) for e in range(3)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len(set(orders)) == 3
    assert found != shards.positions(index, 8, 0, 36)


def test_the_order_does_not_depend_on_how_it_is_asked_for() -> None:
    index = Sizes(50, 30, 41)
    whole = shards.positions(index, 0, 0, 300)
    for share in (1, 7, 64):
        parts = [shards.positions(index, 0, i, min(share, 300 - i)) for i in range(0, 300, share)]
        assert [pair for part in parts for pair in part] == whole


def test_samples_are_shuffled_within_windows_of_shards() -> None:
    index = Sizes(*[10] * 6)
    order = [i for _, i in shards.positions(index, 3, 0, 60, window=2)]
    for first in range(0, 60, 20):
        assert len({i // 10 for i in order[first : first + 20]}) == 2
    assert len({i // 10 for _, i in shards.positions(index, 3, 0, 20)}) > 2


def test_the_order_is_what_it_was_when_it_was_written_down() -> None:
    found = [i for _, i in shards.positions(Sizes(4, 4), 5, 0, 8)]
    assert found == [5, 6, 2, 1, 3, 4, 0, 7], "a resumed run would go on in another order"


# --- Pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "LA"),
     ("PNG", "1"), ("WEBP", "RGB"), ("BMP", "RGB")],
)  # fmt: skip
def test_every_mode_becomes_rgb(kind: str, mode: str) -> None:
    pixels = images.decode(encoded(kind, mode), "x")
    assert (pixels.shape, pixels.dtype) == ((16, 24, 3), np.uint8)
    expected = np.asarray(photo(mode).convert("RGB"), int)
    assert np.abs(pixels - expected).mean() < 12
    pixels[0] = 0  # it may be written to


def test_sixteen_bits_become_their_upper_eight() -> None:
    deep = (np.arange(384, dtype=np.uint16) * 170).reshape(16, 24)
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    assert (images.decode(file.getvalue(), "x")[..., 0] == deep >> 8).all()


def test_the_exif_orientation_is_ignored_and_seen() -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    data = encoded(exif=exif)
    assert images.decode(data, "x").shape == (16, 24, 3)
    assert images.examine(data).rotated
    assert not images.examine(encoded()).rotated


@pytest.mark.parametrize(
    ("data", "broken"),
    [(encoded()[:-200], "truncated"), (b"no image", "corrupt"), (b"", "corrupt")],
)
def test_a_broken_picture_is_an_error_that_names_it(data: bytes, broken: str) -> None:
    assert images.examine(data).broken == broken
    with pytest.raises(DataError, match=r"cannot decode sample 'a/1'"):
        images.decode(data, "sample 'a/1'")


# --- Packing ---------------------------------------------------------------------------------


def test_awkward_names_get_keys_that_tar_readers_take(tmp_path: Path) -> None:
    odd = [
        "a.b.c.jpg",
        "a_b.c.jpg",
        "__x__.jpg",
        "n" * 160 + ".jpg",
        "é ü.jpg",
        "same.jpg",
        "same.png",
    ]
    for i, name in enumerate(odd):
        (tmp_path / "set" / "k.1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "k.1" / name).write_bytes(encoded("PNG", seed=i))
    index = shards.open_split(pack(tmp_path / "set", tmp_path / "out"), "train")
    assert sorted(index.info(i)["filename"] for i in range(7)) == sorted(f"k.1/{n}" for n in odd)
    assert len(set(index.keys)) == 7
    assert all("." not in key and "__" not in key for key in index.keys)


def test_a_failure_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    source = sources.folder(folder, None, None, None)
    (folder / "train" / "dog" / "im.3.JPEG").write_bytes(b"shorter")
    jobs = packing.plan(source, tmp_path / "out", **SETTINGS)
    with pytest.raises(DataError, match=r"im\.3\.JPEG changed"):
        packers.write_all(jobs, 1, lambda n: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_processes_write_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = pack(folder, tmp_path / "a")
    monkeypatch.setattr(packers, "ALONE_COPYING", 0)
    source = sources.folder(folder, None, None, None)
    done: list[int] = []
    jobs = packing.plan(source, tmp_path / "b", **SETTINGS)
    written = packers.write_all(jobs, 2, done.append)
    entries = shardset.finish(tmp_path / "b", written, source.classes)
    assert sum(done) == 23
    assert entries["shards.train"]["digest"] == alone["files"]["shards.train"]["digest"]
    info = json.loads((tmp_path / "b" / "_info.json").read_text())
    assert info["splits"]["train"]["shard_lengths"] == [6, 7, 7]
