"""Maps that move as pictures do score 1; so do empty ones, and the controls say which is which."""

import itertools

import pytest
import torch
from asking import ask, make_chain
from equitools.stages.perturb import PROGRAM
from torch.nn import functional as F
from toy_maps import patch_means, smooth, source

from equitools import backbones, manifest
from equitools.augment import geometry
from equitools.core import files
from equitools.core.errors import DataError, EquiError, UsageError
from equitools.evals.equivariance import transformed_pairs
from equitools.evals.equivariance.score import ACTIONS, agreement, evaluate
from equitools.features import maps
from equitools.features.transform import evaluation_transform

EXACT = {"groups": ["rotation", "flip"], "random": False}


def flat_map(image):
    """A map that is the same everywhere, whatever the picture."""
    token = torch.tensor([0.1, -0.3, 0.7, 1.9, 0.0])  # its mean over cells is not exact in binary
    return {
        1: token[None, :, None, None].repeat(len(image), 1, *(n // 4 for n in image.shape[-2:]))
    }


def filtered(kernel):
    """A convolution as a network."""
    return lambda image: {1: F.conv2d(image - 0.5, kernel, padding=1)}


# --- The score -------------------------------------------------------------------------------


def test_patch_means_score_one_for_all_turns_and_flips():
    scores = evaluate(source(patch_means, smooth(40)), **EXACT).scores
    for group in ("rotation", "flip"):
        for name in ("score", "moved", "constant", "centered"):
            assert scores[f"{group}/layer1/{name}"] == pytest.approx(1, abs=1e-5)
        assert scores[f"{group}/layer1/shuffled"] < 0.99


def test_the_identity_scores_one_for_any_network():
    class Oriented(torch.nn.Conv2d):
        def __call__(self, image):
            return {1: super().__call__(image)}

    torch.manual_seed(0)
    any_network = Oriented(3, 8, 4, 4)
    with torch.no_grad():
        still = source(any_network, smooth(20))
        scores = evaluate(still, groups=["scale"], area=(1.0, 1.0), aspect=(1.0, 1.0)).scores
        turned = evaluate(still, **EXACT).scores
    assert scores["scale/layer1/score"] == pytest.approx(1, abs=1e-6)
    assert "scale/layer1/moved" not in scores, "no picture was moved"
    assert turned["rotation/layer1/moved"] < turned["rotation/layer1/score"] < 0.95


def test_a_constant_map_scores_one_and_its_controls_give_it_away():
    scores = evaluate(source(flat_map, smooth(20, size=28)), zoom=True).scores
    for group in ("rotation", "flip", "scale", "zoom"):
        for name in ("score", "shuffled", "constant"):
            assert scores[f"{group}/layer1/{name}"] == pytest.approx(1, abs=1e-5)
        assert scores[f"{group}/layer1/centered"] == 0
        assert scores[f"{group}/layer1/variance"] == pytest.approx(0, abs=1e-9)


def test_a_symmetric_filter_is_equivariant_and_a_random_one_is_not():
    kernel = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    everything = [(flip, turns) for flip in (False, True) for turns in range(4)]
    symmetric = torch.stack([geometry.permute(kernel, g) for g in everything]).mean(0)
    found = {}
    for name, weights in (("random", kernel), ("symmetric", symmetric)):
        net = source(filtered(weights), smooth(20), cell=1)
        found[name] = evaluate(net, **EXACT).scores
    for group in ("rotation", "flip"):
        assert found["symmetric"][f"{group}/layer1/moved"] == pytest.approx(1, abs=1e-4)
        assert found["random"][f"{group}/layer1/moved"] < 0.9


def test_a_map_of_positions_alone_does_not_move_with_the_picture():
    def places(image):
        rows = torch.linspace(-1, 1, image.shape[-2])[None, None, :, None]
        return {1: (rows + torch.zeros(len(image), 1, 1, image.shape[-1])).repeat(1, 2, 1, 1)}

    scores = evaluate(source(places, smooth(60)), **EXACT).scores
    assert abs(scores["rotation/layer1/moved"]) < 0.5
    assert scores["flip/layer1/moved"] == pytest.approx(1), "left-right leaves rows where they are"


def test_smooth_pictures_scaled_as_a_whole_scale_their_patch_means():
    scores = evaluate(source(patch_means, smooth(64, size=64)), groups=["scale"]).scores
    assert scores["scale/layer1/score"] > 0.999
    assert scores["scale/layer1/centered"] > 0.97
    assert scores["scale/layer1/shuffled"] < 0.97


def test_zooming_counts_only_cells_inside_the_picture_in_both_views():
    white = torch.full((20, 3, 32, 32), 255, dtype=torch.uint8)
    scores = evaluate(source(patch_means, white), groups=[], zoom=True).scores
    assert scores["zoom/layer1/score"] == pytest.approx(1, abs=1e-5)
    pair = transformed_pairs.zooms(
        white, [str(i) for i in range(20)], 0, area=(0.7, 1.3), aspect=(1, 1)
    )
    inside = pair.valid((8, 8))
    assert 0.3 < inside.float().mean() < 0.95
    black = (F.avg_pool2d(pair.second, 4)[:, 0] < 0.999) & inside
    assert not black.any(), "the border of the picture is no part of a cell that counts"


def test_the_controls_are_what_naive_loops_give():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 3, 2, 2, generator=draw) + 1 for _ in range(2))
    found = agreement(a, b)
    x, y = a[0].flatten(1).T, b[0].flatten(1).T
    cosine = F.cosine_similarity(x[:, None], y[None], dim=-1)
    assert float(found["score"]) == pytest.approx(float(cosine.diagonal().mean()))
    orders = [p for p in itertools.permutations(range(4)) if all(i != j for i, j in enumerate(p))]
    shuffled = torch.stack([cosine[torch.arange(4), torch.tensor(p)].mean() for p in orders])
    assert float(found["shuffled"]) == pytest.approx(float(shuffled.mean()), abs=1e-6)
    centered = F.cosine_similarity(x - x.mean(0), y - y.mean(0), dim=-1).mean()
    assert float(found["centered"]) == pytest.approx(float(centered), abs=1e-6)
    variance = (y - y.mean(0)).square().sum() / y.square().sum()
    assert float(found["variance"]) == pytest.approx(float(variance), abs=1e-6)
    some = agreement(a, b, torch.tensor([[[True, False], [True, True]]]))
    assert float(some["score"]) == pytest.approx(float(cosine.diagonal()[[0, 2, 3]].mean()))


