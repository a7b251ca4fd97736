"""Schedules have the values that their equations say; clipping and groups do what they name."""

import math

import pytest
import torch
from torch import nn

from equitools.core.errors import UsageError
from equitools.nn import optim, schedules, serialization


def test_the_rate_warms_up_linearly_and_ends_at_its_minimum():
    assert schedules.warmup_cosine(1.0, 0.1, 0.0, 0.2) == 0
    assert schedules.warmup_cosine(1.0, 0.1, 0.1, 0.2) == pytest.approx(0.5)
    assert schedules.warmup_cosine(1.0, 0.1, 0.2, 0.2) == pytest.approx(1.0)
    assert schedules.warmup_cosine(1.0, 0.1, 0.6, 0.2) == pytest.approx(0.55)  # half way down
    assert schedules.warmup_cosine(1.0, 0.1, 1.0, 0.2) == pytest.approx(0.1)


def test_without_a_warm_up_the_rate_starts_at_its_base():
    assert schedules.warmup_cosine(0.3, 0.0, 0.0, 0.0) == pytest.approx(0.3)


def test_biases_and_norms_are_not_decayed_and_constant_rates_stay():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    fixed = list(model[2].parameters())
    groups = optim.parameter_groups(model.named_parameters(), decay_bias=False, constant_rate=fixed)
    settings = optim.optimizer_settings(name="sgd", lr=0.1, weight_decay=0.5, min_lr=0.0)
    optimizer = optim.create(settings, groups)
    optim.set_rates(optimizer, settings, batch_size=512, done=1.0, warmup=0.0)
    seen = {
        id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]
    }
    assert seen[id(model[0].weight)] == (0.0, 0.5)
    assert seen[id(model[0].bias)] == (0.0, 0.0)
    assert seen[id(model[1].weight)] == (0.0, 0.0)
    assert seen[id(model[2].weight)] == (0.2, 0.5)


def test_decay_of_biases_is_a_knob():
    groups = optim.parameter_groups(nn.Linear(2, 2).named_parameters(), decay_bias=True)
    assert [group["decayed"] for group in groups] == [True]


def test_weight_decay_follows_half_a_cosine():
    settings = optim.optimizer_settings(weight_decay=0.04, weight_decay_end=0.4)
    optimizer = optim.create(
        settings, optim.parameter_groups(nn.Linear(2, 2).named_parameters(), decay_bias=False)
    )
    optim.set_rates(optimizer, settings, batch_size=256, done=0.25, warmup=0.0)
    expected = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi / 4))
    assert max(g["weight_decay"] for g in optimizer.param_groups) == pytest.approx(expected)


@pytest.mark.parametrize("per", ["tensor", "global"])
def test_clipping_bounds_the_norm_of_each_tensor_or_of_all(per):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(7))]
    raw = [torch.randn(5) * 10, torch.randn(7) * 0.01]
    for parameter, gradient in zip(parameters, raw, strict=True):
        parameter.grad = gradient.clone()
    optim.clip_gradients(parameters, 1.0, per)
    found = [parameter.grad for parameter in parameters]
    if per == "tensor":
        assert found[0].norm() == pytest.approx(1.0, rel=1e-4)
        torch.testing.assert_close(found[1], raw[1])
    else:
        assert torch.cat(found).norm() == pytest.approx(1.0, rel=1e-4)
        torch.testing.assert_close(found[1] / found[1].norm(), raw[1] / raw[1].norm())


def test_biases_and_norms_may_have_a_rate_of_their_own():
    """Barlow Twins: 0.2 for weights and 0.0048 for biases and norms, on one schedule."""
    settings = optim.optimizer_settings(
        name="lars", lr=0.2, bias_lr=0.0048, min_lr=0.0, weight_decay=1e-6
    )
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    groups = optim.parameter_groups(model.named_parameters(), decay_bias=False)
    optimizer = optim.create(settings, groups)
    for done in (0.05, 0.1, 0.7):
        optim.set_rates(optimizer, settings, batch_size=512, done=done, warmup=0.1)
        weights, biases = (group["lr"] for group in optimizer.param_groups)
        assert biases / weights == pytest.approx(0.0048 / 0.2)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 3]


@pytest.mark.parametrize("decay", [0.0, 1e-6])
def test_lars_adapts_weights_whatever_their_decay_and_never_biases(decay):
    """A step is lr · 0.001 · |w| / |g| along the gradient of a weight, and lr · g of a bias."""
    layer = nn.Linear(4, 3)
    settings = optim.optimizer_settings(name="lars", lr=0.5, weight_decay=decay, momentum=0.0)
    groups = optim.parameter_groups(layer.named_parameters(), decay_bias=False)
    optimizer = optim.create(settings, groups)
    optim.set_rates(optimizer, settings, batch_size=256, done=0.0, warmup=0.0)
    before = [p.detach().clone() for p in layer.parameters()]
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    steps = [b - p.detach() for b, p in zip(before, layer.parameters(), strict=True)]
    slopes = [p.grad for p in layer.parameters()]
    ratio = 0.001 * before[0].norm() / slopes[0].norm()
    torch.testing.assert_close(steps[0], 0.5 * ratio * slopes[0], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(steps[1], 0.5 * slopes[1])


def test_an_unknown_optimizer_is_refused_with_the_choices():
    with pytest.raises(UsageError, match="adamw, sgd, lars"):
        optim.optimizer_settings(name="adam")


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_one_kernel_updates_as_the_equation_says_in_any_memory_format(name):
    """PyTorch's fused kernels read memory, not strides; moments must lie as parameters do."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    start = parameter.detach().clone()
    settings = optim.optimizer_settings(name=name, lr=0.1, weight_decay=0.0, momentum=0.9)
    groups = optim.parameter_groups([("weight", parameter)], decay_bias=False)
    optimizer = optim.create(settings, groups)
    assert all(group["fused"] for group in optimizer.param_groups)
    gradient = torch.arange(108.0).view(4, 3, 3, 3)
    (parameter * gradient).sum().backward()
    optimizer.step()
    step = gradient / (gradient + 1e-8) if name == "adamw" else gradient
    torch.testing.assert_close(parameter.detach(), start - 0.1 * step)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_fused_optimizer_goes_on_as_if_it_had_never_stopped(name):
    settings = optim.optimizer_settings(name=name, lr=0.1)

    def fresh():
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        groups = optim.parameter_groups(model.named_parameters(), decay_bias=False)
        return model, optim.create(settings, groups)

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()

    (model, optimizer), (again, restored) = fresh(), fresh()
    for seed in range(3):
        step(model, optimizer, seed)
    again.load_state_dict(model.state_dict())
    serialization.load_optimizer(restored, serialization.optimizer_tensors(optimizer))
    for seed in (7, 8):
        step(model, optimizer, seed)
        step(again, restored, seed)
    assert torch.equal(model.weight, again.weight)
