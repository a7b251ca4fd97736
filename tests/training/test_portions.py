"""A portion of the batch: the same samples whatever the processes, and one record for all again."""

import itertools

import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from equitools import augment, manifest
from equitools.core import files
from equitools.core.errors import UsageError
from equitools.core.records import Step
from equitools.data.shards.index import open_split
from equitools.nn import ema
from equitools.report import views as report_views
from equitools.training import estimate, learner, loader, portions
from equitools.training import recipe as training_recipe

BATCH = 16
VIEWS = {"global": {"size": 32}, "local": {"size": 16, "count": 2}}
PART = {**VIEWS, "grid": {"portion": 0.3, "patch": 4}}
PAIRS = {**PART, "grid_local": {"replaces": "local"}}
TINY = {"out_dim": 32, "hidden_dim": 16, "bottleneck_dim": 8}


def recipe(views=PART, **changes):
    base = {
        "backbone": {"name": "vit_mini"},
        "objective": {"name": "dino", **TINY},
        "views": views,
        "batch_size": BATCH,
    }
    return training_recipe.resolve(base | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("portions")
    words = ["scenes", "train_samples=80", "val_samples=20", "size=32", "-o", out / "shards"]
    assert forked.run("shard", *words).returncode == 0
    files.write_atomic(out / "part.yaml", manifest.dump({"recipe": {"views": PAIRS}}))
    return out


@pytest.fixture(scope="module")
def index(folder):
    document = manifest.load_file(folder / "shards" / "manifest.yaml")[0]
    return open_split(document, "train")


# --- Which samples ---------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "batch"), [(2, 16), (5, 16), (11, 48), (24, 2048), (48, 48)])
def test_every_share_of_a_step_has_its_part_to_within_one(members, batch):
    whole = portions.inside(0, batch, members=members, batch=batch)
    assert sum(whole) == members
    for count in (1, 2, 4, 8):
        share = batch // count
        parts = [
            portions.inside(start, share, members=members, batch=batch)
            for start in range(0, batch, share)
        ]
        assert list(itertools.chain(*parts)) == whole
        found = {sum(part) for part in parts}
        assert max(found) - min(found) <= 1


def test_fewer_than_two_images_are_refused_with_what_would_work():
    with pytest.raises(UsageError, match=r"0\.01 of batch_size=16 is 0 images.*batch_size=200"):
        recipe({**PART, "grid": {"portion": 0.01}})
    assert portions.members(0.125, 16) == 2
    assert portions.members(0.01, 200) == 2
    with pytest.raises(UsageError, match="say portion=1"):
        portions.members(0.99, 16)


def test_micro_batches_with_a_lonely_image_are_refused(index):
    plan = augment.plan(PART)
    knobs = {"seed": 0, "batch": BATCH, "ranks": 1, "rank": 0}
    loader.StepBatches(index, plan, accumulate=2, **knobs)
    with pytest.raises(UsageError, match=r"1 of the 5 images of the portion.*accumulate=2"):
        loader.StepBatches(index, plan, accumulate=4, **knobs)


def test_a_grid_that_a_network_cannot_cut_is_refused():
    with pytest.raises(UsageError, match=r"views\.grid\.patch=4"):
        learner.build(recipe({**PART, "grid": {"portion": 0.5, "patch": 6}}))


# --- The loader ------------------------------------------------------------------------------


def stepped(index, views=PART, **changes):
    knobs = {"seed": 3, "batch": BATCH, "ranks": 1, "rank": 0, "accumulate": 1}
    return loader.StepBatches(index, augment.plan(views), **knobs | changes)


def drained(data, workers=0, resident=None):
    return list(loader.batches(data, start=1, end=4, workers=workers, pin=False, resident=resident))


def same(one, other):
    """Are two trees of tensors equal?"""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return all(map(same, one, other))
    return torch.equal(one, other)


@pytest.mark.parametrize("where", ["device", "worker"])
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_workers_and_caches_change_nothing(index, where, cache):
    views = {**PART, "apply": where}
    plain = drained(stepped(index, views))
    assert all(map(same, plain, drained(stepped(index, views, cache=cache), workers=2)))


@pytest.mark.parametrize("portion", [0.3, 1])
def test_pictures_on_the_device_give_the_same_views(index, portion):
    views = {**PAIRS, "grid": {**PART["grid"], "portion": portion}}
    data = stepped(index, views, cache="device")
    resident = loader.residents(data, torch.device("cpu"))
    for ours, theirs in zip(
        drained(data, resident=resident), drained(stepped(index, views)), strict=True
    ):
        assert ours.keys() == theirs.keys()
        for name, part in theirs.items():
            assert same({**ours[name], "crops": part["crops"]}, part)
            apart = (ours[name]["crops"].int() - part["crops"].int()).abs()
            assert apart.max() <= 2


def test_only_what_is_shown_is_cropped(index):
    (batch, *_) = drained(stepped(index))
    crops = {name: tuple(part["crops"].shape[:2]) for name, part in batch.items()}
    assert crops == {"32 outside": (2, 11), "16": (2, 16), "32 inside": (1, 5)}
    (batch, *_) = drained(stepped(index, PAIRS))
    crops |= {"16 outside": (2, 11), "16 inside for local": (1, 5)}
    del crops["16"]
    assert crops == {name: tuple(part["crops"].shape[:2]) for name, part in batch.items()}


def test_processes_and_micro_batches_make_the_step_of_one_process(index):
    """Five images for two processes of two micro-batches each: 1, 1, 1 and 2."""
    plan = augment.plan(PART)
    (whole,) = [plan.finish(batch) for batch in drained(stepped(index))[:1]]
    members = [stepped(index, batch=BATCH, ranks=2, rank=r, accumulate=2) for r in (0, 1)]
    parts = [plan.finish(member[2 + micro]) for member in members for micro in (0, 1)]
    assert sorted(len(part[-1].rows) for part in parts) == [1, 1, 1, 2]
    for i, view in enumerate(whole):
        images = torch.cat([part[i].image for part in parts])
        assert torch.equal(images, view.image)
        if view.rows is not None:
            rows = [part[i].rows + 4 * place for place, part in enumerate(parts)]
            assert torch.equal(torch.cat(rows), view.rows)


# --- Features of the whole batch -------------------------------------------------------------


class Reader(nn.Module):
    """A term that keeps the step and reads maps of the portion only."""

    target, split, actions, layers, needs, portion = False, False, (), (1,), None, True

    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        self.step = step
        (part,) = step.portions.values()
        return {"reader": sum(features.maps[1].sum() for features in part.online)}


def ran(views, **changes):
    torch.manual_seed(0)
    model = learner.build(recipe(**changes))
    model.terms["reader"], model.weights["reader"] = Reader(), 0.1
    target = model.target_features(ema.copy(model.encoder), views)
    loss, _, step = model(views, target, 0.0, 0.0)
    return model, loss, step


@pytest.fixture(scope="module")
def views(index):
    return augment.plan(PART).finish(drained(stepped(index))[0])


def test_pooled_features_are_those_of_each_sample_by_itself(views):
    model, _, step = ran(views)
    assert [view.group for view in step.views] == ["global"] * 2 + ["local"] * 2
    for i, (online, target) in enumerate(zip(step.online[:2], step.target, strict=True)):
        for view in (views[i], views[4 + i]):
            alone = model.encoder(view.image).pooled
            torch.testing.assert_close(online.pooled[view.rows], alone)
            torch.testing.assert_close(target.pooled[view.rows], alone)
        assert len(online.pooled) == BATCH


def test_maps_are_kept_of_the_portion_only_and_of_both_encoders(views):
    _, _, step = ran(views)
    part = step.portions["grid"]
    assert all(not features.maps for features in (*step.online, *step.target))
    for view, online, target in zip(part.views, part.online, part.target, strict=True):
        cells = tuple(side // 4 for side in view.image.shape[-2:])
        assert online.maps[1].shape == target.maps[1].shape == (5, 96, *cells)
        assert torch.equal(online.rows, view.rows)


@pytest.mark.parametrize("backbone", ["vit_mini", "resnet_mini"])
@pytest.mark.parametrize("kept", [0, 1])
def test_a_process_without_an_image_of_either_kind_has_gradients_all_the_same(
    index, backbone, kept
):
    plan, inside = augment.plan(PART), [bool(kept)] * 4
    pictures = [loader.StepBatches._picture(stepped(index), i) for i in range(4)]
    drawn = [plan.sample(p, str(i), 0, 0, inside[i]) for i, p in enumerate(pictures)]
    model, loss, step = ran(plan.finish(augment.collate(drawn)), backbone={"name": backbone})
    loss.backward()
    assert len(step.portions["grid"].online[0].pooled) == 4 * kept
    assert all(len(features.pooled) == 4 for features in step.online)
    assert all(p.grad.isfinite().all() for p in model.encoder.parameters())
    assert all(b.isfinite().all() for b in model.encoder.buffers())


def test_the_whole_batch_can_be_the_portion(index):
    whole = {**PART, "grid": {"portion": 1, "patch": 4}}
    made = augment.plan(whole).finish(drained(stepped(index, whole))[0])
    _, _, step = ran(made)
    assert [view.group for view in step.views] == ["global"] * 2 + ["local"] * 2
    torch.testing.assert_close(step.online[0].pooled, step.portions["grid"].online[0].pooled)


def test_simsiam_sees_the_statistics_of_each_view_and_each_kind_by_itself(views):
    encoder = learner.build(recipe(backbone={"name": "resnet_mini"})).encoder.train()
    found = learner.encode(encoder, views, apart=True)
    for view, features in zip(views, found, strict=True):
        torch.testing.assert_close(features.pooled, encoder(view.image).pooled)


# --- What stands around ----------------------------------------------------------------------


def test_the_plan_says_what_a_portion_costs():
    settings = recipe()
    model, plan = learner.build(settings), augment.plan(settings["views"])
    fixed, each = estimate.activations(model, settings["views"])
    kept = estimate.saved_bytes(model, settings["views"], 20, 6)
    assert fixed + 20 * each == pytest.approx(kept, rel=1e-3)
    line = estimate._views(plan)
    assert "4 an image: 2 global of 32 px + 2 local of 16 px" in line
    assert line.endswith("; 2 grid of ~32 px for 30 % of the batch")


def test_a_sheet_shows_both_kinds_of_every_picture(index):
    made = report_views.rows({"views": PAIRS}, index, count=2)
    titles = [title for title, _, _ in made[0][2]]
    assert titles[:4] == ["global 32 px"] * 2 + ["local 16 px"] * 2
    kinds = [title.partition(" ")[0] for title in titles[4:]]
    assert kinds == ["grid"] * 2 + ["grid_local"] * 2
    assert "grid" in made[1][2][-1][2]
    assert np.isfinite(made[1][2][-1][1]).all()


def test_a_killed_run_and_two_processes_end_where_an_unbroken_one_does(folder, tmp_path):
    words = [folder / "shards" / "manifest.yaml", folder / "part.yaml", "dino", "vit-mini"]
    words += ["batch_size=16", "objective.out_dim=64", "steps=7", "device=cpu", "workers=0"]
    words += ["checkpoint_every=3"]

    def pretrain(name, *more, prepare=None, expected=0):
        found = forked.run("pretrain", *words, *more, "-o", name, cwd=tmp_path, prepare=prepare)
        assert found.returncode == expected, found.stderr
        return found

    def tensors(name):
        return load_file(tmp_path / name / "model.safetensors")

    pretrain("whole")
    pretrain("broken", prepare=(forked.crash, 5), expected=9)
    assert "resumed at step 3" in pretrain("broken").stderr
    assert all(torch.equal(a, tensors("broken")[k]) for k, a in tensors("whole").items())
    forked.together("pretrain", *words, "-o", "two", cwd=tmp_path)
    for key, value in tensors("whole").items():
        torch.testing.assert_close(tensors("two")[key], value, atol=1e-5, rtol=1e-4)
