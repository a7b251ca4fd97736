"""Features on disk: nothing is computed twice, and a killed extraction goes on where it was."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from pictures import encoded

from equitools.core.errors import DataError
from equitools.features import cache as featurecache
from equitools.features import encoders
from equitools.features import extract as features_extract
from equitools.features.transform import Transform

TRANSFORM = Transform(16, 16, "bicubic", (0.5,) * 3, (0.5,) * 3)


@dataclass
class Pile:
    """Ten pictures, and which of them were looked at."""

    digest: str = "sha256:pile"
    classes: list = field(default_factory=lambda: ["a", "b"])
    seen: list = field(default_factory=list)
    dies_at: int | None = None

    def __post_init__(self):
        self.labels, self.keys = np.arange(10) % 2, [f"{i}" for i in range(10)]

    def __len__(self):
        return 10

    def where(self, i):
        return f"sample {i}"

    def image(self, i):
        if i == self.dies_at:
            raise KeyboardInterrupt
        self.seen.append(i)
        return encoded(seed=i)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(featurecache, "BLOCK", 4)


def extract(pile, cache, encoder=None, **knobs):
    knobs = {"batch_size": 3, "transform": TRANSFORM, **knobs}
    return features_extract.extract(encoder or encoders.Pixels(16), pile, cache=cache, **knobs)


def test_a_second_evaluation_looks_at_no_picture(tmp_path):
    first, pile = extract(Pile(), tmp_path), Pile()
    again = extract(pile, tmp_path)
    assert torch.equal(first.features, again.features)
    assert pile.seen == []
    assert (first.read, again.read.split(" read")[0]) == ("", "10 of 10")


def test_a_killed_extraction_goes_on_at_its_last_whole_block_with_equal_bits(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        extract(Pile(dies_at=9), tmp_path / "cut")
    pile = Pile()
    resumed = extract(pile, tmp_path / "cut")
    assert pile.seen == [8, 9]
    assert resumed.read.startswith("8 of 10 read from")
    assert torch.equal(resumed.features, extract(Pile(), tmp_path / "whole").features)
    assert torch.equal(resumed.features, extract(Pile(), None).features)


def test_a_block_that_is_deleted_is_computed_again_and_no_other(tmp_path):
    whole = extract(Pile(), tmp_path).features
    next(tmp_path.glob("features-*/00001.safetensors")).unlink()
    pile = Pile()
    assert torch.equal(extract(pile, tmp_path).features, whole)
    assert pile.seen == [4, 5, 6, 7]


def test_processes_that_fill_one_cache_leave_one_answer(tmp_path):
    """One that starts in the middle of another reads what is there and writes the rest."""
    half = Pile(dies_at=5)
    with pytest.raises(KeyboardInterrupt):
        extract(half, tmp_path)
    other = extract(Pile(), tmp_path).features
    late = extract(Pile(), tmp_path).features
    assert torch.equal(other, late)
    assert len(list(tmp_path.rglob("*"))) == 1 + 3, "one folder, three blocks, nothing beside them"


def test_what_has_no_name_of_its_own_is_not_kept(tmp_path):
    extract(Pile(digest=""), tmp_path)
    extract(Pile(), tmp_path, perturb=lambda pixels, keys: pixels)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_above_the_split_asks_the_same_question(tmp_path):
    extract(Pile(), tmp_path)
    assert extract(Pile(), tmp_path, limit=99).read
    assert not extract(Pile(), tmp_path, limit=5).read


def test_a_block_of_another_shape_is_named(tmp_path):
    extract(Pile(), tmp_path)
    one, two = (next(tmp_path.glob(f"*/0000{i}.safetensors")) for i in (1, 2))
    one.write_bytes(two.read_bytes())
    with pytest.raises(DataError, match=r"00001.safetensors is not what was written"):
        extract(Pile(), tmp_path)


def test_features_lie_beside_the_weights_or_beside_the_output(tmp_path):
    run, out = tmp_path / "run", tmp_path / "scores" / "knn"
    run.mkdir()
    (run / "model.safetensors").touch()
    document = {"files": {"encoder": {"path": str(run / "model.safetensors")}}}
    for wanted in (None, str(run), str(run / "model.safetensors")):
        assert encoders.features_folder(document, wanted, out) == run / "features"
    for wanted in ("random", "pixels", "resnet18"):
        assert encoders.features_folder(document, wanted, out) == tmp_path / "scores" / "features"
