"""Shards: what is written reads back everywhere, and what is not as it was is named."""

from __future__ import annotations

import functools
import http.server
import json
import multiprocessing
import pickle
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from pictures import encoded, make_folder

from equitools.core.errors import DataError
from equitools.data.shards import index as shards
from equitools.data.shards import packing
from equitools.data.shards import pool as packers
from equitools.data.shards import table as shards_table
from equitools.data.shards import tar as tars
from equitools.data.shards.index import ShardIndex, open_split
from equitools.data.shards.inventory import finish
from equitools.data.shards.pool import write_all
from equitools.data.sources import folder as sources_folder
from equitools.features.labels import classes_of
from equitools.manifest import files

SETTINGS: dict[str, Any] = {
    "seed": 0,
    "samples_per_shard": 8,
    "megabytes_per_shard": 500,
    "verify": False,
    "min_side": 8,
    "crop": 224,
}


def pack(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """The manifest of a folder, packed in this process."""
    source = sources_folder.folder(folder, None, None, None)
    out.mkdir(exist_ok=True)
    jobs = packing.plan(source, out, **{**SETTINGS, **changes})
    written = write_all(jobs, 1, lambda n: None)
    return {"files": finish(out, written, source.classes)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "set", {"train/cat": 11, "train/dog": 9, "val/cat": 3})


def test_a_packed_sample_has_the_bytes_and_label_of_its_file(folder: Path, tmp_path: Path) -> None:
    index = open_split(pack(folder, tmp_path / "out"), "train")
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
    index = open_split({"files": {"shards.train": entry}}, "train")
    assert index.labels.tolist() == [0, 1, 2, 3, 4]
    assert index.keys[4] == "a/004"
    assert index.image(4) == encoded(seed=4)
    assert index.info(3) == {"n": 3}
    assert index.classes is None


def test_the_manifest_says_how_many_classes_there_are_where_no_names_are_known(
    folder: Path, tmp_path: Path
) -> None:
    document = pack(folder, tmp_path / "out")
    (tmp_path / "out" / "_info.json").unlink()
    document["files"]["shards.train"]["classes"] = 7
    assert classes_of(open_split(document, "train")) == 7


@pytest.mark.parametrize("keep", [0.4, 0.001, -1024 * 20])
def test_a_truncated_tar_is_named(folder: Path, tmp_path: Path, keep: float) -> None:
    entry = pack(folder, tmp_path / "out")["files"]["shards.val"]
    data = Path(entry["path"]).read_bytes()
    cut = int(len(data) * keep) if keep > 0 else len(data.rstrip(b"\0")) // 512 * 512 + 512
    Path(entry["path"]).write_bytes(data[:cut])
    with pytest.raises(DataError, match=r"val-000000\.tar is truncated"):
        ShardIndex([Path(entry["path"])])


def test_a_missing_split_says_how_to_get_one(folder: Path, tmp_path: Path) -> None:
    document = pack(folder, tmp_path / "out")
    del document["files"]["shards.val"]
    with pytest.raises(DataError, match=r"shards\.train; .*holdout=0\.1"):
        open_split(document, "val")
    with pytest.raises(DataError, match="names no shards"):
        open_split({}, "train")


def test_a_changed_shard_is_named_with_both_digests(folder: Path, tmp_path: Path) -> None:
    entry = (document := pack(folder, tmp_path / "out"))["files"]["shards.train"]
    path = tmp_path / "out" / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[4000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"sha256:\w+.*{entry['digest']}.*train-000001"):
        open_split(document, "train")
    path.write_bytes(data[:-512])
    with pytest.raises(DataError, match=r"bytes.*train-000001"):
        open_split(document, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"no shard .*train-000001\.tar"):
        open_split(document, "train")


def test_large_sets_are_opened_by_size_and_say_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "VERIFY_BYTES", 100)
    assert open_split(pack(folder, tmp_path / "out"), "train").unverified


