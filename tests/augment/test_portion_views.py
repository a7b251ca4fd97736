"""Views of a portion: one crop, independent colors, symmetries of the square, a step's grid."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from equitools import augment
from equitools.augment import geometry, native
from equitools.augment import grid as augment_grid
from equitools.augment.grid import delta
from equitools.augment.operations import crop
from equitools.core.errors import UsageError

OFF = {"flip": 0, "gray": 0, "blur": 0, "solarize": 0, "jitter": {"p": 0}}
BASE = {"global": {"size": 24}, "local": {"size": 12, "count": 3}}
PART = {**BASE, "grid": {"portion": 0.5, "patch": 4}}
NAMES = [str(i) for i in range(12)]


@pytest.fixture(autouse=True, params=["C", "torch"])
def engine(request, monkeypatch):
    """Every claim holds on both paths."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("the extension _native was not built (no C compiler?)")


def picture(name):
    draw = torch.Generator().manual_seed(int(name))
    smooth = F.interpolate(torch.rand(1, 3, 6, 6, generator=draw), (40, 52), mode="bicubic")
    return (smooth[0].clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).numpy().copy()


def made(settings, *, inside=True, names=NAMES, step=5, seed=0):
    """The views of some pictures; inside: for all, or one for each."""
    plan = augment.plan(settings)
    each = [inside] * len(names) if isinstance(inside, bool) else inside
    drawn = [plan.sample(picture(n), n, seed, 0, i) for n, i in zip(names, each, strict=True)]
    return plan.finish(augment.collate(drawn, seed=seed, step=step))


def of(group, views):
    return [view for view in views if view.group == group]


HALF = [i % 2 == 1 for i in range(len(NAMES))]


@pytest.mark.parametrize("where", ["device", "worker"])
def test_other_views_are_those_of_the_recipe_without_a_portion(where):
    whole, part = made({**BASE, "apply": where}), made({**PART, "apply": where}, inside=HALF)
    outside = torch.tensor([i for i, one in enumerate(HALF) if not one])
    for a, b in zip(of("local", whole), of("local", part), strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.matrix, b.matrix)
        assert b.rows is None
    for a, b in zip(of("global", whole), of("global", part), strict=True):
        assert torch.equal(b.rows, outside)
        assert torch.allclose(a.image[outside], b.image, atol=1e-6)
        assert torch.equal(a.matrix[outside], b.matrix)
        assert torch.equal(a.action["jitter"][outside], b.action["jitter"])


def test_a_sample_looks_the_same_in_any_batch_and_wherever_it_is_made():
    half, here = of("grid", made(PART, inside=HALF)), of("grid", made(PART))
    there = of("grid", made({**PART, "apply": "worker"}))
    for some, every, worker in zip(half, here, there, strict=True):
        assert torch.equal(every.image, worker.image)
        assert torch.allclose(some.image, every.image[some.rows], atol=1e-6)
        assert torch.equal(some.matrix, every.matrix[some.rows])
        assert some.replaces == "global"


def test_the_views_share_what_moves_pixels_and_nothing_else():
    first, second = of("grid", made({**PART, "rotation": 90, "elastic": {"p": 0.5}}))
    for name in ("crop", "flip", "rotation", "elastic"):
        assert torch.equal(first.action[name], second.action[name])
    assert not torch.equal(first.action["jitter"], second.action["jitter"])
    assert not torch.equal(first.action["grid"][:, :2], second.action["grid"][:, :2])


def as_said(view, i):
    """A small array moved by what the view's action says of one sample."""
    half, flip, turns = view.action["grid"][i, :3].int().tolist()
    array = torch.rot90(torch.arange(6).view(2, 3), 2 * half)
    return torch.rot90(array.flip(-1) if flip else array, turns)


