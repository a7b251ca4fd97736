"""Manifests: folding, layers, files that are found and checked, history."""

from pathlib import Path

import pytest

from equitools import manifest
from equitools.core.errors import DataError, UsageError
from equitools.core.files import write_atomic
from equitools.manifest import strict_yaml

# --- Folding ---------------------------------------------------------------------------------


def test_a_key_that_is_laid_on_says_where_it_was_written():
    below, above = strict_yaml.load("---\na: {b: 1, c: 2}\n...\n", "below.yaml")[0], {"a": {"b": 3}}
    first, second = manifest.fold(below, above)["a"]
    assert getattr(first, "origin", "") == ""
    assert second.origin == "below.yaml:2"


def test_mappings_merge_and_everything_else_replaces():
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert manifest.fold(base, {"a": {"y": [3]}, "b": {"c": 2}}) == {
        "a": {"x": 1, "y": [3]},
        "b": {"c": 2},
    }
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert manifest.fold(base, {"a": None}) == {"a": None, "b": 1}


def test_a_mapping_whose_name_changes_keeps_no_knob_of_the_first():
    base = {"objective": {"name": "dino", "out_dim": 4}}
    assert manifest.fold(base, {"objective": {"name": "simsiam"}}) == {
        "objective": {"name": "simsiam"}
    }
    assert manifest.fold(base, {"objective": {"name": "dino", "momentum": 1}})["objective"] == {
        "name": "dino",
        "out_dim": 4,
        "momentum": 1,
    }
    assert manifest.fold({"o": {"lr": 1}}, {"o": {"name": "sgd"}}) == {
        "o": {"lr": 1, "name": "sgd"}
    }


def test_folding_is_associative():
    a, b, c = {"x": {"p": 1}}, {"x": {"p": 2, "q": 3}}, {"x": {"q": 4}, "y": 5}
    left = manifest.fold(manifest.fold(a, b), c)
    assert left == manifest.fold(a, manifest.fold(b, c))


def document(kind, ids, **more):
    """A manifest with a chain of records."""
    history = [{"id": i, "from": [j] if j else []} for i, j in zip(ids, ["", *ids], strict=False)]
    return {"equitools": 1, "kind": kind, "history": history, **more}


def test_histories_join_by_id_and_the_kind_is_the_last_of_the_chain():
    one = document("scores", ["s", "p", "knn"], scores={"knn": 1.0})
    two = document("checkpoint", ["s", "p"])
    joined = manifest.join([one, two])
    assert [record["id"] for record in joined["history"]] == ["s", "p", "knn"]
    assert joined["kind"] == "scores"


def test_a_record_has_every_tip_of_the_history_as_parent():
    one = document("scores", ["s", "p", "knn"])
    two = document("scores", ["s", "p", "linear"])
    made = manifest.append_history(manifest.join([one, two]), "perturb", ["a b"], 1.23, "x", n=4)
    record = made["history"][-1]
    assert record["from"] == ["knn", "linear"]
    assert (record["argv"], record["seconds"], record["n"]) == ("'a b'", 1.2, 4)
    again = manifest.append_history(made, "perturb", ["a b"], 1.23, "x", n=4)
    assert again == made


def test_other_shards_replace_those_of_the_checkpoint():
    files = {"encoder": {"path": "/e"}, "shards.train": {"path": "/t", "n": 1}, "shards.val": {}}
    checkpoint = document("checkpoint", ["s", "p"], files=files)
    others = document("shards", ["z"], files={"shards.train": {"path": "/z"}})
    joined = manifest.join([checkpoint, others])
    assert joined["files"] == {"encoder": {"path": "/e"}, "shards.train": {"path": "/z"}}
    assert joined["kind"] == "checkpoint"


def test_the_recipe_is_frozen_once_the_encoder_exists():
    made = document("checkpoint", ["p"], files={"encoder": {"path": "/e"}}, recipe={"lr": 1})
    assert manifest.join([made, {"probe": {"k": 3}}])["recipe"] == {"lr": 1}
    with pytest.raises(UsageError, match="recipe cannot change"):
        manifest.join([made, {"recipe": {"lr": 2}}])


