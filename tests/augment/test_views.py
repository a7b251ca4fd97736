"""Views are functions of (seed, epoch, sample key, view) alone, and say what was done to them."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from equitools import augment
from equitools.augment import engines, geometry, native, operations, rng
from equitools.augment.operations import crop, flip, jitter, rotation
from equitools.core.errors import UsageError


@pytest.fixture(autouse=True, params=["C", "torch"])
def engine(request, monkeypatch):
    """Every claim holds on both paths."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("the extension _native was not built (no C compiler?)")


SMALL = {"global": {"size": 24}, "local": {"size": 12, "count": 3}}
FULL = {**SMALL, "rotation": 90, "elastic": {"alpha": 40, "sigma": 2, "p": 0.5}}


KNOWN = {"crop", "flip", "rotation", "elastic", "jitter", "gray", "blur", "solarize"}


def picture(seed: int, height: int = 40, width: int = 52) -> np.ndarray:
    g = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(1, 3, 6, 6, generator=g), (height, width), mode="bicubic")
    return (smooth[0].clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).numpy().copy()


def views(settings: dict, names: list[str], seed: int = 0, epoch: int = 0) -> list:
    plan = augment.plan(settings)
    drawn = [plan.sample(picture(int(n)), n, seed, epoch) for n in names]
    return plan.finish(augment.collate(drawn), "cpu")


def test_views_have_the_sizes_groups_and_ranges_of_the_recipe():
    plan = augment.plan(FULL)
    assert [(v.group, v.size, v.index) for v in plan.views] == [
        ("global", 24, 0),
        ("global", 24, 1),
        ("local", 12, 0),
        ("local", 12, 1),
        ("local", 12, 2),
    ]
    made = views(FULL, ["1", "2", "3"])
    for view, planned in zip(made, plan.views, strict=True):
        assert view.image.shape == (3, 3, planned.size, planned.size)
        assert view.matrix.shape == (3, 3, 3)
        assert view.group == planned.group
        assert set(view.action) == KNOWN
        shown = augment.unnormalize(view.image)
        assert torch.allclose(augment.normalize(shown), view.image, atol=1e-4)


def test_a_sample_looks_the_same_in_any_batch():
    together = views(FULL, ["1", "2", "3", "4"])
    others = views(FULL, ["9", "3"])
    for a, b in zip(together, others, strict=True):
        assert torch.allclose(a.image[2], b.image[1], atol=1e-6)
        assert torch.equal(a.matrix[2], b.matrix[1])
        for name in a.action:
            assert torch.equal(a.action[name][2], b.action[name][1])


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_gives_other_views(change):
    a, b = views(FULL, ["1"]), views(FULL, ["1"], **change)
    assert all((x.action["crop"] != y.action["crop"]).any() for x, y in zip(a, b, strict=True))


def test_samples_and_views_differ_from_one_another():
    made = views(FULL, ["1", "2"])
    angles = torch.cat([view.action["rotation"] for view in made]).flatten()
    assert len(angles.unique()) == len(angles)


def test_more_views_leave_the_first_ones_alone():
    few = rng.uniforms(0, 0, "a", rows=2)
    many = rng.uniforms(0, 0, "a", rows=6)
    assert np.array_equal(few, many[:2])


def test_draws_are_pinned_across_versions():
    row = rng.uniforms(0, 1, "sample", rows=1)[0, :3]
    digest = hashlib.blake2b(b"0\x001\x00sample", digest_size=16).digest()
    stream = np.random.Philox(key=int.from_bytes(digest, "little"))
    again = np.random.Generator(stream).random(3)
    assert np.array_equal(row, again)


def test_parameters_are_pinned_across_versions():
    """What (seed, epoch, key, view) stands for, so that old runs can be repeated."""
    text = hashlib.sha256()
    for view in views(FULL, ["1", "2", "30"], seed=7, epoch=3):
        for name in sorted(view.action):
            values = (view.action[name].double() * 1e4).round().int().tolist()
            text.update(f"{name}{values}".encode())
    assert text.hexdigest()[:16] == "2709575b293d9e75"


def test_worker_and_device_give_the_same_views():
    here = views({**FULL, "apply": "device"}, ["1", "2"])
    there = views({**FULL, "apply": "worker"}, ["1", "2"])
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.matrix, b.matrix)


def test_chunks_do_not_show(monkeypatch):
    whole = views(FULL, ["1", "2", "3"])
    monkeypatch.setattr(engines, "CHUNK", {"cpu": 1})
    pieces = views(FULL, ["1", "2", "3"])
    for a, b in zip(whole, pieces, strict=True):
        assert torch.allclose(a.image, b.image, atol=1e-6)


def test_a_plan_travels_to_spawned_workers():
    plan = pickle.loads(pickle.dumps(augment.plan(FULL)))
    made = plan.finish(augment.collate([plan.sample(picture(1), "1", 0, 0)]))
    assert torch.equal(made[0].image, views(FULL, ["1"])[0].image)


def test_finishing_twice_gives_the_same():
    plan = augment.plan(FULL)
    batch = augment.collate([plan.sample(picture(1), "1", 0, 0)])
    first, second = plan.finish(batch), plan.finish(batch)
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, second, strict=True))


