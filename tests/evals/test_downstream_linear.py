"""Other labeled data: packed as equi-shard packs, checked, few labels drawn as equi-shard draws."""

import pytest
import torch
from asking import ask, write
from equitools.stages import perturb
from equitools.stages.cli.progress import progress
from equitools.stages.transfer import PROGRAM
from pictures import make_folder

from equitools import manifest
from equitools.core.errors import DataError, UsageError
from equitools.data.shards import settings as shards_settings
from equitools.data.shards.settings import identity, settle
from equitools.evals.classification import datasets as downstream
from equitools.evals.classification import few_labels
from equitools.evals.classification.datasets import _listed, open_splits, pack
from equitools.features import encoders
from equitools.manifest import files

COUNTS = {"train/a": 12, "train/b": 6, "train/c": 3, "val/a": 4, "val/b": 4, "val/c": 4}
SETTINGS = {
    "encoder": "pixels",
    "size": 8,
    "limit": None,
    "extract_batch_size": 5,
    "device": "cpu",
    "workers": 0,
    "parts": ["all"],
    "split": "official",
    "layers": "auto",
    "crop_pct": None,
    "interpolation": "bicubic",
    "fraction": None,
    "list": None,
    "draw": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), COUNTS)


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "shards"
    source = _listed(folder)
    document = pack(str(folder), source, out, progress)
    return out, document


def look(data, out, **changes):
    return data.source(encoders.Pixels(8), {**SETTINGS, **changes}, out, progress)


def opened(where, module=downstream, **changes):
    return module.open_data({}, {**SETTINGS, "data": str(where), **changes})


def test_a_folder_is_packed_with_the_bytes_and_the_id_of_equi_shard(folder, packed, tmp_path):
    from equitools.data.sources.subsets import select

    settings = settle({"source": str(folder)})
    source = select(settings)
    entries, _, _ = shards_settings.write(source, settings, tmp_path, lambda count: None)
    digests = {name: entry["digest"] for name, entry in entries.items()}
    assert digests == {name: e["digest"] for name, e in packed[1]["files"].items()}
    assert packed[1]["history"][-1]["id"] == identity(settings, source)
    before = (packed[0] / "train-000000.tar").stat().st_mtime_ns
    pack(str(folder), source, packed[0], progress)
    assert (packed[0] / "train-000000.tar").stat().st_mtime_ns == before, "not packed twice"


def test_features_and_batches_are_of_the_same_pictures(packed, tmp_path):
    labeled = look(opened(packed[0]), tmp_path / "out")
    train, test = labeled.tables()
    assert (len(train.labels), len(test.labels), labeled.classes) == (21, 12, 3)
    shown, labels = zip(*labeled.test_batches(), strict=True)
    assert [len(one) for one in shown] == [5, 5, 2]
    torch.testing.assert_close(torch.cat(shown).flatten(1), test.features)
    assert torch.equal(torch.cat(labels), test.labels)
    epochs = [list(labeled.train_batches(8, 0, epoch)) for epoch in (0, 0, 1)]
    assert [len(labels) for _, labels in epochs[0]] == [8, 8, 5]
    assert torch.bincount(torch.cat([y for _, y in epochs[0]])).tolist() == [12, 6, 3]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(epochs[0], epochs[1], strict=True))
    assert not torch.equal(epochs[0][0][0], epochs[2][0][0])


def test_a_share_of_labels_is_that_of_equi_shard_and_the_small_lies_in_the_large(folder, packed):
    from equitools.data.sources.subsets import select

    document = packed[1]
    index = open_splits(document)["train"]
    drawn = {
        share: few_labels.draw(index, {**SETTINGS, "fraction": share})[0] for share in (0.01, 0.5)
    }
    assert len(drawn[0.01]) == 3, "one of a class at least"
    assert set(drawn[0.01]) < set(drawn[0.5])
    chosen = select(settle({"source": str(folder), "fraction": 0.5})).splits["train"]
    assert {index.info(i)["filename"] for i in drawn[0.5]} == {one.file for one in chosen}


def test_a_list_of_files_is_met_by_name_and_what_is_not_there_is_counted(packed, tmp_path):
    names = tmp_path / "few.txt"
    names.write_text("a/im.0.JPEG\nb/im.1.JPEG\nz/no.JPEG\n")
    data = opened(packed[0], few_labels, list=str(names))
    labeled = look(data, tmp_path / "out", list=str(names))
    assert sorted(labeled.labels("train").tolist()) == [0, 1]
    assert "2 of 3 listed files" in labeled.notes["labels"]
    assert labeled.facts()["absent_classes"] == 1
    assert data.digest["list"] == files.digest_file(names)
    names.write_text("no.JPEG\n")
    with pytest.raises(DataError, match="none of the 1 files"):
        look(data, tmp_path / "out", list=str(names))
    with pytest.raises(UsageError, match=r"fraction=0\.01 .* or list=FILE"):
        opened(packed[0], few_labels)