def test_an_index_travels_to_other_processes(folder: Path, tmp_path: Path) -> None:
    index = open_split(pack(folder, tmp_path / "out"), "train")
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
    assert len(open_split(near, "train")) == 20
    if shutil.which("curl") is None:
        pytest.skip("webdataset fetches with curl")
    monkeypatch.setenv("EQUITOOLS_STORE", str(tmp_path / "store"))
    handler = functools.partial(_Quiet, directory=str(tmp_path / "out"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_address[1]}"
        far = {"files": {"shards.train": entry | {"path": f"{root}/{name}"}}}
        assert len(open_split(far, "train")) == 20
        gone = {"files": {"shards.train": entry | {"path": f"{root}/other.tar"}}}
        with pytest.raises(DataError, match=r"cannot fetch http.*other\.tar"):
            open_split(gone, "train")
        server.shutdown()
    assert len(open_split(far, "train")) == 20, "the second time without the server"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def test_a_manifest_never_runs_a_command(tmp_path: Path) -> None:
    entry = {"path": f"pipe:touch {tmp_path}/ran"}
    with pytest.raises(DataError, match="cannot be a command"):
        open_split({"files": {"shards.train": entry}}, "train")
    assert not (tmp_path / "ran").exists()


def test_the_table_beside_the_shards_says_what_their_headers_say(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = pack(folder, tmp_path / "out", verify=True)
    for split in ("train", "val"):
        paths = sorted((tmp_path / "out").glob(f"{split}-*.tar"))
        digest = document["files"][f"shards.{split}"]["digest"]
        said, found = shards_table.load(paths, split, digest), shards_table.read(paths)
        assert said is not None
        assert (list(said.keys), said.counts) == (list(found.keys), found.counts)
        assert (said.rows == found.rows).all()
    monkeypatch.setattr(tars, "walk", None)  # no header is looked at
    index = open_split(document, "train")
    assert index.image(3) == (folder / "train" / index.info(3)["filename"]).read_bytes()


def test_a_table_that_is_damaged_or_of_other_shards_is_not_believed(
    folder: Path, tmp_path: Path
) -> None:
    document, other = pack(folder, tmp_path / "a"), pack(folder, tmp_path / "b", seed=1)
    paths = sorted((tmp_path / "a").glob("train-*.tar"))
    digest = document["files"]["shards.train"]["digest"]
    beside = tmp_path / "a" / "train.index.npz"
    data = beside.read_bytes()
    assert shards_table.load(paths, "train", other["files"]["shards.train"]["digest"]) is None
    assert shards_table.load(paths, "train", None) is None
    assert shards_table.load(paths[:2], "train", digest) is None
    others = (tmp_path / "b" / beside.name).read_bytes()
    for change in (data[: len(data) // 2], b"", b"no zip", others):
        beside.write_bytes(change)
        assert shards_table.load(paths, "train", digest) is None
    for place in range(100, len(data), len(data) // 40):
        beside.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        said = shards_table.load(paths, "train", digest)
        assert said is None or (said.rows == shards_table.read(paths).rows).all()
    beside.unlink()
    assert len(open_split(document, "train")) == 20


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
    index = open_split(pack(tmp_path / "set", tmp_path / "out"), "train")
    assert sorted(index.info(i)["filename"] for i in range(7)) == sorted(f"k.1/{n}" for n in odd)
    assert len(set(index.keys)) == 7
    assert all("." not in key and "__" not in key for key in index.keys)


def test_a_failure_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    source = sources_folder.folder(folder, None, None, None)
    (folder / "train" / "dog" / "im.3.JPEG").write_bytes(b"shorter")
    jobs = packing.plan(source, tmp_path / "out", **SETTINGS)
    with pytest.raises(DataError, match=r"im\.3\.JPEG changed"):
        write_all(jobs, 1, lambda n: None)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("verify", [False, True])
def test_threads_and_processes_write_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    alone = pack(folder, tmp_path / "a")
    monkeypatch.setattr(packers, "ALONE", 0)
    source = sources_folder.folder(folder, None, None, None)
    done: list[int] = []
    jobs = packing.plan(source, tmp_path / "b", **SETTINGS | {"verify": verify})
    written = write_all(jobs, 2, done.append)
    entries = finish(tmp_path / "b", written, source.classes)
    assert sum(done) == 23
    assert entries["shards.train"]["digest"] == alone["files"]["shards.train"]["digest"]
    info = json.loads((tmp_path / "b" / "_info.json").read_text())
    assert info["splits"]["train"]["shard_lengths"] == [6, 7, 7]
