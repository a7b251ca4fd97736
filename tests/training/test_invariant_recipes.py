"""The layers of the invariant objectives say what the papers do, and train on small backbones."""

import itertools

import forked
import pytest
import torch
from safetensors.torch import load_file

from equitools import manifest
from equitools.core.records import View
from equitools.training import learner, optimization, recipe

FOLDERS = ("objective", "equivariance", "backbone", "schedule")
INVARIANT = ["simclr", "byol", "mocov2", "mocov3", "barlow", "debiased"]
LAYERS = [*INVARIANT, "mocov3-resnet"]


def fold(*words):
    whole: dict = {}
    for word in words:
        whole = manifest.fold(whole, manifest.layer(word, FOLDERS)["recipe"])
    return recipe.apply_defaults(whole)


# lr, per 256 images; weight decay; batch; optimizer; crop; temperature or None; out_dim
PAPERS = {
    "simclr": (0.3, 1e-6, 4096, "lars", 0.08, 0.1, 128),
    "byol": (0.45, 1e-6, 4096, "lars", 0.08, None, 256),
    "mocov2": (0.03, 1e-4, 256, "sgd", 0.2, 0.2, 128),
    "mocov3": (1.5e-4, 0.1, 4096, "adamw", 0.08, 0.2, 256),
    "mocov3-resnet": (0.6, 1e-6, 4096, "lars", 0.2, 1.0, 256),
    "barlow": (0.2, 1e-6, 2048, "lars", 0.08, None, 8192),
    "debiased": (1e-3, 1e-6, 256, "adamw", 0.08, 0.5, 128),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_numbers_of_its_paper(name):
    full = recipe.resolve(fold(name, "resnet50"))
    found = full["optimizer"]
    assert (
        found["lr"],
        found["weight_decay"],
        full["batch_size"],
        found["name"],
        full["views"]["global"]["crop"][0],
        full["objective"].get("temperature"),
        full["objective"]["out_dim"],
    ) == PAPERS[name]
    assert full["views"]["global"]["count"] == 2
    assert full["views"]["global"]["size"] == 224
    assert "local" not in full["views"]


def test_the_asymmetric_pictures_of_byol_are_those_of_barlow_and_mocov3():
    """Blur of one view always and of the other rarely; solarized is only the other."""
    for name in ("byol", "barlow", "mocov3"):
        views = recipe.resolve(fold(name, "resnet50"))["views"]["global"]
        assert (views["blur"], views["solarize"]) == ([1.0, 0.1], [0.0, 0.2])
        assert views["jitter"] == {
            "p": 0.8,
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.2,
            "hue": 0.1,
        }


@pytest.mark.parametrize("mini", ["vit-mini", "resnet-mini"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_order_of_layers_does_not_matter(mini, name):
    orders = [fold(*words) for words in itertools.permutations([name, mini])]
    assert orders[0] == orders[1]
    assert orders[0]["batch_size"] == 64


@pytest.mark.parametrize("mini", ["vit-mini", "resnet-mini"])
@pytest.mark.parametrize("words", [*[[name] for name in LAYERS], ["byol", "ddcl"]])
def test_a_few_steps_on_one_batch_lower_the_loss(mini, words):
    settings = recipe.resolve(fold(*words, mini))
    torch.manual_seed(0)
    model = learner.build(settings)
    network = model.encoder if model.needs_target else None
    views = [View(torch.randn(8, 3, 32, 32), {}, torch.eye(3)) for _ in range(2)]
    optimizer = optimization.make_optimizer(settings, model)
    losses = []
    for _ in range(5):
        target = None if network is None else model.target_features(network, views)
        optimizer.zero_grad()
        loss, _, _ = model(views, target, 0.0, 0.0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    words = ["scenes", "train_samples=64", "val_samples=8", "size=32"]
    done = forked.run("shard", *words, "-o", out)
    assert done.returncode == 0, done.stderr
    return (out / "manifest.yaml").absolute()


def pretrain(*words, cwd, **more):
    return forked.run("pretrain", *words, cwd=cwd, **more)


def test_a_killed_run_with_a_queue_ends_with_the_tensors_of_an_unbroken_one(shards, tmp_path):
    """The queue of 48 keys has come round when the run is killed, in the middle of an epoch."""
    words = [shards, "mocov2", "resnet-mini", "batch_size=16", "objective.queue_size=48"]
    words += ["steps=6", "checkpoint_every=3", "log_every=1", "knn_every=0", "workers=0"]
    whole = pretrain(*words, "-o", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = pretrain(*words, "-o", "broken", cwd=tmp_path, prepare=(forked.crash, 4))
    assert killed.returncode == 9
    again = pretrain(*words, "-o", "broken", cwd=tmp_path)
    assert "resumed at step 3" in again.stderr
    for file in ("model.safetensors", "heads.safetensors"):
        one, other = (load_file(tmp_path / run / file) for run in ("whole", "broken"))
        assert one.keys() == other.keys()
        assert [name for name in one if not one[name].equal(other[name])] == []
    heads = load_file(tmp_path / "whole" / "heads.safetensors")
    assert heads["objective.queue"].shape == (48, 64)
    assert int(heads["objective.place"]) == 6 * 16 % 48


def test_two_processes_train_as_one_does_with_batch_norm_and_a_queue(shards, tmp_path):
    words = [
        shards,
        "mocov2",
        "resnet-mini",
        "objective.queue_size=48",
        "batch_size=16",
        "steps=3",
        "log_every=1",
        "device=cpu",
    ]
    words += ["knn_every=0", "workers=0", "precision=fp32", "schedule.warmup_epochs=0"]
    done = pretrain(*words, "-o", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    forked.together("pretrain", *words, "-o", "2", cwd=tmp_path)
    for file in ("model.safetensors", "heads.safetensors"):
        one, two = (load_file(tmp_path / str(n) / file) for n in (1, 2))
        for key, value in one.items():
            apart = (two[key].double() - value.double()).norm()
            assert apart <= 1e-3 * value.double().norm() + 1e-6, key


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["simclr", "vit-mini", "views.local.count=4"], "takes no others"),
        (["mocov2", "vit-mini", "batch_size=48"], "queue_size=1008"),
        (["barlow", "ddcl", "resnet-mini"], "a projector and a predictor"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_read(tmp_path, words, says):
    found = pretrain(*words, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert says in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_the_menu_shows_the_whole_matrix(tmp_path):
    found = pretrain("--list", cwd=tmp_path)
    assert found.returncode == 0
    after = found.stdout.split("objectives × equivariance")[1]
    for name in [*INVARIANT, "dino", "simsiam", "clever", "ddcl", "ser", "vit_mini", "resnet_mini"]:
        assert f"  {name} " in after