@pytest.mark.parametrize("more", [{}, {"rotation": 60}, {"grid": {**PART["grid"], "flip": 1}}])
def test_one_view_is_the_other_moved_by_a_symmetry_of_the_square(more):
    first, second = of("grid", made({**PART, **more}))
    found = geometry.elements(second.matrix @ torch.linalg.inv(first.matrix))
    for i, element in enumerate(found):
        assert element is not None
        assert torch.equal(geometry.permute(as_said(first, i), element), as_said(second, i))
    assert len(set(found)) > 2, "half turns and flips are drawn for each sample"


def shared_crop(view, size):
    """The crop that a portion's views share, normalized, and the matrix from it to the view."""
    source = torch.stack([torch.from_numpy(picture(name)).permute(2, 0, 1) for name in NAMES])
    p = view.action["crop"].double()
    taken = crop.apply(source, p, size=size)
    return augment.normalize(taken), view.matrix @ torch.linalg.inv(crop.matrix(p))


@pytest.mark.parametrize("step", range(4))
def test_warping_the_shared_crop_by_the_matrix_gives_the_view(step):
    fixed = {"portion": 1, "patch": 4, "area": [1, 1], "aspect": [1, 1]}
    for view in made({"global": {"size": 24, **OFF}, "grid": fixed}, step=step):
        shared, moved = shared_crop(view, 24)
        assert torch.allclose(geometry.warp(shared, moved), view.image, atol=1e-6)


@pytest.mark.parametrize("step", range(4))
def test_warping_it_onto_the_grid_gives_the_view_up_to_interpolation(step):
    whole = {"size": 48, **OFF}
    for view in made({"global": whole, "grid": {"portion": 1, "patch": 4}}, step=step):
        shared, moved = shared_crop(view, 48)
        sides = tuple((4 * view.action["grid"][0, 3:]).int().tolist())
        assert tuple(view.image.shape[-2:]) == sides
        turned = geometry.warp(shared, moved)
        resized = F.interpolate(turned, sides, mode="bicubic")
        assert torch.allclose(resized, view.image, atol=1e-5), "resizing commutes with symmetries"
        inner = (..., slice(2, -2), slice(2, -2))  # grid_sample fades to black over the border
        apart = geometry.warp(shared, moved, sides)[inner] - view.image[inner]
        assert apart.square().mean().sqrt() < 0.05 * view.image.std()


def test_the_second_view_can_take_what_the_first_one_leaves():
    first, second = of("grid", made({**PART, "grid": {**PART["grid"], "complement": True}}))
    assert torch.equal(second.action["grid"][:, :2], 1 - first.action["grid"][:, :2])
    found = geometry.elements(second.matrix @ torch.linalg.inv(first.matrix))
    assert len(set(found)) == 1, "one formula serves the batch"


def test_the_whole_picture_can_take_the_place_of_the_crop():
    for view in of("grid", made({**PART, "grid": {**PART["grid"], "whole": True}})):
        assert torch.equal(view.action["crop"], torch.tensor([0.0, 0, 1, 1]).expand(12, -1))
    cropped = of("grid", made(PART))[0].action["crop"]
    assert (cropped[:, 2:] < 1).any()


# --- Grids -----------------------------------------------------------------------------------


def drawn_shapes(count, cells=14.0):
    knobs = {"area": (0.7, 1.3), "aspect": (3 / 4, 4 / 3)}
    return [augment_grid.shapes(3, step, [cells, cells], **knobs) for step in range(count)]


def test_grids_have_the_law_of_the_paper():
    shapes = [shape for pair in drawn_shapes(1500) for shape in pair]
    area = np.array([shape.height * shape.width for shape in shapes])
    aspect = np.array([shape.width / shape.height for shape in shapes])
    assert 0.6 * 196 < area.min() < 0.75 * 196
    assert 1.25 * 196 < area.max() < 1.4 * 196
    assert area.mean() == pytest.approx(196, rel=0.02)
    assert 0.65 < aspect.min() < aspect.max() < 1.5
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.02)
    _, counts = np.unique([shape.turns for shape in shapes], return_counts=True)
    assert len(counts) == 4
    assert counts.min() > 650


