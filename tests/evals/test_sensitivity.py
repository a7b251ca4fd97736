"""Rotation of single pictures: told by who can know it, chance for who cannot; and invariance."""

import math
from copy import deepcopy

import pytest
import torch
from toy_maps import smooth, source

from equitools.augment import geometry
from equitools.core.errors import UsageError
from equitools.core.records import Features
from equitools.evals.equivariance.sensitivity import alive, evaluate, rotated, turned
from equitools.evals.robustness import perturbations
from equitools.features.maps import Vectors
from equitools.features.table import FeatureTable

FAST = {"epochs": 15, "lrs": [0.3], "seeds": [0]}


def seen(of, train=120, val=100, split=None):
    """FrozenMaps whose pictures are brighter above and redder on the left, and whose vectors are
    `of` pictures in [0, 1]."""
    made = []
    for seed, count in ((0, train), (1, val)):
        pictures = smooth(count, seed=seed).float() / 4
        pictures[:, :, :8] += 120
        pictures[:, 0, :, :8] += 60
        made.append(pictures.round().to(torch.uint8))
    net = source(None, made[0], val=made[1])

    def vectors(layers):
        width = of(torch.zeros(1, 3, 16, 16)).shape[1]
        return Vectors(lambda image: of(image.float() / 255), layers, 1, width, split)

    net.vectors = vectors
    return net


def corners(image):
    """The mean color of each quarter of a picture, b 12: it tells every turn."""
    return torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(1)


def invariant(image):
    """The same averaged over the eight turns and flips, b 12: it tells none."""
    every = [geometry.permute(image, (f, k)) for f in (False, True) for k in range(4)]
    return torch.stack([corners(view) for view in every]).mean(0).round(decimals=5)


def test_who_sees_directions_tells_the_turn_and_who_is_exactly_invariant_is_at_chance():
    assert evaluate(seen(corners), **FAST).scores["all/mean/top1"] > 95
    scores = evaluate(seen(invariant), **FAST).scores
    # The four turns of a picture have one vector, so one of them is right whatever is answered.
    assert scores["all/mean/top1"] == pytest.approx(25)
    assert scores["all/chance"] == 25


def test_a_part_that_is_dead_shows_it_beside_its_accuracy():
    def half_dead(image):
        return torch.cat([corners(image), torch.full((len(image), 3), 7.0)], 1)

    scores = evaluate(seen(half_dead, split=12), **FAST).scores
    assert scores["ef/mean/top1"] == pytest.approx(25)
    assert scores["ir/mean/top1"] > 95
    assert (scores["ef/deviation"], scores["ef/rank"], scores["ef/share"]) == (0, 1, 0)
    assert scores["ir/least_deviation"] > 0
    assert scores["all/least_deviation"] == 0
    assert scores["ir/share"] == pytest.approx(100)


def test_deviation_rank_and_share_are_those_of_the_upright_pictures():
    upright = torch.tensor([[1.0, 0.0, 5.0], [-1.0, 0.0, 5.0], [0.0, 2.0, 5.0], [0.0, -2.0, 5.0]])
    labels = torch.tensor([0, 0, 0, 0, 1])
    rows = torch.cat([upright, torch.full((1, 3), 99.0)])
    found = alive(FeatureTable(rows, labels, list("abcde"), 4, width=3, split=2), "ir", "official")
    assert found["deviation"] == pytest.approx((math.sqrt(0.5) + math.sqrt(2)) / 2)
    assert found["least_deviation"] == pytest.approx(math.sqrt(0.5))
    p = torch.tensor([1 / 3, 2 / 3])
    assert found["rank"] == pytest.approx(float((-(p * p.log()).sum()).exp()))
    assert found["share"] == pytest.approx(100)