def test_actions_are_the_identity_where_nothing_is_done():
    off = {"flip": 0, "gray": 0, "blur": 0, "solarize": 0, "jitter": {"p": 0}}
    for view in views({"global": {"size": 16, **off}}, ["1", "2"]):
        assert set(view.action) == KNOWN - {"rotation", "elastic"}
        for name, value in view.action.items():
            if name != "crop":
                identity = torch.tensor(operations.menu()[name].IDENTITY)
                assert torch.equal(value, identity.expand(2, -1))


def test_a_view_is_its_crop_when_all_else_is_off():
    off = {"flip": 0, "gray": 0, "blur": 0, "solarize": 0, "jitter": {"p": 0}}
    view = views({"global": {"size": 16, "count": 1, **off}}, ["1"])[0]
    source = torch.from_numpy(picture(1)).permute(2, 0, 1)[None]
    expected = crop.apply(source, view.action["crop"], size=16)
    assert torch.allclose(view.image, augment.normalize(expected))


def test_the_matrix_is_crop_then_flip_then_rotation():
    view = views(FULL, ["1", "2", "3"])[0]
    parts = [
        op.matrix(view.action[op.__name__.rpartition(".")[2]].double())
        for op in (crop, flip, rotation)
    ]
    assert torch.allclose(view.matrix.double(), geometry.compose(*parts), atol=1e-5)


def test_the_matrix_follows_the_order_of_the_recipe():
    order = ["crop", "jitter", "gray", "blur", "rotation", "flip"]
    view = views({"global": {"size": 16, "solarize": 0}, "rotation": 60, "order": order}, ["1"])[0]
    parts = [
        op.matrix(view.action[op.__name__.rpartition(".")[2]].double())
        for op in (crop, rotation, flip)
    ]
    assert torch.allclose(view.matrix.double(), geometry.compose(*parts), atol=1e-5)


def test_crops_have_torchvisions_law():
    u = np.random.default_rng(0).random((4000, 24))
    top, left, height, width = crop.draw(u, 300, 400, scale=(0.2, 0.6)).T
    area, shape = height * width, (width * 400) / (height * 300)
    assert 0.19 < area.min() < area.max() < 0.61
    assert 0.74 < shape.min() < shape.max() < 1.35
    assert area.mean() == pytest.approx(0.4, abs=0.01)
    assert np.log(shape).mean() == pytest.approx(0, abs=0.01)
    assert (top >= 0).all()
    assert (top + height <= 1 + 1e-9).all()
    assert (left + width <= 1 + 1e-9).all()
    free = 1 - height
    assert (top[free > 0.2] / free[free > 0.2]).mean() == pytest.approx(0.5, abs=0.02)


def test_windows_that_never_fit_fall_back_to_the_center():
    u = np.random.default_rng(0).random((8, 24))
    found = crop.draw(u, 10, 100, scale=(1.0, 1.0))
    expected = np.array([0, 43 / 100, 1, 13 / 100])
    assert np.allclose(found, expected)


def test_tiny_images_can_be_cropped():
    plan = augment.plan(SMALL)
    made = plan.finish(augment.collate([plan.sample(picture(0, 8, 9), "a", 0, 0)]))
    assert all(torch.isfinite(view.image).all() for view in made)


def test_jitter_orders_are_uniform_and_strengths_in_range():
    p = jitter.draw(np.random.default_rng(0).random((24_000, 6)), p=1.0)
    _, counts = np.unique(p[:, 4:], axis=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 850
    assert counts.max() < 1150
    assert np.abs(p[:, :4] - [1, 1, 1, 0]).max(0) == pytest.approx([0.4, 0.4, 0.2, 0.1], abs=1e-3)


def test_probabilities_hold():
    u = np.random.default_rng(0).random((10_000, 64))
    for name, share in (("flip", 0.5), ("jitter", 0.8), ("gray", 0.2), ("blur", 0.5)):
        op = operations.menu()[name]
        done = (op.draw(u[:, op.COLUMNS]) != np.array(op.IDENTITY)).any(1).mean()
        assert done == pytest.approx(share, abs=0.02)


def test_perturbations_are_keyed_by_image_and_pass():
    images = torch.stack([torch.from_numpy(picture(i, 32, 32)).permute(2, 0, 1) for i in range(4)])
    grid = {"rotation": 90, "jitter": {"saturation": 0.4}, "elastic": {"alpha": 30, "sigma": 2}}
    names = ["a", "b", "c", "d"]
    first = augment.perturb(images, grid, names, seed=0)
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1
    alone = augment.perturb(images[2:3], grid, names[2:3], seed=0)
    assert torch.allclose(first[2:3], alone, atol=1e-6)
    assert not torch.allclose(first, augment.perturb(images, grid, names, seed=0, draw=1))
    assert not torch.allclose(first, augment.perturb(images, grid, names, seed=1))


def test_perturbations_always_act_and_nothing_is_nothing():
    images = torch.stack([torch.from_numpy(picture(i, 16, 16)).permute(2, 0, 1) for i in range(3)])
    names = ["a", "b", "c"]
    flipped = augment.perturb(images, {"flip": {}}, names, seed=0)
    assert torch.equal(flipped, images.flip(-1).float() / 255)
    assert torch.equal(augment.perturb(images, {}, names, seed=0), images.float() / 255)
    with pytest.raises(UsageError, match="did you mean 'rotation'"):
        augment.perturb(images, {"rotaton": 90}, names, seed=0)
    with pytest.raises(UsageError, match="cannot crop"):
        augment.perturb(images, {"crop": {}}, names, seed=0)
