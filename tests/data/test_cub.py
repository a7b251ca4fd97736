"""CUB-200-2011 as its authors ship it, and what is said of a copy that is not whole."""

import pytest
from pictures import encoded

from equitools.core.errors import DataError, UsageError
from equitools.data.shards.settings import settle
from equitools.data.sources import subsets, torchvision_sets
from equitools.data.sources.cub import cub200

LISTS = {
    "classes.txt": "1 001.Albatross\n2 002.Finch\n",
    "images.txt": "1 001.Albatross/b.jpg\n2 001.Albatross/a.jpg\n3 002.Finch/c.jpg\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n",
    "train_test_split.txt": "1 1\n2 0\n3 1\n",
}


@pytest.fixture
def root(tmp_path):
    base = tmp_path / "CUB_200_2011"
    for name in ("001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Finch/c.jpg"):
        path = base / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(seed=len(name)))
    for name, text in LISTS.items():
        (base / name).write_text(text)
    return tmp_path


def listed(source):
    return {
        split: [(one.file, one.label) for one in samples]
        for split, samples in source.splits.items()
    }


def test_ids_count_from_one_and_the_official_split_decides(root):
    source = cub200(str(root))
    assert source.classes == ["001.Albatross", "002.Finch"]
    assert listed(source) == {
        "train": [("001.Albatross/b.jpg", 0), ("002.Finch/c.jpg", 1)],
        "val": [("001.Albatross/a.jpg", 0)],
    }
    assert listed(cub200(str(root / "CUB_200_2011"))) == listed(source)
    settings = settle({"source": "cub200", "root": str(root), "fraction": 0.5})
    assert len(subsets.select(settings).splits["train"]) == 2, "one of a class at least"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("images.txt", None, "cannot read .*images.txt"),
        ("train_test_split.txt", None, "cannot read .*train_test_split.txt"),
        ("image_class_labels.txt", "1 1\n2 1\n3 3\n", "image 3 has label 3; labels are 1 to 2"),
        ("image_class_labels.txt", "1 1\n2 1\n", "only one has image 3"),
        ("train_test_split.txt", "1 1\n2 7\n3 1\n", "image 2 is neither 0 nor 1"),
        ("images.txt", LISTS["images.txt"].replace("c.jpg", "d.jpg"), "not there: .*d.jpg"),
        ("classes.txt", "0 a\n1 b\n", "does not count its classes from 1"),
        ("images.txt", "a b\n", "does not list"),
    ],
)
def test_a_broken_copy_is_named(root, name, text, said):
    path = root / "CUB_200_2011" / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=said):
        cub200(str(root))


def test_without_a_folder_it_says_so():
    with pytest.raises(UsageError, match="needs root=DIR"):
        cub200(None)


def pets(root, label):
    base = root / "oxford-iiit-pet"
    for folder in ("images", "annotations"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for split in ("trainval", "test"):
        (base / "annotations" / f"{split}.txt").write_text(f"cat_1 {label} 1 1\ndog_1 2 1 1\n")
    (base / "images" / "cat_1.jpg").write_bytes(encoded(seed=1))
    return torchvision_sets.torchvision_set("OxfordIIITPet", str(root), False, {}, None, None)


def test_torchvisions_sets_name_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"not there: .*dog_1.jpg"):
        pets(tmp_path, 1)
    (tmp_path / "oxford-iiit-pet" / "images" / "dog_1.jpg").write_bytes(encoded(seed=2))
    assert pets(tmp_path, 1).classes == ["Cat", "Dog"]
    with pytest.raises(DataError, match=r"has label 6; there are 2 classes"):
        pets(tmp_path, 7)