# --- The views -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rotations", "flips"])
def test_the_element_takes_the_first_view_to_the_second_exactly(kind):
    pictures, names = smooth(30), [str(i) for i in range(30)]
    pair = getattr(transformed_pairs, kind)(pictures, names, 0)
    assert torch.equal(pair.act(pair.first, (16, 16)), pair.second)
    assert pair.element.unique().tolist() == ([0, 1, 2, 3] if kind == "rotations" else [0, 1])
    again = getattr(transformed_pairs, kind)(pictures[7:9], names[7:9], 0)
    assert torch.equal(again.second, pair.second[7:9]), "a picture's views do not depend on others"
    assert not torch.equal(getattr(transformed_pairs, kind)(pictures, names, 1).first, pair.first)


def test_scaling_shows_the_whole_picture_on_other_grids():
    picture = smooth(8, size=64)
    pairs = [
        transformed_pairs.scalings(picture, n, 0, cell=4, area=(0.7, 1.3), aspect=(3 / 4, 4 / 3))
        for n in range(12)
    ]
    shapes = {tuple(view.shape[-2:]) for pair in pairs for view in (pair.first, pair.second)}
    assert len(shapes) > 6
    assert all(side % 4 == 0 for shape in shapes for side in shape)
    for pair in pairs:
        left, right = pair.second[..., 0].mean(-1), (picture.float() / 255)[..., 0].mean(-1)
        torch.testing.assert_close(left, right, atol=0.03, rtol=0)


# --- Networks --------------------------------------------------------------------------------


def test_layers_are_counted_from_one_and_from_the_end():
    torch.manual_seed(0)
    vit = backbones.create({"name": "vit_mini"})
    assert maps.choose(vit, None) == [1, 2, 3, 4]
    assert maps.choose(vit, [-1, 2]) == [2, 4]
    assert maps.quarters(12) == [1, 3, 6, 9, 12]
    assert maps.quarters(4) == [1, 2, 3, 4]
    with pytest.raises(UsageError, match="layer 5"):
        maps.choose(vit, [5])


def test_the_last_layer_of_a_vit_is_what_its_final_norm_gives():
    torch.manual_seed(0)
    vit = backbones.create({"name": "vit_mini"}).eval()
    torch.nn.init.normal_(vit.trunk.norm.weight)
    transform = evaluation_transform(vit)
    pictures = smooth(2, size=32)
    last = maps.maps_of(vit, transform, [4], norm=True)(pictures)[4]
    with torch.no_grad():
        tokens = vit.trunk.forward_features(transform.normalized(pictures))[:, 1:]
    torch.testing.assert_close(last.flatten(2).mT, tokens)
    bare = maps.maps_of(vit, transform, [4], norm=False)(pictures)[4]
    assert not torch.allclose(bare, last)