def test_train_pictures_show_one_turn_each_and_test_pictures_all_four():
    net = seen(corners, train=40, val=6)
    train = turned(net, net.vectors("last"), "train", None, every=False)
    assert len(train.labels) == 40
    assert set(train.labels.tolist()) == {0, 1, 2, 3}
    again = turned(net, net.vectors("last"), "train", 10, every=False)
    assert torch.equal(again.labels, train.labels[:10]), "a turn depends on the key alone"
    test = turned(net, net.vectors("last"), "val", None, every=True)
    assert test.labels.bincount().tolist() == [6, 6, 6, 6]
    (pixels, _), *_ = net.pictures("val", None, 6)
    asked = corners(torch.rot90(pixels, 3, (2, 3)) / 255)
    torch.testing.assert_close(test.features[test.labels == 3], asked)


def test_pictures_turn_counter_clockwise_and_exactly():
    picture = torch.arange(9.0).view(1, 1, 3, 3).repeat(4, 1, 1, 1)
    found = rotated(picture, torch.arange(4))
    assert found[1, 0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    for k in range(4):
        assert torch.equal(found[k], geometry.permute(picture[k], (False, k)))


def test_a_network_that_is_trained_learns_the_turn_and_leaves_the_encoder_alone():
    class Blind(torch.nn.Module):
        """Sees nothing until its weights move."""

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(12, 8)
            torch.nn.init.zeros_(self.layer.weight)

        def forward(self, image):
            return Features(self.layer(corners(image)))

    net, encoder = seen(corners, train=64, val=20), Blind()

    def vectors(layers):
        def of(image):
            return encoder(image.float() / 255).pooled.detach()

        return Vectors(of, "last", 1, 8, None, lambda x: x.float() / 255, lambda: deepcopy(encoder))

    net.vectors = vectors
    knobs = {**FAST, "finetune": True, "tuning_epochs": 30, "tuning_lr": 2.0, "batch_size": 32}
    first = evaluate(net, **knobs).scores
    assert first["all/mean/top1"] == pytest.approx(25)
    assert first["finetune/all/mean/top1"] > 80
    assert not encoder.layer.weight.any()
    assert evaluate(net, **knobs).scores == first


def test_a_source_without_vectors_and_no_parts_are_refused():
    with pytest.raises(UsageError, match="one vector"):
        evaluate(source(None, smooth(4)))
    with pytest.raises(UsageError, match="parts is empty"):
        evaluate(seen(corners), **FAST, parts=[])


# --- Invariance ------------------------------------------------------------------------------


def test_invariance_is_rotation_without_jitter_and_two_curves():
    columns = perturbations.invariance(angles=[30.0, 90.0], alpha=[50.0])
    assert list(columns) == ["orig", "ro90", "ro180", "at30", "at90", "et50"]
    assert {column.interpolation for column in columns.values()} == {"bicubic"}
    assert columns["ro90"].operations == {"rotation": {"degrees": 90.0}}
    jittered = perturbations.invariance(angles=[30.0], alpha=[], jitter=True)
    assert jittered["orig"] == perturbations.Column(interpolation="bicubic")
    assert list(jittered["ro180"].operations) == ["rotation", "jitter"]
    assert list(jittered["at30"].operations) == ["jitter"]


def test_a_fixed_angle_turns_every_picture_alike_with_black_corners():
    pictures = torch.randint(1, 256, (3, 3, 16, 16), dtype=torch.uint8)
    turn = perturbations.perturbation(perturbations.Column(angle=90.0), 16, 0, 0)
    assert torch.equal(turn(pictures, list("abc")), torch.rot90(pictures, 1, (2, 3)))
    slanted = perturbations.perturbation(perturbations.Column(angle=45.0), 16, 0, 0)(
        pictures, list("abc")
    )
    assert not slanted[:, :, 0, 0].any()
    column = perturbations.Column({"flip": {"p": 1.0}}, angle=90.0)
    both = perturbations.perturbation(column, 16, 0, 0)(pictures, list("abc"))
    assert torch.equal(both, torch.rot90(pictures, 1, (2, 3)).flip(-1) / 255)