@pytest.mark.parametrize(
    "bad",
    [{"equitools": 2}, {"kind": "picture"}, {"history": {}}, {"history": [1]}, {"files": [1]}],
)
def test_a_document_of_another_shape_is_refused(bad, tmp_path):
    (tmp_path / "bad.yaml").write_text(manifest.dump({"kind": "shards", **bad}))
    with pytest.raises(DataError):
        manifest.join(manifest.load_file(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a.b=1e-3", {"a": {"b": 1e-3}}),
        ("a=no", {"a": "no"}),
        ("a=", {"a": None}),
        ("a={x: 1}", {"a": {"x": 1}}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ("a=b=c", {"a": "b=c"}),
        ("equivariance.clever=null", {"equivariance": {"clever": None}}),
    ],
)
def test_an_assignment_is_a_small_document(word, value):
    assert manifest.parse_assignment(word) == value


@pytest.mark.parametrize("word", ["a", "=1", "a..b=1", "a=[", "1a=2", "a=*x", "a={b: 1, b: 2}"])
def test_what_is_no_assignment_is_a_usage_error(word):
    with pytest.raises(UsageError):
        manifest.parse_assignment(word)


# --- Layers ----------------------------------------------------------------------------------


def test_an_unknown_layer_gets_the_nearest_name():
    with pytest.raises(UsageError, match="no layer 'dinno'; did you mean dino"):
        manifest.layer("dinno", ["objective"])


def test_a_layer_of_another_stage_is_named_as_such():
    with pytest.raises(UsageError, match="'dino' is a layer of objective"):
        manifest.layer("dino", ["backbone"])


# --- Files -----------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An entry of a file, and its manifest beside it."""
    monkeypatch.delenv("EQUITOOLS_STORE", raising=False)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    entry = manifest.entry(folder / "model.bin", width=3)
    whole = {"equitools": 1, "kind": "checkpoint", "files": {"encoder": entry}}
    (folder / "relative.yaml").write_text(manifest.dump(manifest.rebase(whole, folder)))
    (folder / "absolute.yaml").write_text(manifest.dump(whole))
    return entry


def test_an_entry_says_path_bytes_and_digest(kept):
    assert Path(kept["path"]).is_absolute()
    assert (kept["bytes"], kept["width"]) == (7, 3)
    assert (
        kept["digest"] == "sha256:9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    )


@pytest.mark.parametrize("name", ["relative.yaml", "absolute.yaml"])
def test_a_folder_that_moved_with_its_manifest_is_found(kept, tmp_path, name):
    (tmp_path / "run").rename(tmp_path / "moved")
    entry = manifest.load_file(tmp_path / "moved" / name)[0]["files"]["encoder"]
    assert manifest.verify(entry, "encoder") == tmp_path / "moved" / "model.bin"


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_file_is_found_in_the_store_by_its_digest(kept, tmp_path, monkeypatch, as_folder):
    kept_as = tmp_path / "store" / kept["digest"].removeprefix("sha256:")
    target = kept_as / "model.bin" if as_folder else kept_as
    target.parent.mkdir(parents=True)
    Path(kept["path"]).rename(target)
    with pytest.raises(DataError, match="set EQUITOOLS_STORE"):
        manifest.locate(kept, "encoder")
    monkeypatch.setenv("EQUITOOLS_STORE", str(tmp_path / "store"))
    assert manifest.verify(kept, "encoder") == target


def test_a_changed_file_is_refused_with_both_digests(kept):
    Path(kept["path"]).write_bytes(b"others!")
    with pytest.raises(DataError) as caught:
        manifest.verify(kept, "encoder")
    assert kept["digest"] in str(caught.value)
    assert manifest.digest_file(kept["path"]) in str(caught.value)


def test_a_set_of_shards_is_one_digest(tmp_path):
    for i in range(3):
        (tmp_path / f"train-{i:06d}.tar").write_bytes(bytes([i]))
    pattern = str(tmp_path / "train-{000000..000002}.tar")
    paths = manifest.expand(pattern)
    assert [Path(p).name for p in paths] == [f"train-{i:06d}.tar" for i in range(3)]
    digest = manifest.digest_files(paths)
    assert digest == manifest.digest_files(reversed(paths))
    assert manifest.verify({"path": pattern, "digest": digest}, "shards.train") == Path(pattern)
    Path(paths[1]).write_bytes(b"x")
    with pytest.raises(DataError, match=r"shards\.train has changed"):
        manifest.verify({"path": pattern, "digest": digest}, "shards.train")


def test_a_url_is_left_as_it_is(tmp_path):
    whole = {"files": {"shards.train": {"path": "https://x.org/a-{0..3}.tar"}}}
    assert manifest.absolute(whole, tmp_path) == whole
    assert manifest.rebase(whole, tmp_path) == whole


def test_a_write_is_whole_or_nothing(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        write_atomic(tmp_path / "folder", "three")
    assert caught.value.filename == str(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_identity_does_not_depend_on_the_order_of_keys():
    assert manifest.identity({"a": 1, "b": 2.0}) == manifest.identity({"b": 2.0, "a": 1})
    assert manifest.identity({"a": 1}) != manifest.identity({"a": 2})
    assert len(manifest.identity()) == 64
