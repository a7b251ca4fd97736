"""Fine-tuning is what a naive loop computes, follows from its seed, and uses every picture."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from equitools import backbones
from equitools.core.errors import NumericalError, UsageError
from equitools.evals.classifiers import finetuning

PAPER, MODERN = finetuning.RECIPES["paper"], finetuning.RECIPES["modern"]
COUNT, CLASSES = 11, 3


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return backbones.create({"name": "vit_mini", "split": 0.8, "args": {"depth": 2}})


def network(encoder, seed=0):
    return finetuning.Classifier(copy.deepcopy(encoder), "cls2", torch.arange(192), CLASSES, seed)


def pictures(count=COUNT):
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % CLASSES
    image = 0.3 * torch.randn(count, 3, 16, 16, generator=draw)
    image[torch.arange(count), labels] += 1.0
    return image, labels


def batches(size=4):
    image, labels = pictures()
    return list(zip(image.split(size), labels.split(size), strict=True))


def fit(net, recipe, seen=None, size=4, resume=None, train=None):
    return finetuning.fit(
        net,
        train or (lambda epoch: iter(batches(size))),
        lambda: iter(batches(5)),
        recipe,
        steps=finetuning.steps_of(COUNT, size),
        batch_size=size,
        seed=3,
        progress=None if seen is None else seen.append,
        resume=resume,
    )


def test_the_papers_recipe_is_plain_sgd_on_everything(encoder):
    recipe = replace(PAPER, epochs=3, lr=1.0)
    ours, theirs = network(encoder), network(encoder)
    fit(ours, recipe)
    theirs.train()
    parameters = list(theirs.parameters())
    speed = [torch.zeros_like(p) for p in parameters]
    for epoch in range(3):
        rate = 1.0 * 4 / 256 * 0.5 * (1 + np.cos(np.pi * epoch / 3))
        for image, labels in batches():
            loss = F.cross_entropy(theirs(image), labels)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            with torch.no_grad():
                for p, v, g in zip(parameters, speed, gradients, strict=True):
                    if g is not None:
                        v.mul_(0.9).add_(g + 1e-4 * p)
                        p.sub_(rate * v)
    for mine, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)


def test_all_of_the_network_moves_and_no_picture_is_left_out(encoder):
    net, seen = network(encoder), []
    before = {name: value.clone() for name, value in net.named_parameters()}
    fit(net, replace(PAPER, epochs=2, lr=1.0), seen)
    assert seen == [4, 4, 3] * 2
    assert all(not torch.equal(value, before[name]) for name, value in net.named_parameters())


@pytest.mark.parametrize("recipe", [PAPER, MODERN])
def test_the_result_follows_from_the_seed_and_disturbs_nothing(encoder, recipe):
    recipe = replace(recipe, epochs=2, lr=0.01)
    state, other = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    nets = [network(encoder) for _ in range(2)]
    scores = [fit(net, recipe) for net in nets]
    assert scores[0] == scores[1]
    for one, two in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (np.random.get_state()[1] == other).all()
    assert not torch.equal(nets[0].head.weight, network(encoder, seed=1).head.weight)


@pytest.mark.parametrize("recipe", [PAPER, MODERN])
def test_a_killed_run_goes_on_and_ends_in_the_same_bits(encoder, recipe, tmp_path, monkeypatch):
    recipe = replace(recipe, epochs=4, lr=0.05, drop_path=0.0)
    resume = finetuning.ResumePoint(tmp_path / "resume.safetensors", "this run")
    whole, killed, again = (network(encoder) for _ in range(3))
    expected = fit(whole, recipe)

    def dies_in_the_third(epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return iter(batches())

    monkeypatch.setattr(finetuning, "KEEP_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, recipe, resume=resume, train=dies_in_the_third)
    seen = []
    assert fit(again, recipe, seen, resume=resume) == expected
    assert seen == [22, *[4, 4, 3] * 2]
    for mine, wanted in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, wanted)
    done = fit(network(encoder), recipe, resume=resume, train=lambda epoch: pytest.fail("trained"))
    assert done == expected


def test_the_state_of_another_run_is_not_taken(encoder, tmp_path):
    recipe, path = replace(PAPER, epochs=1, lr=0.05), tmp_path / "resume.safetensors"
    fit(network(encoder), recipe, resume=finetuning.ResumePoint(path, "another"))
    seen = []
    fit(network(encoder), recipe, seen, resume=finetuning.ResumePoint(path, "this run"))
    assert seen == [4, 4, 3]


def test_it_learns_and_states_the_last_and_the_best_epoch(encoder):
    scores = fit(network(encoder), replace(PAPER, epochs=12, lr=2.0))
    assert scores["best/top1"] >= scores["top1"] > 60
    assert set(scores) == {"top1", "macro", "best/top1", "best/macro"}


def test_rates_fall_by_layer_and_biases_norms_and_positions_do_not_decay(encoder):
    optimizer = finetuning._optimizer(network(encoder), MODERN, 64)
    base = 5e-4 * 64 / 512
    rates = sorted({group["base"] / base for group in optimizer.param_groups}, reverse=True)
    assert rates == pytest.approx([1, 0.75**1, 0.75**2, 0.75**3][: len(rates)])
    assert len(rates) >= 3
    for group in optimizer.param_groups:
        shapes = [p.shape for p in group["params"]]
        assert (group["weight_decay"] == 0) == all(len(s) == 1 or s[0] == 1 for s in shapes), (
            "1-D parameters, class token and positions"
        )


@pytest.mark.parametrize("name", ["resnet_mini", "vmamba_mini"])
def test_other_networks_have_layers_too(name):
    net = finetuning.Classifier(backbones.create({"name": name}), "last", torch.arange(9), 2, 0)
    rates = {group["base"] for group in finetuning._optimizer(net, MODERN, 64).param_groups}
    assert len(rates) >= 4


def test_mixing_keeps_the_odd_picture_and_every_target_sums_to_one(encoder):
    image, labels = pictures(5)
    np.random.seed(0)
    mixed, targets = finetuning.mixed(image, labels, CLASSES, MODERN)
    assert torch.equal(mixed[4], image[4])
    assert not torch.equal(mixed[:4], image[:4])
    torch.testing.assert_close(targets.sum(1), torch.ones(5))
    assert targets[4].argmax() == labels[4]
    plain, hard = finetuning.mixed(image, labels, CLASSES, PAPER)
    assert torch.equal(plain, image)
    assert torch.equal(hard, F.one_hot(labels, CLASSES).float())


def test_a_loss_that_is_not_finite_stops_the_run(encoder):
    with pytest.raises(NumericalError, match="epoch 1; give a smaller lr"):
        fit(network(encoder), replace(PAPER, epochs=2, lr=1e30))


def test_recipes_that_cannot_be_are_refused():
    for changes in ({"epochs": 0}, {"lr": 0.0}, {"layer_decay": 0.0}):
        with pytest.raises(UsageError):
            replace(PAPER, **changes)
