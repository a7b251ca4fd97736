"""One word makes a run one with SER, on any backbone; what cannot be is refused before training."""

import itertools

import pytest
import torch

from equitools import backbones, manifest
from equitools.core.errors import UsageError
from equitools.training import learner, recipe


def folded(*words):
    """The recipe of some layers, with the defaults of each."""
    whole: dict = {}
    for word in words:
        layer = manifest.layer(word, ("objective", "equivariance", "backbone"))["recipe"]
        whole = manifest.fold(whole, layer)
    return recipe.apply_defaults(whole)


@pytest.mark.parametrize(
    ("backbone", "layer", "patch", "cls_after"),
    [
        ("vit-small", 3, 16, 3),
        ("vit-mini", 1, 4, 1),
        ("resnet50", 3, 8, None),
        ("resnet-mini", 2, 4, None),
        ("vmamba-tiny", 2, 8, None),
        ("vmamba-mini", 1, 4, None),
    ],
)
def test_one_word_suits_every_backbone_in_any_order(backbone, layer, patch, cls_after):
    orders = [folded(*words) for words in itertools.permutations(["dino", "ser", backbone])]
    assert all(one == orders[0] for one in orders)
    whole = recipe.resolve(orders[0])
    assert recipe.resolve(whole) == whole
    term = whole["equivariance"]["ser"]
    assert (term["layer"], term["weight"], term["temperature"]) == (layer, 0.3, 0.5)
    assert whole["views"]["grid"]["patch"] == patch
    assert whole["views"]["grid"]["portion"] == (0.25 if "mini" in backbone else 0.01)
    with torch.device("meta"):
        encoder = learner.build(whole).encoder
        side = 32 if "mini" in backbone else 224
        cells = encoder(torch.zeros(2, 3, side, side), maps=(layer - 1,)).maps[layer - 1]
    assert getattr(encoder.trunk, "cls_after", None) == cls_after
    assert cells.shape == (2, encoder.channels(layer), side // patch, side // patch)


def test_other_objectives_have_the_other_temperature_of_the_paper():
    term = recipe.resolve(folded("mocov3", "ser", "vit-small"))["equivariance"]["ser"]
    assert (term["weight"], term["temperature"], term["negatives"]) == (1.0, 0.3, "both")


def test_the_parameters_are_those_of_table_1():
    """42.9 → 43.4 M trained: the projector's 458,752 and the norm's 768, less a class position."""
    counts = {}
    for words in (("mocov3", "vit-small"), ("mocov3", "vit-small", "ser")):
        with torch.device("meta"):
            built = learner.build(recipe.resolve(folded(*words)))
        counts[words[-1]] = sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert counts == {"vit-small": 42_890_752, "ser": 42_890_752 - 384 + 458_752 + 768}
    assert built.terms["ser"].layers == (2,)
    assert built.encoder.trunk.cls_after == 3
    assert sum(p.numel() for p in built.terms["ser"].projector.parameters()) == 458_752


def resolved(*, term=None, views=None, backbone=None, **rest):
    base = {
        "backbone": {"name": "vit_mini", **(backbone or {})},
        "objective": {"name": "simsiam", "dim": 32, "hidden": 8},
        "equivariance": {"ser": {"layer": 1, **(term or {})}},
        "views": {"global": {"size": 32}, "grid": {"portion": 0.25, "patch": 4}},
        "batch_size": 16,
    }
    base["views"] = base["views"] if views is None else views
    return recipe.resolve(recipe.apply_defaults({**base, **rest}))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"term": {"layer": 5}}, "layer 5 of vit_mini.*4 blocks; say 1 to 4"),
        ({"term": {"layer": 0}}, "say 1 to 4"),
        ({"term": {"keys": "slow"}}, "simsiam keeps no target network; say ser.keys=online"),
        ({"term": {"temperature": 0}}, "must be above 0"),
        ({"views": {"global": {}}}, "say views.grid.portion=0.01"),
        ({"views": {"global": {}, "grid": {}}}, "say views.grid.portion=0.01"),
        ({"backbone": {"name": "resnet_mini"}, "term": {"layer": 6}}, "5 stages with maps"),
        ({"backbone": {"name": "resnet_mini", "cls_after": 3}}, "cls_after=null"),
    ],
)
def test_what_cannot_be_is_refused_before_training(given, told):
    with pytest.raises(UsageError, match=told):
        learner.build(resolved(**given))


def test_a_network_without_maps_is_refused():
    encoder = backbones.create({"name": "resnet_mini"})
    encoder.depth = 0
    with pytest.raises(UsageError, match="gives one vector and no maps"):
        encoder.channels(3)
