"""MoCo v2's queue and MoCo v3's keys are what the papers say they are."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toy_steps import BATCH, SPLIT, small, toy_step

from equitools import backbones, manifest
from equitools.core import distributed
from equitools.core.errors import UsageError
from equitools.core.records import View
from equitools.nn import ema
from equitools.nn.losses.info_nce import info_nce
from equitools.objectives import mocov2, mocov3
from equitools.training import learner
from equitools.training import recipe as training_recipe


def queries_and_keys(objective, step):
    q = F.normalize(objective.projector(step.online[0].invariant), dim=-1)
    k = F.normalize(objective.target_projector(step.target[1].invariant), dim=-1)
    return q, k


def test_mocov2_is_the_cross_entropy_of_one_key_against_the_queue():
    objective = small("mocov2")
    step = toy_step(objective, local=0)
    q, k = queries_and_keys(objective, step)
    losses = []
    for i in range(BATCH):
        logits = torch.stack([q[i] @ k[i], *(q[i] @ other for other in objective.queue)]) / 0.2
        losses.append(-torch.log_softmax(logits, 0)[0])
    torch.testing.assert_close(objective(step)["mocov2"], torch.stack(losses).mean())


def test_a_queue_of_equal_keys_costs_the_logarithm_of_its_length():
    objective = small("mocov2")
    step = toy_step(objective, local=0)
    _, k = queries_and_keys(objective, step)
    objective.projector = objective.target_projector = nn.Identity()
    for record in (step.online[0], step.target[1]):
        record.pooled, record.split = torch.ones(BATCH, k.shape[1]), None
    objective.queue.fill_(1 / math.sqrt(k.shape[1]))
    expected = math.log(1 + len(objective.queue))
    assert float(objective(step)["mocov2"]) == pytest.approx(expected, rel=1e-5)


def test_the_queue_holds_earlier_keys_oldest_overwritten_first():
    objective = small("mocov2", queue_size=3 * BATCH)
    keys = []
    for seed in range(5):
        step = toy_step(objective, local=0, seed=seed)
        keys.append(queries_and_keys(objective, step)[1].detach())
        before = objective.queue.clone()
        objective(step)
        assert torch.equal(objective.queue, before), "the loss sees the keys of the steps before"
        objective.after(step)
    torch.testing.assert_close(objective.queue, torch.cat([keys[3], keys[4], keys[2]]))
    assert int(objective.place) == 2 * BATCH


def test_accumulated_passes_fill_the_queue_like_one_batch():
    whole, halves = small("mocov2"), small("mocov2")
    halves.load_state_dict(whole.state_dict())
    step = toy_step(whole, local=0)
    whole(step)
    for half in (slice(0, 3), slice(3, 6)):
        part = toy_step(halves, local=0)
        for record in [*part.online, *part.target]:
            record.pooled = record.pooled[half]
        halves(part)
    whole.after(step)
    halves.after(step)
    torch.testing.assert_close(whole.queue, halves.queue)
    assert int(whole.place) == int(halves.place) == BATCH


def test_evaluation_and_the_watch_leave_the_queue_alone():
    objective = small("mocov2").eval()
    step, before = toy_step(objective, local=0), objective.queue.clone()
    objective(step)
    objective.diagnostics(step)
    objective.after(step)
    assert torch.equal(objective.queue, before)


def test_no_gradient_reaches_keys_or_queue():
    objective = small("mocov2")
    step = toy_step(objective, local=0)
    step.target[1].pooled.requires_grad_()
    objective(step)["mocov2"].backward()
    assert step.target[1].pooled.grad is None
    assert step.online[1].pooled.grad is None, "one direction: the second view asks nothing"
    assert not objective.queue.requires_grad
    assert all(p.grad is None for p in objective.target_projector.parameters())


def test_mocov2_keeps_its_momentum_and_its_head_has_no_batch_norm():
    objective = mocov2(SPLIT, queue_size=8)
    assert objective.momentum(0.0) == objective.momentum(1.0) == 0.999
    assert [type(m).__name__ for m in objective.projector] == ["Linear", "ReLU", "Linear"]
    assert objective.projector[0].out_features == SPLIT


@pytest.mark.parametrize(("batch", "says"), [(4, "queue_size=16"), (32, "queue_size=32")])
def test_a_queue_that_the_batch_does_not_divide_is_refused_with_one_that_it_does(batch, says):
    with pytest.raises(UsageError, match=says):
        small("mocov2", queue_size=18).check_batch(batch)
    small("mocov2", queue_size=18).check_batch(6)


def moco_recipe(**changes):
    recipe = {
        "backbone": {"name": "resnet_mini"},
        "objective": {"name": "mocov2", "queue_size": 32, "out_dim": 8},
        "views": {"global": {"size": 32}},
        "batch_size": 16,
    }
    return training_recipe.resolve(recipe | changes)


def test_mocov2_alone_encodes_one_view_with_each_network():
    """With the weights that both networks have, it is what two views a network give."""
    torch.manual_seed(0)
    model = learner.build(moco_recipe())
    views = [View(torch.randn(4, 3, 32, 32), {}, torch.eye(3)) for _ in range(2)]
    network = ema.copy(model.encoder)
    target = model.target_features(network, views)
    loss, _, step = model(views, target, 0.0, 0.0)
    assert len(step.online) == len(target) == 1
    step.online = [model.encoder(view.image) for view in views]
    step.target = [network(view.image) for view in views]
    torch.testing.assert_close(model.objective(step)["mocov2"], loss)


def naive_mocov3(objective, step):
    """2 τ times cross-entropies of queries with the keys of the other view, pair by pair."""
    tau = objective.temperature
    found = []
    for v, features in enumerate(step.online):
        q = F.normalize(objective.predictor(objective.projector(features.invariant)), dim=-1)
        for i, network in enumerate(step.target):
            if v != i:
                k = F.normalize(objective.target_projector(network.invariant), dim=-1)
                found.append(2 * tau * F.cross_entropy(q @ k.T / tau, torch.arange(len(q))))
    return found


def test_mocov3_of_two_views_is_the_sum_of_both_directions():
    objective = small("mocov3")
    step = toy_step(objective, local=0)
    first, second = naive_mocov3(objective, step)
    torch.testing.assert_close(objective(step)["mocov3"], first + second)


def test_mocov3_asks_local_crops_for_the_global_keys_and_averages():
    objective = small("mocov3")
    step = toy_step(objective, local=2)
    found = naive_mocov3(objective, step)
    assert len(found) == 2 + 2 * 2
    torch.testing.assert_close(objective(step)["mocov3"], 2 * torch.stack(found).mean())


def test_a_query_finds_its_key_behind_those_of_the_ranks_before(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 2)
    keys = F.normalize(torch.randn(12, 5), dim=-1)
    expected = -torch.log_softmax(keys[8:] @ keys.T / 0.1, dim=1)[range(4), range(8, 12)].mean()
    torch.testing.assert_close(info_nce(keys[8:], keys, 0.1), expected)


def test_equal_keys_cost_four_tau_ln_n():
    objective = small("mocov3", temperature=0.5)
    step = toy_step(objective, local=0)
    objective.projector = objective.target_projector = objective.predictor = nn.Identity()
    for record in [*step.online, *step.target]:
        record.pooled, record.split = torch.ones(BATCH, 4), None
    found = float(objective(step)["mocov3"])
    assert found == pytest.approx(4 * 0.5 * math.log(BATCH), rel=1e-5)


def trained(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_mocov3_on_vit_s_trains_as_many_parameters_as_ser_reports():
    """42.9 M: the encoder without its patch embedding, the projector and the predictor."""
    with torch.device("meta"):
        encoder = backbones.create({"name": "vit_small_patch16_224", "freeze_patch_embed": True})
        objective = mocov3(384)
    assert trained(objective.projector) == 19_415_040
    assert trained(objective.predictor) == 2_105_344
    assert trained(encoder) == 21_665_664 - 295_296
    assert (trained(encoder) + trained(objective)) / 1e6 == pytest.approx(42.9, abs=0.05)


def test_fixed_positions_tell_every_patch_apart_and_are_not_trained():
    """Of the dot products of a patch with all others only its own is the largest: d / 2."""
    encoder = backbones.create({"name": "vit_mini", "positions": "sincos"})
    found = encoder.trunk.pos_embed[0]
    assert not encoder.trunk.pos_embed.requires_grad
    assert not found[0].any(), "the class token has none"
    products = found[1:] @ found[1:].T
    torch.testing.assert_close(products.diagonal(), torch.full((64,), 48.0))
    assert torch.equal(products.argmax(1), torch.arange(64))
    # Moving by a patch to the right is the same everywhere: it depends on the distance alone.
    shifted = [products[8 * row + x, 8 * row + x + 1] for row in range(8) for x in range(7)]
    torch.testing.assert_close(torch.stack(shifted), shifted[0].expand(56))
    with pytest.raises(UsageError, match="no positions"):
        backbones.create({"name": "resnet_mini", "positions": "sincos"})


def test_a_resnet_has_no_patch_embedding_to_freeze():
    recipe = manifest.layer("mocov3", ["objective"])["recipe"]
    assert recipe["backbone"] == {"freeze_patch_embed": True}
    encoder = backbones.create({"name": "resnet_mini", "freeze_patch_embed": True})
    assert all(p.requires_grad for p in encoder.parameters())


def test_resnets_have_the_shorter_heads_of_the_paper():
    objective = mocov3(2048, hidden_dim=32, out_dim=8, nlayers=2, predictor_norm=False)
    kinds = [[type(m).__name__ for m in head] for head in objective.heads()]
    assert kinds[0] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert kinds[1] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
