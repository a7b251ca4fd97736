"""DINO and SimSiam compute what their papers define."""

import math

import pytest
import torch
from torch.nn import functional as F
from toy_steps import small, toy_step

from equitools.core.errors import UsageError
from equitools.nn import ema, schedules
from equitools.nn.losses.cosine import predicted_cosine
from equitools.nn.term import partners
from equitools.objectives import dino, simsiam


def naive_dino(objective, step):
    """Eighteen terms for 2+8 views, the long way."""
    student, teacher = objective.temperatures(step)
    targets = [
        F.softmax((objective.target_head(f.invariant) - objective.center.value) / teacher, dim=-1)
        for f in step.target
    ]
    terms = []
    for i, target in enumerate(targets):
        for v, features in enumerate(step.online):
            if v != i:
                logits = objective.head(features.invariant) / student
                terms.append(-(target * F.log_softmax(logits, dim=-1)).sum(-1).mean())
    return torch.stack(terms)


def test_dino_is_the_mean_of_eighteen_cross_entropies():
    objective = small("dino")
    step = toy_step(objective, local=8)
    objective.center.value.normal_(std=0.1)
    terms = naive_dino(objective, step)
    assert len(terms) == 18
    torch.testing.assert_close(objective(step)["dino"], terms.mean())


def test_dino_has_the_gradient_of_the_naive_loop():
    objective = small("dino")
    step = toy_step(objective)
    leaves = [*objective.head.parameters(), *[f.pooled for f in step.online]]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    ours = torch.autograd.grad(objective(step)["dino"], leaves)
    theirs = torch.autograd.grad(naive_dino(objective, step).mean(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_the_pairs_are_sixteen_crossed_with_locals_and_two_among_globals():
    met = partners(toy_step(local=8))
    assert met == [(1,), (0,), *[(0, 1)] * 8]
    assert sum(map(len, met)) == 18


def test_slow_views_are_one_for_every_global_view_and_some_must_meet():
    step = toy_step(local=1)
    step.target = step.target[:1]
    with pytest.raises(UsageError, match="1 target views for 2 global views"):
        partners(step)
    step = toy_step(local=0)
    step.views, step.target = step.views[:1], step.target[:1]
    with pytest.raises(UsageError, match=r"views\.global\.count"):
        partners(step)


def test_initial_cross_entropy_lies_where_the_published_heads_put_it():
    """K = 65536: between 10.3 (equal inputs) and 11.4 (unrelated ones); ln K = 11.09."""
    torch.manual_seed(0)
    objective = dino(SPLIT := 16)
    with torch.no_grad():
        assert 10.3 < float(objective(toy_step(objective, local=1, batch=4))["dino"]) < 11.4
        same = toy_step(objective, local=1, batch=4, split=SPLIT)
        for record in [*same.online, *same.target]:
            record.pooled = same.online[0].pooled
        assert 10.2 < float(objective(same)["dino"]) < 10.6


def test_the_center_is_a_running_mean_of_slow_logits():
    objective = small("dino")
    step = toy_step(objective)
    logits = torch.cat([objective.target_head(f.invariant) for f in step.target])
    objective(step)
    assert not objective.center.value.any(), "the loss sees the center of the step before"
    objective.after(step)
    torch.testing.assert_close(objective.center.value, 0.1 * logits.mean(0))


def test_accumulated_passes_move_the_center_like_one_batch():
    whole, halves = ema.Center(5, 0.9), ema.Center(5, 0.9)
    logits = torch.randn(8, 5)
    whole.observe(logits.mean(0))
    for half in logits.split(4):
        halves.observe(half.mean(0))
    whole.move()
    halves.move()
    torch.testing.assert_close(whole.value, halves.value)


def test_evaluation_leaves_the_center_alone():
    objective = small("dino").eval()
    step = toy_step(objective)
    objective(step)
    objective.diagnostics(step)
    objective.center.move()
    assert not objective.center.value.any()


def test_momentum_rises_to_one_along_half_a_cosine():
    objective = small("dino")
    assert objective.momentum(0.0) == pytest.approx(0.996)
    assert objective.momentum(0.5) == pytest.approx(0.998)
    assert objective.momentum(1.0) == 1.0


def test_the_target_head_follows_the_trained_one():
    objective = small("dino")
    start = [p.clone() for p in objective.target_head.parameters()]
    with torch.no_grad():
        for parameter in objective.head.parameters():
            parameter.add_(1.0)
    step = toy_step(objective, done=0.0)
    objective.after(step)
    for target, before in zip(objective.target_head.parameters(), start, strict=True):
        torch.testing.assert_close(target, before + 0.004)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(10, 0.055), ("50%", 0.055), (0, 0.07), (5, 0.07)]
)
def test_teacher_temperature_warms_up_within_a_duration(epochs, expected):
    objective = dino(
        4, out_dim=8, teacher_temp=0.07, warmup_teacher_temp=0.04, warmup_teacher_temp_epochs=epochs
    )
    assert objective.temperatures(toy_step(done=0.25, epoch=5.0))[1] == pytest.approx(expected)