def test_a_class_without_a_training_picture_is_kept_counted_and_warned_about(
    packed, tmp_path, caplog
):
    rows = open_splits(packed[1])["train"].labels != 1
    data = opened(packed[0])
    data.keep = lambda index: (rows.nonzero()[0].tolist(), {})
    labeled = look(data, tmp_path / "out")
    assert (labeled.classes, labeled.facts()["absent_classes"]) == (3, 1)
    assert labeled.facts()["classes_without_test"] == 0
    assert "1 of 3 classes have no training picture (b)" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda splits: splits["val"].classes.append("d"), "differ .*d"),
        (lambda splits: splits["val"].labels.__setitem__(2, 7), "from 0 to 2 .* with 7"),
        (lambda splits: splits["train"].labels.__setitem__(0, -1), "1 of 21 .* with -1"),
    ],
)
def test_classes_and_labels_that_do_not_fit_are_named(packed, tmp_path, change, said):
    data = opened(packed[0])
    change(data.splits)
    with pytest.raises(DataError, match=said):
        look(data, tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, "no data at"),
        (lambda root: make_folder(root, {"train/a": 1}), "no val/"),
        (lambda root: make_folder(root, {"train/a": 1, "val/a": 1, "val/z": 1}), "train lacks: z"),
        (lambda root: make_folder(root, {"train": 1, "val": 1}), "no class folders"),
        (lambda root: (root.mkdir(), (root / "x.tar").touch()), "no manifest"),
    ],
)
def test_data_that_cannot_be_used_are_named(tmp_path, make, said):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=said):
        opened(tmp_path / "data")


def test_equi_transfer_classifies_a_folder_three_ways(folder, tmp_path):
    backbone = {"name": "vit_mini", "split": 0.8, "args": {"depth": 2}}
    start = {"equitools": 1, "kind": "checkpoint", "recipe": {"backbone": backbone}}
    words = [write(start, tmp_path / "run.yaml"), f"data={folder}", "encoder=random", "workers=0"]
    linear = ask(PROGRAM, *words, "linear", "parts=all,ir", out=tmp_path / "linear")
    for part in ("all", "ir"):
        assert 0 <= linear["scores"][f"transfer/linear/{part}/macro"] <= 100
    record = linear["history"][-1]
    stated = {"penalty", "selection", "transform", "features", "classes", "data", "weights"}
    assert stated <= record.keys()
    words[1] = f"data={tmp_path / 'linear' / 'shards'}"
    fast = ["epochs=1", "seeds=0,1"]
    sgd = ask(PROGRAM, *words, "linear", "head=sgd", *fast, "lrs=0.1", out=tmp_path / "sgd")
    assert {
        f"transfer/linear/all/{key}" for key in ("mean/macro", "sd/top1", "seed1/best/top1")
    } <= sgd["scores"].keys()
    semi = ask(PROGRAM, *words, "semi", "fraction=0.5", *fast, out=tmp_path / "semi")
    assert semi["history"][-1]["train_samples"] == 6 + 3 + 2
    assert "transfer/semi/all/mean/top1" in semi["scores"]
    tuned = ask(PROGRAM, *words, "finetune", "recipe=modern", *fast, out=tmp_path / "tuned")
    assert tuned["history"][-1]["recipe"]["layer_decay"] == 0.75
    assert manifest.load_file(tmp_path / "tuned" / "manifest.yaml")[0]["scores"]


def test_a_folder_of_pictures_that_was_packed_is_what_turned_pictures_are_made_of(folder, tmp_path):
    start = {"equitools": 1, "kind": "checkpoint", "recipe": {"backbone": {"name": "vit_mini"}}}
    words = [write(start, tmp_path / "run.yaml"), f"data={folder}", "encoder=random", "workers=0"]
    tuned = ask(PROGRAM, *words, "finetune", "epochs=1", "seeds=0", out=tmp_path / "tuned")
    words = [tmp_path / "tuned" / "manifest.yaml", "rotation", "judge=finetuned", "workers=0"]
    found = ask(perturb.PROGRAM, *words, "draws=1", out=tmp_path / "turned")
    assert found["history"][-1]["test_samples"] == tuned["history"][-1]["test_samples"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["epochs=3"], "epochs is of head=sgd"),
        (["cached=true"], "cached is of head=sgd"),
        (["head=sgd", "penalties=0.1"], "penalties is of head=logistic"),
        (["head=sgd", "holdout=0.3"], "holdout is of head=logistic"),
    ],
)
def test_a_knob_of_the_other_head_is_refused(words, said):
    with pytest.raises(UsageError, match=said):
        ask(PROGRAM, "linear", *words)
