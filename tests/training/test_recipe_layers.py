"""The layers of objectives, terms and backbones fold into recipes that build, in any order."""

import itertools

import pytest
from toy_steps import few

from equitools import equivariance, manifest, objectives
from equitools.core.errors import UsageError
from equitools.manifest import schema as manifest_schema
from equitools.manifest.schema import menu, pick
from equitools.nn import optim
from equitools.training import learner, recipe

FOLDERS = ("objective", "equivariance", "backbone", "schedule")
TERMS = [name for name, _ in menu(equivariance)]


def layer(name):
    return manifest.layer(name, FOLDERS)["recipe"]


def fold(*layers):
    whole: dict = {}
    for name in layers:
        whole = manifest.fold(whole, layer(name))
    return recipe.apply_defaults(whole)


def takes(chosen, knobs):
    try:
        manifest_schema.knobs(chosen, knobs, "objective")
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("name", list(manifest.layers(FOLDERS)))
def test_every_layer_says_only_what_signatures_know(name):
    given = layer(name)
    for section, schema in (
        ("optimizer", optim.optimizer_settings),
        ("schedule", recipe.schedule_settings),
    ):
        manifest_schema.knobs(schema, given.get(section, {}), section)
    objective = dict(given.get("objective", {}))
    if "name" in objective:
        manifest_schema.knobs(pick(objectives, objective.pop("name")), objective, "objective")
    else:  # a layer for the objectives that know all its knobs: there is one
        assert any(takes(pick(objectives, n), objective) for n, _ in menu(objectives))
    for term, knobs in given.get("equivariance", {}).items():
        knobs = {key: value for key, value in knobs.items() if key != "weight"}
        manifest_schema.knobs(pick(equivariance, term), knobs, term)
    for package in (objectives, equivariance):
        for term in set(given.get("defaults", {})) & set(dict(menu(package))):
            knobs = {k: v for k, v in given["defaults"][term].items() if k != "weight"}
            manifest_schema.knobs(getattr(package, term), knobs, term)


@pytest.mark.parametrize("mini", ["vit-mini", "resnet-mini"])
@pytest.mark.parametrize(("base", "term"), [("dino", "clever"), ("simsiam", "ddcl")])
def test_a_mini_recipe_does_not_depend_on_the_order_of_its_layers(mini, base, term):
    orders = [fold(*words) for words in itertools.permutations([base, term, mini])]
    assert all(one == orders[0] for one in orders)
    assert orders[0]["batch_size"] == 64
    assert orders[0]["epochs"] == 20
    assert orders[0]["schedule"]["prelude"] == 0
    assert orders[0]["backbone"]["split"] == 0.8
    assert few(getattr(objectives, base)).keys() & orders[0]["objective"].keys()


@pytest.mark.parametrize(
    "words",
    [("dino", "clever", "vit-mini"), ("dino", "resnet-mini"), ("simsiam", "ddcl", "resnet-mini")],
)
def test_mini_recipes_build(words):
    whole = recipe.resolve(fold(*words))
    assert recipe.resolve(whole) == whole
    built = learner.build(whole)
    assert {name for name, _ in built.terms.named_children()} == set(words) & set(TERMS)


def test_paper_recipes_are_the_papers():
    clever, ddcl = fold("dino", "clever", "vit-small", "e500"), fold("simsiam", "ddcl", "resnet50")
    assert clever["optimizer"]["name"] == "adamw"
    assert clever["optimizer"]["lr"] == 5e-4
    assert clever["batch_size"] == 512
    assert clever["epochs"] == 500
    assert clever["backbone"]["rounding"] == "floor"
    assert ddcl["optimizer"]["lr"] == 0.05
    assert ddcl["optimizer"]["decay_bias"] is True
    assert ddcl["schedule"] == {"warmup_epochs": 0, "freeze_last_layer": 0, "prelude": 30}
    assert ddcl["backbone"]["rounding"] == "round"
    assert ddcl["objective"]["freeze_bias"] is False
    for name, term in (("clever-no-preg", "clever"), ("ddcl-no-preg", "ddcl")):
        assert layer(name)["equivariance"][term]["regularization"] == 0
