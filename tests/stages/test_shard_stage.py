"""equi-shard, as a user calls it: sources, choices, findings, and every way to be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from equitools.stages.cli.words import parse
from equitools.stages.shard import program
from pictures import encoded, make_folder, photo
from PIL import Image

from equitools.core.errors import DataError, EquiError, UsageError
from equitools.data import images
from equitools.data.shards.index import open_split
from equitools.data.sources import digits, subsets, torchvision_sets
from equitools.data.sources.source import Source
from equitools.manifest import strict_yaml

SETTINGS: dict[str, Any] = {
    "train_split": None,
    "val_split": None,
    "classes": None,
    "list": None,
    "fraction": 1.0,
    "holdout": 0.0,
    "seed": 0,
}


def shard(*words: object, cwd: Path | None = None, code: int = 0) -> tuple[dict[str, Any], str]:
    """The manifest on stdout and what stderr says."""
    done = subprocess.run(
        [sys.executable, "-m", "equitools.stages.shard", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code:
        assert not done.stdout
        assert "Traceback" not in done.stderr
        return {}, done.stderr
    return strict_yaml.load(done.stdout, "stdout")[0], done.stderr


def select(folder: Path, **changes: Any) -> Source:
    return subsets.select(SETTINGS | {"source": str(folder)} | changes)


def names(source: Source, split: str = "train") -> set[str]:
    return {one.file for one in source.splits[split]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "pets", {"train/cat": 10, "train/dog": 20, "val/dog": 2})


def test_a_folder_becomes_shards_and_a_second_run_says_so(folder: Path, tmp_path: Path) -> None:
    document, said = shard(f"{folder}/", cwd=tmp_path)
    assert document["kind"] == "shards"
    assert "writing to" in said
    entry = document["files"]["shards.train"]
    assert entry["path"] == str(tmp_path / "shards" / "pets" / "train-000000.tar")
    assert (entry["samples"], entry["classes"]) == (30, 2)
    assert document["shard"]["report"]["kept"] == 32
    again, said = shard(f"{folder}/", cwd=tmp_path)
    assert "finished already" in said
    assert again == document
    _, said = shard(f"{folder}/", "seed=1", cwd=tmp_path, code=3)
    assert "other shards" in said
    os.truncate(entry["path"], 1000)
    again, said = shard(f"{folder}/", cwd=tmp_path)
    assert "packing it again" in said
    assert again["files"] == document["files"]
    assert not (tmp_path / "shards" / "pets" / ".partial").exists()


def test_digits_are_real_and_have_a_fixed_split(tmp_path: Path) -> None:
    document, _ = shard("digits", "workers=1", "-o", tmp_path / "sh")
    train, val = (open_split(document, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (1437, 360)
    assert images.decode(train.image(0), "x").shape == (32, 32, 3)
    assert not set(train.keys) & set(val.keys)
    assert np.bincount(val.labels).min() >= 25


def test_scenes_carry_their_facts(tmp_path: Path) -> None:
    words = ("scenes", "train_samples=20", "val_samples=10", "size=32", "-o", tmp_path / "sh")
    document, _ = shard(*words)
    index = open_split(document, "train")
    info = index.info(0)
    assert {"angle", "hue", "mask", "box", "texture"} <= set(info)
    assert index.classes is not None
    assert info["label"] == index.labels[0]
    assert info["shape"] == index.classes[info["label"]]


def test_verification_names_counts_and_drops_by_the_rule(folder: Path, tmp_path: Path) -> None:
    cats = folder / "train" / "cat"
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    (cats / "corrupt.jpg").write_bytes(b"\xff\xd8 nothing")
    (cats / "truncated.jpg").write_bytes(encoded(seed=50)[:-150])
    (cats / "turned.jpg").write_bytes(encoded(seed=51, exif=exif))
    (cats / "press.jpg").write_bytes(encoded(mode="CMYK", seed=52))
    (cats / "gray.png").write_bytes(encoded("PNG", "L", seed=53))
    (cats / "twin.JPEG").write_bytes((folder / "val/dog/im.0.JPEG").read_bytes())
    photo(size=(40, 7)).save(cats / "tiny.png")
    (cats / "notes.txt").write_text("not an image")
    (cats / ".DS_Store").write_text("hidden")
    document, said = shard(folder, "-o", tmp_path / "sh")
    assert document["shard"]["report"] == {
        "kept": 36,
        "dropped": 3,
        "ignored": 1,
        "corrupt": 1,
        "truncated": 1,
        "tiny": 1,
        "cmyk": 1,
        "grayscale": 1,
        "exif_rotated": 1,
        "duplicate": 1,
        "below_crop": 37,
    }
    assert "1 corrupt (dropped): cat/corrupt.jpg" in said
    assert "1 exif_rotated (kept): cat/turned.jpg" in said
    lines = (tmp_path / "sh" / "report.tsv").read_text().splitlines()
    assert "val\tduplicate\tdog/im.0.JPEG\tsame bytes as train/cat/twin.JPEG" in lines
    assert f"\tignored\t{cats / 'notes.txt'}\tits name is not an image's" in lines
    keys = set(open_split(document, "train").keys)
    assert "cat/press" in keys
    assert "cat/tiny" not in keys


def test_without_verification_everything_is_packed(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "cat" / "corrupt.jpg").write_bytes(b"nothing")
    document, _ = shard(folder, "verify=false", "-o", tmp_path / "sh")
    assert document["files"]["shards.train"]["samples"] == 31
    assert document["shard"]["report"] is None


@pytest.mark.parametrize("word", ["torchvision:FakeData", "one.tar", "set"])
def test_a_source_is_a_word_of_its_own(word: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    (document,) = parse([word], program).documents
    wanted = word if ":" in word else str(tmp_path / word)
    assert document == {"shard": {"source": wanted}}


def test_tars_of_others_are_described_and_not_copied(folder: Path, tmp_path: Path) -> None:
    first, _ = shard(folder, "samples_per_shard=8", "-o", tmp_path / "sh")
    pattern = tmp_path / "sh" / "train-{000000..000003}.tar"
    second, _ = shard(pattern, f"val_split={tmp_path}/sh/val-000000.tar")
    for split in ("shards.train", "shards.val"):
        assert second["files"][split] == first["files"][split]
    _, said = shard(tmp_path / "sh" / "train-{000000..000004}.tar", code=3)
    assert "no shard" in said


def test_plan_says_what_would_be_packed_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "equitools.stages.shard", str(folder), "--plan"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "train    30 images" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


# --- Bad input -------------------------------------------------------------------------------


def test_each_wrong_source_is_one_line_and_its_code(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "empty").mkdir()
    assert "train/empty holds no images" in shard(folder, "-o", tmp_path / "a", code=3)[1]
    (tmp_path / "none").mkdir()
    assert "no images in" in shard(tmp_path / "none", "-o", tmp_path / "b", code=3)[1]
    assert "no folder" in shard("./nowhere", cwd=tmp_path, code=3)[1]
    assert "did you mean 'verify'" in shard("digits", "verifi=true", cwd=tmp_path, code=2)[1]
    assert "needs a source" in shard("in100", cwd=tmp_path, code=2)[1]


def test_a_split_of_corrupt_images_alone_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(b"nothing")
    _, said = shard(tmp_path / "set", "-o", tmp_path / "sh", code=3)
    assert "zero images left in train" in said
    assert [path.name for path in (tmp_path / "sh").iterdir()] in ([], [".lock"])


def test_tars_that_nobody_describes_are_not_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sh").mkdir()
    (tmp_path / "sh" / "train-000000.tar").write_bytes(b"precious")
    _, said = shard(folder, "-o", tmp_path / "sh", code=3)
    assert "no manifest describes" in said
    assert (tmp_path / "sh" / "train-000000.tar").read_bytes() == b"precious"


def test_a_full_disk_leaves_nothing_half_written(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        f"ulimit -f 8; exec {sys.executable} -m equitools.stages.shard {folder} -o {tmp_path}/sh",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot write to" in done.stderr
    assert not list((tmp_path / "sh").glob("**/*.tar"))


# --- Choices ---------------------------------------------------------------------------------


def test_split_folders_go_by_their_usual_names(tmp_path: Path) -> None:
    for name in ("validation", "test", "valid"):
        root = make_folder(tmp_path / name, {"train/a": 2, f"{name}/a": 1})
        assert {k: len(v) for k, v in select(root).splits.items()} == {"train": 2, "val": 1}
    both = make_folder(tmp_path / "both", {"train/a": 2, "val/a": 1, "test/a": 3})
    source = select(both)
    assert len(source.splits["val"]) == 1
    assert "test/ is left out" in source.notes[0]
    assert len(select(both, val_split="test").splits["val"]) == 3
    bare = make_folder(tmp_path / "bare", {"a": 2, "b": 1})
    assert set(select(bare).splits) == {"train"}
    assert set(select(bare, val_split=".").splits) == {"val"}


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    make_folder(tmp_path, {"flat": 3})
    source = select(tmp_path / "flat")
    assert {one.label for one in source.splits["train"]} == {-1}
    assert source.classes is None


def test_val_takes_its_labels_from_train(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", {"train/a": 1, "train/b": 1, "val/b": 1})
    source = select(root)
    assert source.splits["val"][0].label == 1
    assert "lacks 1 of 2 classes: a" in source.notes[0]
    make_folder(root, {"val/c": 1})
    with pytest.raises(DataError, match="classes that train lacks: c"):
        select(root)


def test_classes_are_labelled_by_their_place_in_the_sorted_list(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", {f"train/{name}": 2 for name in "abcd"})
    source = select(root, classes="d,b")
    assert source.classes == ["b", "d"]
    assert names(source) == {"b/im.0.JPEG", "b/im.1.JPEG", "d/im.0.JPEG", "d/im.1.JPEG"}
    assert {one.label for one in source.splits["train"] if one.file[0] == "d"} == {1}
    (tmp_path / "list.txt").write_text("# two\nd\tdogs\nb\n")
    assert select(root, classes=str(tmp_path / "list.txt")) == source
    with pytest.raises(DataError, match="lacks 100 of 100"):
        select(root, classes="in100")
    with pytest.raises(UsageError, match="twice"):
        select(root, classes="a,a")


def test_imagenet_100_is_the_list_of_cmc() -> None:
    listed = subsets.class_names("in100")
    assert listed is not None
    assert len(set(listed)) == 100
    assert listed[0] == "n01558993"
    assert {"n02869837", "n01749939", "n02488291"} <= set(listed)


def test_fractions_are_balanced_seeded_and_nested(folder: Path) -> None:
    tenth, half = select(folder, fraction=0.1), select(folder, fraction=0.5)
    assert len(names(tenth)) == 1 + 2
    assert len(names(half)) == 5 + 10
    assert names(tenth) < names(half)
    assert names(select(folder, fraction=0.5, seed=1)) != names(half)
    assert len(names(half, "val")) == 2
    with pytest.raises(UsageError, match="fraction"):
        select(folder, fraction=0.0)


def test_a_held_out_split_is_the_same_for_every_fraction(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", {"a": 10, "b": 20})
    source = select(root, holdout=0.1)
    assert len(names(source, "val")) == 1 + 2
    assert not names(source) & names(source, "val")
    assert names(select(root, holdout=0.1, fraction=0.5), "val") == names(source, "val")


def test_a_held_out_split_leaves_every_class_in_train(tmp_path: Path) -> None:
    source = select(make_folder(tmp_path / "set", {"a": 1, "b": 3}), holdout=0.9)
    assert {one.label for one in source.splits["train"]} == {0, 1}
    assert len(names(source, "val")) == 2


def test_one_image_a_class_is_held_out_over_all_images_and_says_so(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", dict.fromkeys("abcdefghij", 1))
    source = select(root, holdout=0.2)
    assert [len(names(source, split)) for split in ("train", "val")] == [8, 2]
    assert "train lacks the classes of val" in source.notes[-1]
    assert names(select(root, holdout=0.2), "val") == names(source, "val")
    with pytest.raises(DataError, match="leaves a split empty"):
        select(make_folder(tmp_path / "one", {"a": 1}), holdout=0.5)


def test_a_source_with_a_val_split_keeps_it_and_says_so(folder: Path) -> None:
    source = select(folder, holdout=0.1)
    assert names(source, "val") == names(select(folder), "val")
    assert source.notes[-1] == "pets has a val split: holdout is not used"


def test_a_list_takes_files_by_base_name_as_simclr_does(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_1.JPEG"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded())
    path = tmp_path / "one.txt"
    path.write_text("n01_2.JPEG\nn02/n02_1.JPEG\nn99_7.JPEG\n")
    source = select(root, list=str(path))
    assert names(source) == {"n01/n01_2.JPEG", "n02/n02_1.JPEG"}
    assert "2 of 3 listed files" in source.notes[-1]
    path.write_text("n99_7.JPEG\n")
    with pytest.raises(DataError, match="none of the 1 files"):
        select(root, list=str(path))


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", {"a": 2})
    make_folder(tmp_path, {"elsewhere": 1})
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root / "a")
    assert names(select(root)) == {"a/im.0.JPEG", "a/im.1.JPEG", "b/im.0.JPEG"}


def test_missing_scikit_learn_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(EquiError, match=r"pip install 'equitools\[digits\]'"):
        digits.digits(32)


# --- torchvision -----------------------------------------------------------------------------


def torchvision_set(name: str, root: Path | None, **args: Any) -> Source:
    place = None if root is None else str(root)
    return torchvision_sets.torchvision_set(name, place, False, args, None, None)


def test_a_set_that_lies_as_files_keeps_their_bytes(tmp_path: Path) -> None:
    base = tmp_path / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations").mkdir()
    for split, cats in (("trainval", ("Abyssinian_1", "beagle_2")), ("test", ("beagle_3",))):
        lines = [f"{name} {1 + (name[0] == 'b')} 1 1" for name in cats]
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for name in cats:
            (base / "images" / f"{name}.jpg").write_bytes(encoded(seed=len(name)))
    source = torchvision_set("OxfordIIITPet", tmp_path)
    assert {k: len(v) for k, v in source.splits.items()} == {"train": 2, "val": 1}
    assert source.classes == ["Abyssinian", "Beagle"]
    assert source.splits["val"][0].label == 1
    assert source.splits["val"][0].path == str(base / "images" / "beagle_3.jpg")


def test_a_set_that_lies_as_arrays_becomes_png(tmp_path: Path) -> None:
    base = tmp_path / "stl10_binary"
    base.mkdir()
    rng = np.random.default_rng(0)
    pixels = {}
    for split in ("train", "test"):
        pixels[split] = rng.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
        pixels[split].tofile(base / f"{split}_X.bin")
        np.array([1, 10], np.uint8).tofile(base / f"{split}_y.bin")
    (base / "class_names.txt").write_text("\n".join("abcdefghij"))
    import torchvision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
        source = torchvision_set("STL10", tmp_path)
    assert source.classes == list("abcdefghij")
    sample = source.splits["val"][1]
    assert (sample.file, sample.label) == ("0009/0000001.png", 9)
    assert sample.make is not None
    expected = pixels["test"][1].transpose(2, 1, 0)  # column by column in the file
    assert (images.decode(sample.make()[0], "x") == expected).all()


def test_a_set_without_splits_or_folder() -> None:
    source = torchvision_set("FakeData", None, size=3, image_size=(3, 8, 8), num_classes=4)
    assert [len(samples) for samples in source.splits.values()] == [3]


def test_wrong_torchvision_names_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data set 'Cifar10'"):
        torchvision_set("Cifar10", tmp_path)
    with pytest.raises(UsageError, match="needs root=DIR"):
        torchvision_set("CIFAR10", None)
    with pytest.raises(DataError, match="download=true"):
        torchvision_set("CIFAR10", tmp_path)


def test_help_does_not_import_torch() -> None:
    code = "import equitools.stages.shard, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("layout", ["saliency", "video"])
def test_scenes_are_laid_out_as_folders_with_masks(tmp_path, layout):
    done = forked.run("shard", "scenes", f"layout={layout}", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, "")
    there = {"saliency": "gt/0000.png", "video": "Annotations/480p/scene-0/00000.png"}
    assert (tmp_path / "out" / there[layout]).is_file()
    again = forked.run("shard", "scenes", f"layout={layout}", "-o", tmp_path / "out")
    assert again.returncode == 3
    assert "is there already" in again.stderr


def test_a_layout_is_of_scenes_alone(tmp_path):
    done = forked.run("shard", "digits", "layout=video", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "shard.layout=video is of source=scenes alone" in done.stderr