@pytest.mark.parametrize("text", ["soon", "x%", "10"])
def test_a_duration_in_other_words_is_refused(text):
    with pytest.raises(UsageError, match="a duration is"):
        schedules.elapsed(text, toy_step())


def test_uniform_assignments_have_entropy_ln_k():
    objective = small("dino")
    step = toy_step(objective)
    for record in [*step.target]:
        record.pooled = torch.ones_like(record.pooled)
    objective.center.value.copy_(objective.target_head(step.target[0].invariant)[0])
    assert not objective.teacher(step).assignments().requires_grad
    found = objective.diagnostics(step)
    assert found["teacher_entropy"] == pytest.approx(math.log(48))
    assert found["uniform_entropy"] == pytest.approx(math.log(48))


def test_simsiam_is_the_symmetric_negative_cosine():
    objective = small("simsiam")
    step = toy_step(objective, local=0, with_target=False)
    z1, z2 = (objective.projector(f.invariant) for f in step.online)
    p1, p2 = objective.predictor(z1), objective.predictor(z2)
    expected = -0.5 * (F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean())
    torch.testing.assert_close(objective(step)["simsiam"], expected)


def test_simsiam_stops_the_gradient_on_the_projected_side():
    p = [torch.randn(4, 8, requires_grad=True) for _ in range(2)]
    z = [torch.randn(4, 8, requires_grad=True) for _ in range(2)]
    predicted_cosine(p, z).mean().backward()
    assert all(one.grad is not None for one in p)
    assert all(one.grad is None for one in z)


def test_simsiam_needs_two_views():
    objective = small("simsiam")
    step = toy_step(objective, local=0, with_target=False)
    step.online = step.online[:1]
    with pytest.raises(UsageError, match=r"views\.global\.count"):
        objective(step)


def test_the_predictor_keeps_a_constant_rate_unless_told_otherwise():
    objective = small("simsiam")
    assert {id(p) for p in objective.constant_rate()} == {
        id(p) for p in objective.predictor.parameters()
    }
    assert simsiam(16, dim=24, hidden=8, fix_pred_lr=False).constant_rate() == []


def test_a_copy_takes_no_gradient_drops_no_path_and_loads_the_same_state():
    from equitools import backbones

    online = backbones.create({"name": "vit_mini", "drop_path": 0.5}).train()
    target = ema.copy(online)
    assert not any(p.requires_grad for p in target.parameters())
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(target(x).pooled, target(x).pooled, rtol=0, atol=0)
    assert not torch.equal(online(x).pooled, online(x).pooled)
    target.load_state_dict(online.state_dict())


def test_the_copy_averages_parameters_and_not_buffers():
    online = torch.nn.BatchNorm1d(3)
    target = ema.copy(online)
    with torch.no_grad():
        online.weight.fill_(3.0)
        online.get_buffer("running_mean").fill_(7.0)
    ema.update(target, online, 0.75)
    assert torch.equal(target.weight, torch.full((3,), 1.5))
    assert not target.get_buffer("running_mean").any()
