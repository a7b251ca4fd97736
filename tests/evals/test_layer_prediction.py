"""Rotation and flip prediction: chance for who cannot know, high for who can, and nothing leaks."""

import math

import pytest
import torch
from asking import ask, make_chain, write
from equitools.stages.perturb import PROGRAM
from toy_maps import smooth, source

from equitools import backbones, manifest
from equitools.augment import geometry
from equitools.core.errors import DataError, EquiError, UsageError
from equitools.evals.equivariance import score as equivariance_score
from equitools.evals.equivariance.layers import evaluate, pairs
from equitools.features import maps
from equitools.features.transform import evaluation_transform

FAST = {"epochs": 15, "hidden": 32, "lr": 0.01, "batch_size": 32, "seeds": [0, 1]}


def upright(count, seed=0):
    """Smooth pictures whose top is bright and whose left is red: a turn or a flip can be seen."""
    pictures = smooth(count, seed=seed).float() / 4
    pictures[:, :, :8] += 120
    pictures[:, 0, :, :8] += 60
    return pictures.round().to(torch.uint8)


def oriented(image):
    """How bright above minus below, and left minus right: directions survive the mean."""
    down = image[..., :8, :].mean((2, 3)) - image[..., 8:, :].mean((2, 3))
    side = image[..., :8].mean((2, 3)) - image[..., 8:].mean((2, 3))
    return {1: torch.cat((down, side), 1)[..., None, None].expand(-1, -1, 4, 4)}


def colors(image):
    """Mean colors, which no turn or flip changes."""
    return {1: image.mean((2, 3), keepdim=True).round(decimals=5).expand(-1, -1, 4, 4)}


def test_an_oriented_map_tells_turns_and_flips():
    net = source(oriented, upright(300), val=upright(200, seed=1))
    scores = evaluate(net, **FAST).scores
    assert scores["rotation/layer1/mean/top1"] > 95
    assert scores["flip/layer1/mean/top1"] > 95
    assert scores["rotation/layer1/chance"] == 25
    assert scores["flip/layer1/chance"] == 50
    labels = pairs(net, "val", ["flip"], 200)["flip"][1].labels
    most = 100 * max(labels.float().mean(), 1 - labels.float().mean())
    assert scores["flip/layer1/majority"] == pytest.approx(float(most))


def test_a_map_that_turns_do_not_change_is_at_chance():
    net = source(colors, upright(400), val=upright(400, seed=1))
    scores = evaluate(net, **FAST).scores
    for task, p in (("rotation", 0.25), ("flip", 0.5)):
        error = 100 * math.sqrt(p * (1 - p) / 400)
        assert abs(scores[f"{task}/layer1/mean/top1"] - 100 * p) < 3.5 * error


def test_a_resnet_made_symmetric_cannot_tell_turns_and_a_random_one_can():
    """On 33 px every stride of 2 meets an odd side: nothing but the filters has a direction."""
    pictures = [smooth(count, size=33, seed=count).float() / 4 for count in (200, 150)]
    ramps = 45.0 * (torch.arange(33) % 4)[:, None]  # edges whose direction a mean still shows
    train, val = ((p + ramps).round().to(torch.uint8) for p in pictures)
    knobs = {**FAST, "epochs": 30, "lr": 0.003, "seeds": [0], "tasks": ["rotation"]}
    accuracy, score = {}, {}
    for symmetric in (False, True):
        net = source(resnet(symmetric), train, val=val, layers=(2, 5), cell=1)
        found = evaluate(net, **knobs).scores
        accuracy[symmetric] = [found[f"rotation/layer{i}/mean/top1"] for i in (2, 5)]
        groups = {"groups": ["rotation", "flip"], "random": False, "images": 32}
        found = equivariance_score.evaluate(net, **groups).scores
        score[symmetric] = [v for name, v in found.items() if name.endswith("moved")]
    assert score[True] == pytest.approx([1] * 4, abs=1e-3)
    assert max(score[False]) < 0.99
    assert min(accuracy[False]) > 45
    assert max(accuracy[True]) < 25 + 3 * 100 * math.sqrt(0.25 * 0.75 / 150)