def test_a_network_that_takes_one_size_only_has_no_column_for_scaling_and_it_is_said():
    def strict(image):
        assert image.shape[-2:] == (16, 16), "Input height doesn't match model"
        return patch_means(image)

    refused = maps.refuses_other_shapes(strict, 16, 4, "cpu")
    assert refused == "Input height doesn't match model"
    assert maps.refuses_other_shapes(patch_means, 16, 4, "cpu") is None
    outcome = evaluate(source(strict, smooth(4), other_shapes=refused))
    assert not [name for name in outcome.scores if name.startswith("scale")]
    assert "doesn't match" in outcome.facts["left_out"]["scale"]


@pytest.mark.parametrize(
    ("knobs", "said"),
    [({"groups": ["spin"]}, "spin"), ({"groups": []}, "no group"), ({"area": (1.3, 0.7)}, "area")],
)
def test_impossible_knobs_are_refused(knobs, said):
    with pytest.raises(UsageError, match=said):
        evaluate(source(patch_means, smooth(4)), **knobs)


def test_no_pictures_are_an_error():
    with pytest.raises(DataError, match="no pictures"):
        evaluate(source(patch_means, smooth(0)))


# --- The stage -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return make_chain(tmp_path_factory.mktemp("chain"))


def test_the_stage_scores_every_block_and_needs_no_probe(chain, tmp_path):
    found = ask(PROGRAM, chain, "equivariance", "workers=0", "limit=20", out=tmp_path)
    names = {
        "score",
        "moved",
        "centered",
        "shuffled",
        "constant",
        "variance",
        "random",
        "random_centered",
    }
    for group in ("rotation", "flip", "scale"):
        for layer in (1, 2, 3, 4):
            at = f"perturb/equivariance/{group}/layer{layer}"
            assert {f"{at}/{name}" for name in names} <= found["scores"].keys()
            assert -1 <= found["scores"][f"{at}/score"] <= 1
            assert found["scores"][f"{at}/constant"] == pytest.approx(1, abs=1e-5)
    record = found["history"][-1]
    assert {"encoder", "weights", "data", "device", "torch", "seconds"} <= record.keys()
    said = record["equivariance"]
    assert {
        "images",
        "elements",
        "measure",
        "actions",
        "transform",
        "layers",
        "maps",
    } <= said.keys()
    assert said["images"] == 20
    assert "encoder" in found["files"]
    again = ask(
        PROGRAM,
        chain,
        "equivariance",
        "workers=0",
        "limit=20",
        "extract_batch_size=7",
        out=tmp_path / "again",
    )
    assert again["scores"] == found["scores"]


def test_foreign_and_random_networks_are_looked_into_without_a_checkpoint(chain, tmp_path):
    shards = chain.parent / "shards" / "manifest.yaml"
    words = ["equivariance", "workers=0", "limit=4", "layers=-1,1"]
    timm = ask(PROGRAM, shards, *words, "encoder=resnet10t", "size=64", out=tmp_path / "a")
    assert {name.split("/")[3] for name in timm["scores"]} == {"layer1", "layer5"}
    assert timm["history"][-1]["encoder"] == "resnet10t with random weights, seed 0"
    words = ["vit-mini", "encoder=random", *words]
    random = ask(PROGRAM, shards, *words, out=tmp_path / "b")
    scores = {name: value for name, value in random["scores"].items() if "/random" in name}
    for name, value in scores.items():
        trained = name.replace("random_centered", "centered").replace("/random", "/score")
        assert value == pytest.approx(random["scores"][trained], abs=1e-6), "it is the same one"


def test_scores_of_one_encoder_do_not_stay_with_another(chain, tmp_path):
    document = manifest.load_file(chain)[0] | {"scores": {"probe/knn/all/k20/top1": 1.0}}
    files.write_atomic(tmp_path / "scored.yaml", manifest.dump(document))
    words = [tmp_path / "scored.yaml", "equivariance", "workers=0", "limit=2", "layers=1"]
    mine = ask(PROGRAM, *words, out=tmp_path / "mine")
    assert "probe/knn/all/k20/top1" in mine["scores"]
    other = ask(PROGRAM, *words, "encoder=resnet10t", "size=64", out=tmp_path / "other")
    assert "probe/knn/all/k20/top1" not in other["scores"]
    assert "encoder" not in other["files"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["equivariance", "layers=9"], "layer 9"),
        (["equivariance", "encoder=pixels"], "pixels have no layers"),
        (["equivariance", "tests.equivariance.image=3"], "'image'"),
        (["grid", "layers=1"], "alone"),
        (["grid", "equivariance", "encoder=resnet10t"], "grid asks the encoder of the probe"),
    ],
)
def test_wrong_words_are_refused_in_one_line(chain, words, said, tmp_path):
    with pytest.raises(EquiError, match=said) as refused:
        ask(PROGRAM, chain, *words, out=tmp_path / "out")
    assert refused.value.code == 2
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_the_groups_that_are_explained_are_those_that_there_are():
    assert set(ACTIONS) == {"rotation", "flip", "scale", "zoom"}
