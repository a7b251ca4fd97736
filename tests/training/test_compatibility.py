"""What goes with what is said before anything is trained, and shown as a whole."""

import pytest

from equitools import backbones, equivariance, objectives
from equitools.core.errors import UsageError
from equitools.manifest import schema
from equitools.nn.term import goes_with
from equitools.training import compatibility, learner
from equitools.training import recipe as training_recipe

OBJECTIVES = [name for name, _ in schema.menu(objectives)]
TERMS = [name for name, _ in schema.menu(equivariance)]
SMALL = {
    "dino": {"out_dim": 32, "hidden_dim": 16, "bottleneck_dim": 8},
    "simsiam": {"dim": 16, "hidden": 8},
    "mocov2": {"out_dim": 8, "queue_size": 32},
    **{name: {"out_dim": 8} for name in ("byol", "mocov3", "barlow", "debiased", "simclr")},
}


def build(name, views, **knobs):
    recipe = {
        "backbone": {"name": "vit_mini"},
        "objective": {"name": name, **SMALL[name], **knobs},
        "views": views,
        "batch_size": 16,
    }
    return learner.build(training_recipe.resolve(recipe))


def test_the_menu_is_the_one_that_the_papers_compare():
    compared = {"dino", "simsiam", "simclr", "byol", "mocov2", "mocov3", "barlow", "debiased"}
    assert compared <= set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_local_crops_are_taken_or_refused_with_what_would_work(name):
    views = {"global": {"size": 32}, "local": {"size": 16, "count": 2}}
    if name in ("dino", "byol", "mocov3"):
        build(name, views)
        return
    with pytest.raises(UsageError, match=r"views\.local=null.*byol or dino or mocov3"):
        build(name, views)
    build(name, {**views, "local": None})


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("count", [1, 3])
def test_a_number_of_views_that_cannot_be_compared_is_refused(name, count):
    views = {"global": {"size": 32, "count": count}}
    if count > 1 and name in ("dino", "byol", "mocov3", "simsiam"):
        build(name, views)
        return
    with pytest.raises(UsageError, match=rf"has {count}; say views\.global\.count=2"):
        build(name, views)


def test_a_queue_that_the_batch_does_not_divide_is_refused_when_the_recipe_is_read():
    with pytest.raises(UsageError, match=r"objective\.queue_size=32"):
        build("mocov2", {"global": {"size": 32}}, queue_size=40)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_table_of_objectives_shows_every_pair_as_it_is(name):
    (_, heading), *rows = compatibility.with_objectives()
    shown = dict(rows)[name].split()[: len(TERMS)]
    assert heading.split()[: len(TERMS)] == TERMS
    base = getattr(objectives, name)
    fits = [goes_with(getattr(equivariance, term), base) for term in TERMS]
    assert shown == ["yes" if yes else "-" for yes in fits]
    assert compatibility.CROPS[base.crops] in dict(rows)[name]


def test_the_table_of_backbones_shows_all_of_ours():
    _, *rows = compatibility.with_backbones()
    assert [name for name, _ in rows] == list(backbones.menu())
    assert all(cells.split() == ["yes"] * len(TERMS) for _, cells in rows)


def test_what_a_term_asks_for_names_those_who_have_it():
    asked = dict(compatibility.needs())
    assert list(asked) == TERMS
    assert "(dino)" in asked["clever"]
    assert "(byol, mocov3, simsiam)" in asked["ddcl"]
    assert "backbone.split" in asked["ddcl"]
    assert "backbone.split" not in asked["ser"]
    assert "portion" in asked["ser"]
    assert "maps" in asked["ser"]


def test_a_backbone_without_inner_maps_goes_with_no_term_that_reads_them(monkeypatch):
    class Flat:
        def channels(self, layer):
            raise UsageError("one vector and no maps")

    monkeypatch.setattr(backbones, "create", lambda settings: Flat())
    rows = dict(compatibility.with_backbones())
    assert {TERMS[i]: c for i, c in enumerate(rows["vit_mini"].split())}["ser"] == "-"