def resnet(symmetric):
    """A random ResNet-18 as toy maps; symmetric: every filter is its mean over turns and flips."""
    torch.manual_seed(0)
    encoder = backbones.create({"name": "resnet18"}).eval()
    for layer in encoder.modules():
        if isinstance(layer, torch.nn.Conv2d) and symmetric:
            weight = layer.weight.data
            every = [geometry.permute(weight, (f, k)) for f in (False, True) for k in range(4)]
            layer.weight.data = torch.stack(every).mean(0)
    transform = evaluation_transform(encoder, size=33, crop_pct=1.0)
    return maps.maps_of(encoder, transform, [2, 5], norm=True)


def test_a_row_is_the_mean_cells_of_both_views_and_its_label_is_the_turn_between():
    net = source(oriented, upright(40))
    table = pairs(net, "train", ["rotation"], 40)["rotation"][1]
    assert table.features.shape == (40, 12)
    first, second = table.features.split(6, dim=1)
    for row in range(40):
        down, side = first[row, 1], first[row, 4]
        for _ in range(int(table.labels[row])):  # counter-clockwise: right → top → left → bottom
            down, side = -side, down
        torch.testing.assert_close(torch.stack((down, side)), second[row, [1, 4]])


def test_no_picture_is_in_both_splits():
    seen = {}
    net = source(colors, upright(30), val=upright(20, seed=1))
    original = net.pictures

    def watched(split, limit, size):
        for pixels, keys in original(split, limit, size):
            seen.setdefault(split, []).extend(keys)
            yield pixels, keys

    net.pictures = watched
    outcome = evaluate(net, **{**FAST, "epochs": 1})
    assert (len(seen["train"]), len(seen["val"])) == (30, 20)
    assert (outcome.facts["train_pairs"], outcome.facts["test_pairs"]) == (30, 20)
    assert not set(seen["train"]) & set(seen["val"])


def test_limits_and_seeds_are_kept():
    net = source(oriented, upright(60), val=upright(60, seed=1))
    first = evaluate(net, **FAST, train_pairs=40, test_pairs=10, tasks=["flip"])
    assert (first.facts["train_pairs"], first.facts["test_pairs"]) == (40, 10)
    assert not [name for name in first.scores if name.startswith("rotation")]
    again = evaluate(net, **FAST, train_pairs=40, test_pairs=10, tasks=["flip"])
    assert again.scores == first.scores


@pytest.mark.parametrize("knob", [{"tasks": ["spin"]}, {"tasks": []}, {"hidden": 0}, {"epochs": 0}])
def test_impossible_knobs_are_refused(knob):
    with pytest.raises(UsageError):
        evaluate(source(colors, upright(8)), **{**FAST, **knob})


def test_the_stage_reads_five_layers_of_both_splits(tmp_path):
    chain = make_chain(tmp_path)
    words = [
        "layers",
        "workers=0",
        "tests.layers.epochs=2",
        "tests.layers.seeds=0,1",
        "tests.layers.hidden=16",
    ]
    found = ask(PROGRAM, chain, *words, out=tmp_path / "layers")
    for task, chance in (("rotation", 25), ("flip", 50)):
        for layer in (1, 2, 3, 4):
            at = f"perturb/layers/{task}/layer{layer}"
            assert found["scores"][f"{at}/chance"] == chance
            assert 0 <= found["scores"][f"{at}/mean/top1"] <= 100
            assert f"{at}/seed1/best/top1" in found["scores"]
    said = found["history"][-1]["layers"]
    assert (said["train_pairs"], said["test_pairs"], said["layers"]) == (60, 30, [1, 2, 3, 4])
    assert set(found["history"][-1]["data"]) == {"train", "val"}
    document = manifest.load_file(chain)[0]
    document["files"]["shards.val"] = document["files"]["shards.train"]
    with pytest.raises(EquiError, match="same shards") as refused:
        ask(PROGRAM, write(document, tmp_path / "leak.yaml"), *words, out=tmp_path / "no")
    assert refused.value.code == DataError.code
