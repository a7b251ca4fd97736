"""CLeVER and DDCL compute what their papers and released code define; L_PReg balances heads."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toy_steps import SPLIT, small, toy_step

from equitools.core.errors import UsageError
from equitools.equivariance import clever, ddcl
from equitools.nn.heads import DINOHead
from equitools.nn.losses.parameter_balance import balance

EF = 4


def pair(name="clever", **knobs):
    """A small objective, the term that goes with it, and a step that has its views."""
    objective = small("dino" if name == "clever" else "simsiam")
    if name == "clever":
        return objective, clever(EF, objective, **{"out_dim": 48, **knobs})
    return objective, ddcl(EF, objective, **knobs)


def naive_overlap(term, step, similarity=F.cosine_similarity):
    student, teacher = step.objective.temperatures(step)
    targets = [
        F.softmax((term.target_head(f.equivariant) - term.center.value) / teacher, dim=-1)
        for f in step.target
    ]
    found = [
        similarity(target, F.softmax(term.head(f.equivariant) / student, dim=-1), dim=-1)
        for i, target in enumerate(targets)
        for v, f in enumerate(step.online)
        if v != i
    ]
    return torch.stack([one.mean().abs() for one in found])


def test_l_orth_is_the_mean_cosine_of_eighteen_pairs_of_assignments():
    objective, term = pair()
    step = toy_step(objective, local=8)
    naive = naive_overlap(term, step)
    assert len(naive) == 18
    torch.testing.assert_close(term(step)["clever/orth"], naive.mean())


def test_the_printed_l_orth_is_an_inner_product():
    objective, term = pair(orthogonality="dot")
    step = toy_step(objective)
    naive = naive_overlap(term, step, lambda a, b, dim: (a * b).sum(dim))
    torch.testing.assert_close(term(step)["clever/orth"], naive.mean())


@pytest.mark.parametrize("same", [True, False])
def test_cosine_of_gaussian_logits_has_a_closed_form(same):
    """exp(-(σ_t - σ_s)² / 2) for equal inputs, exp(-(σ_t² + σ_s²) / 2) for unrelated ones."""
    torch.manual_seed(0)
    x = torch.randn(1, 1 << 20, dtype=torch.float64)
    y = x if same else torch.randn_like(x)
    sharp, online = 1.5625, 0.625
    found = F.cosine_similarity((sharp * x).softmax(-1), (online * y).softmax(-1)).item()
    apart = (sharp - online) ** 2 if same else sharp**2 + online**2
    assert found == pytest.approx(math.exp(-apart / 2), rel=0.03)


def test_initial_values_lie_where_the_published_heads_put_them():
    """K = 65536: L_Orth in (.25, .68); the printed inner product would be below 1e-4."""
    torch.manual_seed(0)
    objective = small("dino")
    objective.knobs.update(hidden_dim=512, bottleneck_dim=256)
    term = clever(EF, objective)
    with torch.no_grad():
        apart = toy_step(objective, local=1, batch=16)
        assert 0.2 < float(term.overlap(apart)) < 0.68
        for record in [*apart.online, *apart.target]:
            record.pooled = apart.online[0].pooled
        assert 0.6 < float(term.overlap(apart)) < 0.7
        term.orthogonality = "dot"
        assert float(term.overlap(apart)) < 1e-4


def test_orthogonal_assignments_cost_nothing_and_equal_ones_cost_one():
    """Slow and online heads that are sure: of the same prototype, or of different ones."""
    objective, term = pair()
    objective.student_temp = 1e-3
    objective.teacher_temps = (1e-3, 1e-3)
    step = toy_step(objective, local=0)
    for record in [*step.online, *step.target]:
        record.pooled = step.online[0].pooled
    with torch.no_grad():
        assert float(term.overlap(step)) == pytest.approx(1.0, abs=1e-4)
        term.target_head.last_layer.weight_v.neg_()
        assert float(term.overlap(step)) == pytest.approx(0.0, abs=1e-4)


def test_l_orth_has_the_gradient_of_the_naive_loop():
    objective, term = pair()
    step = toy_step(objective)
    leaves = [*term.head.parameters(), *[f.pooled for f in step.online]]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    ours = torch.autograd.grad(term(step)["clever/orth"], leaves)
    theirs = torch.autograd.grad(naive_overlap(term, step).mean(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 2e-6 * other.norm()


def test_the_gradient_reaches_the_online_ef_head_and_the_ef_part_only():
    objective, term = pair(regularization=0.0)
    step = toy_step(objective)
    step.target[0].pooled.requires_grad_()
    term(step)["clever/orth"].backward()
    assert all(p.grad is None for p in objective.parameters())
    assert all(p.grad is None for p in term.target_head.parameters())
    assert term.head.last_layer.weight_g.grad is None
    assert term.head.last_layer.weight_v.grad.abs().sum() > 0
    assert step.target[0].pooled.grad is None
    for features in step.online:
        assert features.pooled.grad[:, SPLIT:].abs().sum() > 0
        assert not features.pooled.grad[:, :SPLIT].any()


def test_clever_keeps_a_center_and_a_target_head_of_its_own():
    objective, term = pair()
    step = toy_step(objective)
    logits = torch.cat([term.target_head(f.equivariant) for f in step.target])
    before = term.target_head.mlp[0].weight.clone()
    term(step)
    with torch.no_grad():
        term.head.mlp[0].weight.add_(1.0)
    term.after(step)
    torch.testing.assert_close(term.center.value, 0.1 * logits.mean(0))
    expected = before + 1 - objective.momentum(step.done)
    torch.testing.assert_close(term.target_head.mlp[0].weight, expected)


def test_beta_and_regularization_weigh_the_two_parts():
    objective, term = pair(beta=3.0, regularization=0.5)
    step = toy_step(objective)
    found = term(step)
    torch.testing.assert_close(found["clever/orth"], 3 * naive_overlap(term, step).mean())
    gap = balance(objective.heads(), term.heads())
    torch.testing.assert_close(found["clever/preg"], 0.5 * gap)


def test_without_l_preg_there_is_no_such_part():
    for name in ("clever", "ddcl"):
        objective, term = pair(name, regularization=0.0)
        step = toy_step(objective, local=2 if name == "clever" else 0)
        assert list(term(step)) == [f"{name}/orth"]


def test_l_preg_is_the_difference_of_sums_of_squares():
    first, second = nn.Linear(3, 4), nn.Linear(5, 4)
    sizes = [
        torch.cat([p.flatten() for p in layer.parameters()]).square().sum()
        for layer in (first, second)
    ]
    torch.testing.assert_close(balance([first], [second]), (sizes[0] - sizes[1]).abs())
    root = (sizes[0].sqrt() - sizes[1].sqrt()).abs()
    torch.testing.assert_close(balance([first], [second], norm="root"), root)


def test_l_preg_of_equal_heads_is_zero():
    head = DINOHead(8, 16)
    assert not balance([head], [head]).item()


def test_l_preg_averages_over_pairs_of_heads():
    """DDCL balances projector and predictor separately: an excess cannot make up for a lack."""
    heads = [nn.Linear(4, 4) for _ in range(4)]
    apart = [balance([heads[i]], [heads[i + 2]]) for i in (0, 1)]
    torch.testing.assert_close(balance(heads[:2], heads[2:]), torch.stack(apart).mean())


def test_gains_are_left_out_when_output_widths_differ():
    """Frozen gains would add a constant K_IR - K_EF that no training can remove."""
    same = balance([DINOHead(8, 512)], [DINOHead(8, 512)]).item()
    apart = balance([DINOHead(8, 2048)], [DINOHead(8, 512)])
    directions = (2048 - 512) / 3  # Σv² is K/3 at the start
    assert same < 20
    assert apart.item() == pytest.approx(directions, abs=20)


def test_scale_free_directions_can_be_left_out():
    """L_PReg can be met by rescaling directions, which changes nothing; then this knob helps."""
    first, second = DINOHead(8, 512), DINOHead(8, 512)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        second.last_layer.weight_v.mul_(2)
    assert balance([first], [second]).item() > 100
    assert balance([first], [second], scale_free="drop").item() == 0


def test_l_preg_has_the_gradient_of_a_decay_with_a_sign():
    """±2λp: the larger head shrinks, the smaller one grows."""
    large, small_one = nn.Linear(4, 4), nn.Linear(4, 4)
    with torch.no_grad():
        large.weight.mul_(3)
    balance([large], [small_one]).backward()
    torch.testing.assert_close(large.weight.grad, 2 * large.weight.detach())
    torch.testing.assert_close(small_one.weight.grad, -2 * small_one.weight.detach())


def test_ddcl_takes_the_absolute_value_of_the_batch_mean():
    objective, term = pair("ddcl")
    step = toy_step(objective, local=0, with_target=False)
    z1, z2 = (term.projector(f.equivariant) for f in step.online)
    p1, p2 = term.predictor(z1), term.predictor(z2)
    cosines = 0.5 * (F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1))
    torch.testing.assert_close(term(step)["ddcl/orth"], cosines.mean().abs())
    term.per_sample = True
    torch.testing.assert_close(term(step)["ddcl/orth"], cosines.abs().mean())


def test_ddcl_heads_are_those_of_its_objective_for_another_width():
    objective, term = pair("ddcl")
    shapes = [[tuple(p.shape) for p in heads.parameters()] for heads in term.heads()]
    assert shapes[0][0] == (24, EF)
    assert shapes[1] == [tuple(p.shape) for p in objective.predictor.parameters()]
    assert len(term.constant_rate()) == len(list(term.predictor.parameters()))


@pytest.mark.parametrize(("term", "name"), [(clever, "simsiam"), (ddcl, "dino")])
def test_pairs_that_do_not_fit_are_refused_with_the_reason(term, name):
    with pytest.raises(UsageError, match=f"does not go with {name}: it "):
        term(EF, small(name))


@pytest.mark.parametrize(("term", "name"), [(clever, "dino"), (ddcl, "simsiam")])
def test_an_encoder_that_does_not_split_is_refused(term, name):
    with pytest.raises(UsageError, match="splits its output"):
        term(0, small(name))