def test_half_turns_and_flips_are_fair_and_independent():
    moves = augment_grid.moves(np.random.default_rng(0).random((4000, 2)))
    _, counts = np.unique(moves, axis=0, return_counts=True)
    assert len(counts) == 4
    assert counts.min() > 900


def test_grids_differ_between_steps_and_views_and_are_pinned():
    pairs = drawn_shapes(40)
    assert len({pair[0] for pair in pairs}) > 25
    assert sum(pair[0] != pair[1] for pair in pairs) > 35
    assert pairs[:2] == drawn_shapes(2)
    assert [tuple(shape) for shape in pairs[0]] == PINNED, "old runs could not be repeated"


PINNED = [(12, 13, 2), (12, 13, 0)]


def test_all_batches_of_a_step_share_the_grid():
    one, other = (of("grid", made(PART, names=names)) for names in (NAMES[:5], NAMES[5:]))
    for a, b in zip(one, other, strict=True):
        assert a.image.shape[1:] == b.image.shape[1:]
        assert torch.equal(a.action["grid"][:1, 2:], b.action["grid"][:1, 2:])
    shapes = {made(PART, names=["1"], step=step)[-1].image.shape for step in range(8)}
    assert len(shapes) > 3


def test_differences_are_of_what_was_done():
    one = torch.tensor([[1.0, 0, 3, 12, 16]])
    assert delta(one, torch.tensor([[0.0, 0, 1, 6, 8]])).tolist() == [[1, 0, 2, 2, 2]]


def test_nothing_inside_is_views_of_no_picture():
    views = made(PART, inside=False)
    assert [len(view.image) for view in views] == [12] * 5 + [0] * 2
    assert all(min(view.image.shape[-2:]) > 0 for view in views)
    assert [len(view.image) for view in made(PART)] == [0] * 2 + [12] * 5


def test_a_plan_travels_to_spawned_workers():
    plan = pickle.loads(pickle.dumps(augment.plan(PART)))
    batch = augment.collate([plan.sample(picture("1"), "1", 0, 0, True)], seed=0, step=5)
    assert torch.equal(plan.finish(batch)[-1].image, made(PART, names=["1"])[-1].image)


# --- Settings --------------------------------------------------------------------------------


def test_a_portion_starts_from_the_global_group():
    plan = augment.plan({"grid": {"portion": 0.01}, "global": {"crop": [0.08, 1]}, "local": {}})
    group = plan.settings["grid"]
    assert {key: group[key] for key in plan.settings["global"]} == plan.settings["global"]
    assert (group["patch"], group["area"]) == (16, [0.7, 1.3])
    assert [view.group for view in plan.views][-2:] == ["grid", "grid"]
    assert augment.plan(plan.settings).settings == plan.settings


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"portion": 0}, r"in \(0, 1\]"),
        ({"portion": 1.5}, r"in \(0, 1\]"),
        ({"portion": 0.5, "count": 3}, "replace 2 global views"),
        ({"portion": 0.5, "ptch": 4}, "did you mean 'patch'"),
        ({"portion": 0.5, "patch": 300}, "from 1 to size=224"),
        ({"portion": 0.5, "area": [1.3, 0.7]}, "low ≤ high"),
        ({"portion": 0.5, "whole": "yes"}, "true or false"),
        ({"patch": 4}, "takes no 'patch'"),
    ],
)
def test_mistakes_are_named(grid, says):
    with pytest.raises(UsageError, match=says):
        augment.plan({"global": {}, "grid": grid})


def test_a_portion_needs_global_views_and_is_alone():
    with pytest.raises(UsageError, match=r"add a group views\.global"):
        augment.plan({"local": {}, "grid": {"portion": 0.5}})
    with pytest.raises(UsageError, match="set the others to null"):
        augment.plan({"global": {}, "a": {"portion": 0.5}, "b": {"portion": 0.5}})
