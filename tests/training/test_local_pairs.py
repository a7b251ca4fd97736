"""2+4 views: local crops of a portion in pairs, each pair one crop turned and scaled two ways."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from naive_ser import naive

from equitools import augment, manifest
from equitools.augment import geometry, grid
from equitools.core.errors import UsageError
from equitools.core.records import Portion
from equitools.nn import ema
from equitools.training import estimate, learner, recipe, throughput

WHOLE = {"global": {"size": 24}, "local": {"size": 12, "count": 4}}
GRID = {**WHOLE, "grid": {"portion": 0.5, "patch": 4}}
PAIRS = {**GRID, "grid_local": {"replaces": "local"}}
NAMES = [str(i) for i in range(6)]
INSIDE = [i % 2 == 1 for i in range(len(NAMES))]
MOVING = ("crop", "flip", "rotation", "elastic")


def picture(name):
    return np.random.default_rng(int(name)).integers(0, 256, (40, 52, 3), dtype=np.uint8)


def made(settings, *, names=NAMES, inside=INSIDE, step=5):
    plan = augment.plan(settings)
    drawn = [plan.sample(picture(n), n, 0, 0, i) for n, i in zip(names, inside, strict=True)]
    return plan.finish(augment.collate(drawn, seed=0, step=step))


def of(group, views):
    return [view for view in views if view.group == group]


# --- Views -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["device", "worker"])
def test_each_pair_shows_one_crop_of_its_own(where):
    moving = {"rotation": 60, "elastic": {"p": 0.5}, "apply": where}
    views = of("grid_local", made({**PAIRS, **moving}))
    for first, second in (views[:2], views[2:]):
        assert all(torch.equal(first.action[name], second.action[name]) for name in MOVING)
        assert not torch.equal(first.action["jitter"], second.action["jitter"])
        moved = second.matrix @ torch.linalg.inv(first.matrix)
        assert None not in geometry.elements(moved)
    assert not torch.equal(views[0].action["crop"], views[2].action["crop"])
    area = views[0].action["crop"][:, 2:].prod(1)
    assert (area < 0.45).all(), "crops are local ones"


def test_a_pair_shows_the_pixels_of_its_crop():
    """Without colors and scaling, turning back what a view shows gives the same picture twice."""
    off = {"flip": 0, "gray": 0, "blur": 0, "solarize": 0, "jitter": {"p": 0}}
    still = {"portion": 0.5, "patch": 4, "area": [1, 1], "aspect": [1, 1]}
    views = {"global": {"size": 24, **off}, "local": {**WHOLE["local"], **off}, "grid": still}
    found = of("grid_local", made({**views, "grid_local": {"replaces": "local"}}))
    back = [geometry.warp(view.image, torch.linalg.inv(view.matrix)) for view in found]
    torch.testing.assert_close(back[0], back[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(back[2], back[3], atol=1e-5, rtol=0)
    assert (back[0] - back[2]).abs().mean() > 0.1


def test_all_other_views_are_those_without_local_pairs():
    alone, paired = made(GRID), made(PAIRS)
    for group in ("global", "grid"):
        for one, other in zip(of(group, alone), of(group, paired), strict=True):
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.matrix, other.matrix)
            assert torch.equal(one.rows, other.rows)
    outside = torch.tensor([i for i, inside in enumerate(INSIDE) if not inside])
    for one, other in zip(of("local", alone), of("local", paired), strict=True):
        assert torch.equal(other.rows, outside)
        assert torch.allclose(one.image[outside], other.image, atol=1e-6)


def test_a_step_draws_the_grids_of_local_views_after_those_of_global_ones():
    knobs = {"area": (0.7, 1.3), "aspect": (3 / 4, 4 / 3)}
    shapes = grid.shapes(0, 5, [3.0] * 4, first=2, **knobs)
    together = grid.shapes(0, 5, [6.0] * 2 + [3.0] * 4, **knobs)
    assert shapes == together[2:]
    for view, shape in zip(of("grid_local", made(PAIRS)), shapes, strict=True):
        assert tuple(view.image.shape[-2:]) == tuple(4 * side for side in grid.turned(shape))


def test_two_processes_make_the_step_of_one():
    whole = made(PAIRS)
    parts = [made(PAIRS, names=NAMES[s], inside=INSIDE[s]) for s in (slice(0, 2), slice(2, 6))]
    for i, view in enumerate(whole):
        torch.testing.assert_close(torch.cat([part[i].image for part in parts]), view.image)
        assert torch.equal(torch.cat([parts[0][i].rows, parts[1][i].rows + 2]), view.rows)


# --- Features and the loss -------------------------------------------------------------------


def resolved(views=PAIRS, **term):
    asked = {
        "backbone": {"name": "vit_mini"},
        "objective": {"name": "mocov3", "hidden_dim": 16, "out_dim": 8},
        "equivariance": {"ser": {"layer": 3, "out_dim": 16, **term}},
        "views": views,
        "batch_size": 8,
    }
    return recipe.resolve(asked)


@pytest.fixture(scope="module", params=["online", "slow"])
def ran(request):
    """The model, the views and the step of a batch of which half is in the portion."""
    torch.manual_seed(0)
    model, views = learner.build(resolved(keys=request.param)), made(PAIRS)
    target = model.target_features(ema.copy(model.encoder), views)
    loss, parts, step = model(views, target, 0.0, 0.0)
    loss.backward()
    return model, views, parts, step


def test_objectives_see_every_local_view_of_every_sample_in_order(ran):
    model, views, _, step = ran
    assert [view.group for view in step.views] == ["global"] * 2 + ["local"] * 4
    assert len(step.target) == 2
    shown = of("global", views) + of("local", views), of("grid", views) + of("grid_local", views)
    for features, *own in zip(step.online, *shown, strict=True):
        assert len(features.pooled) == len(NAMES)
        for view in own:
            torch.testing.assert_close(features.pooled[view.rows], model.encoder(view.image).pooled)


def test_the_loss_is_the_naive_mean_over_three_pairs(ran):
    model, _, parts, step = ran
    term = model.terms["ser"]
    pairs = [
        Portion(portion.views[i : i + 2], portion.online[i : i + 2], portion.target)
        for portion in step.portions.values()
        for i in range(0, len(portion.views), 2)
    ]
    assert len(pairs) == 3
    alone = [term(replace(step, portions={"grid": pair}))["ser"] for pair in pairs]
    torch.testing.assert_close(parts["ser"], torch.stack(alone).mean())
    for pair, found in zip(pairs, alone, strict=True):
        if pair.target is None or not term.target:
            expected = naive(term, replace(step, portions={"grid": pair}), "both")
            torch.testing.assert_close(found, expected)


def test_the_slow_encoder_sees_no_local_crop(ran):
    model, _, _, step = ran
    assert step.portions["grid_local"].target is None
    assert len(step.portions["grid"].target) == 2
    assert all(p.grad.isfinite().all() for p in model.terms["ser"].parameters())


# --- What stands around ----------------------------------------------------------------------


def test_the_plan_knows_the_new_views():
    settings = resolved()
    plan = augment.plan(settings["views"])
    line = estimate._views(plan)
    assert line.endswith("; 2 grid of ~24 px + 4 grid_local of ~12 px for 50 % of the batch")
    blank = throughput.blank(plan, 4, 2)
    assert [len(view.image) for view in blank] == [2] * 12
    assert [view.image.shape[-1] for view in blank] == [24] * 2 + [12] * 4 + [24] * 2 + [12] * 4
    model = learner.build(settings)
    fixed, each = estimate.activations(model, settings["views"])
    kept = estimate.saved_bytes(model, settings["views"], 6, 3)
    assert fixed + 6 * each == pytest.approx(kept, rel=1e-3)


def test_the_layer_makes_2_plus_4_views_of_any_ser_recipe():
    for words in (["mocov3", "ser", "vit-small", "ser-mocov3"], ["dino", "ser", "vit-mini"]):
        whole = {}
        for word in (*words, "ser-2+4"):
            folders = ("objective", "equivariance", "backbone", "views", "schedule")
            whole = manifest.fold(whole, manifest.layer(word, folders)["recipe"])
        views = recipe.resolve(recipe.apply_defaults(whole))["views"]
        pairs, first = views["grid_local"], views["grid"]
        assert (pairs["count"], pairs["size"]) == (4, views["local"]["size"])
        assert all(pairs[key] == first[key] for key in ("portion", "patch", "area", "aspect"))
        assert "replaces" not in first, "recipes without local pairs are what they were"
        assert augment.plan(views).settings == views


@pytest.mark.parametrize(
    ("views", "says"),
    [
        ({"grid_local": {"replaces": "local", "portion": 0.25}}, r"0\.25, but .*portion=0\.5"),
        ({"local": {"size": 12, "count": 3}}, r"local\.count is 3; say views\.local\.count=4"),
        ({"local": None}, r"add a group views\.local, or say views\.grid_local=null"),
        ({"grid": None}, r"say views\.grid\.portion=0\.01"),
        ({"grid_local": {"replaces": "grid"}}, r"add a group views\.grid"),
        ({"grid_local": {"replaces": "local", "count": 2}}, "replace 4 local views"),
        ({"more": {"replaces": "local"}}, r"grid_local, more.*set the others to null"),
        ({"grid_local": {"replaces": "local", "patch": 13}}, "from 1 to size=12"),
        ({"grid_local": {"replaces": 3}}, r"add a group views\.3"),
    ],
)
def test_mistakes_are_named(views, says):
    with pytest.raises(UsageError, match=says):
        augment.plan({**PAIRS, **views})


def test_samples_may_all_be_in_the_portion_or_none():
    every = {**PAIRS, "grid": {"portion": 1, "patch": 4}}
    groups = [view.group for view in made(every, inside=[True] * len(NAMES))]
    assert groups == ["grid"] * 2 + ["grid_local"] * 4
    counts = [len(view.image) for view in made(PAIRS, inside=[False] * len(NAMES))]
    assert counts == [6] * 6 + [0] * 6
