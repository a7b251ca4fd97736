"""SimCLR, the debiased loss, Barlow Twins and BYOL compute what their papers define."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toy_steps import BATCH, SPLIT, small, toy_step

from equitools.core.errors import UsageError
from equitools.nn.heads import mlp
from equitools.nn.losses.info_nce import similarities
from equitools.objectives import barlow, byol, debiased, simclr
from equitools.objectives.barlow import off_diagonal


def embeddings(objective, step):
    """Unit embeddings of both views, the way the papers index them: 2N d, view 2 after view 1."""
    both = [features.invariant for features in step.online[:2]]
    apart = getattr(objective, "apart", False)
    z = [objective.projector(x) for x in both] if apart else [objective.projector(torch.cat(both))]
    return F.normalize(torch.cat(z), dim=-1)


def set_embeddings(objective, *views):
    """A step whose embeddings are these: the projector hands on what it gets."""
    objective.projector = nn.Identity()
    step = toy_step(objective, local=0, with_target=False, batch=len(views[0]))
    for record, view in zip(step.online, views, strict=True):
        record.pooled, record.split = view, None
    return step


def naive_simclr(z, temperature):
    """Equation 1 of SimCLR with its loops."""
    n = len(z) // 2
    losses = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = sum(torch.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i)
        losses.append(-torch.log(torch.exp(z[i] @ z[j] / temperature) / others))
    return torch.stack(losses).mean()


def naive_debiased(z, temperature, chance):
    """Equations 7 and 8 of the paper with their loops."""
    n = len(z) // 2
    negatives = 2 * n - 2
    losses = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        positive = torch.exp(z[i] @ z[j] / temperature)
        others = sum(torch.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k not in (i, j))
        corrected = (others - chance * negatives * positive) / (1 - chance)
        corrected = max(corrected, torch.tensor(negatives * math.exp(-1 / temperature)))
        losses.append(-torch.log(positive / (positive + corrected)))
    return torch.stack(losses).mean()


def test_simclr_is_the_double_loop_of_the_paper_and_has_its_gradient():
    objective = small("simclr", temperature=0.2)
    step = toy_step(objective, local=0, with_target=False)
    leaves = [p for p in objective.parameters() if p.requires_grad]
    leaves += [record.pooled for record in step.online]
    ours, theirs = objective(step)["simclr"], naive_simclr(embeddings(objective, step), 0.2)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_simclr_cannot_tell_equal_views_apart():
    step = set_embeddings(objective := small("simclr"), *[torch.ones(BATCH, 4)] * 2)
    assert float(objective(step)["simclr"]) == pytest.approx(math.log(2 * BATCH - 1), abs=1e-6)


def test_simclr_of_orthogonal_pairs_has_a_closed_form():
    step = set_embeddings(objective := small("simclr", temperature=0.5), torch.eye(5), torch.eye(5))
    found = float(objective(step)["simclr"])
    assert found == pytest.approx(math.log(1 + 8 * math.exp(-1 / 0.5)), rel=1e-6)


def test_simclr_normalizes_both_views_together():
    objective = small("simclr")
    step = toy_step(objective, local=0, with_target=False)
    norms = [m for m in objective.projector.modules() if isinstance(m, nn.BatchNorm1d)]
    objective(step)
    assert [int(norm.num_batches_tracked) for norm in norms] == [1, 1]
    assert not norms[1].bias.requires_grad
    assert norms[1].weight.requires_grad


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.6])
def test_the_debiased_loss_is_the_loop_of_the_paper(chance):
    objective = small("debiased", tau_plus=chance)
    step = toy_step(objective, local=0, with_target=False)
    expected = naive_debiased(embeddings(objective, step), 0.5, chance)
    torch.testing.assert_close(objective(step)["debiased"], expected)


def test_the_debiased_loss_without_correction_is_simclr():
    z = torch.randn(BATCH, 7), torch.randn(BATCH, 7)
    plain, corrected = small("simclr", temperature=0.3), small("debiased", temperature=0.3)
    corrected.tau_plus = 0.0
    found = corrected(set_embeddings(corrected, *z))["debiased"]
    torch.testing.assert_close(found, plain(set_embeddings(plain, *z))["simclr"])


def test_the_corrected_negatives_stay_above_their_smallest_possible_sum():
    """Equal positives and opposite negatives: the estimate would be below N e^{-1/τ}."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    objective = small("debiased", tau_plus=0.5)
    found = float(objective(set_embeddings(objective, z, z))["debiased"])
    assert found == pytest.approx(math.log(1 + 2 * math.exp(-2 / 0.5)), rel=1e-5)


def test_a_chance_of_one_leaves_no_negatives_and_is_refused():
    with pytest.raises(UsageError, match="tau_plus"):
        debiased(4, tau_plus=1.0)


def orthonormal_batch(d=4):
    """Columns of ±1 with mean 0 that are orthogonal: a correlation matrix of exactly 1."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    hadamard = signs
    while len(hadamard) <= d:
        hadamard = torch.kron(hadamard, signs)
    return hadamard[:, 1 : d + 1]


def test_barlow_is_zero_for_equal_views_of_unrelated_dimensions():
    objective = small("barlow", out_dim=4)
    z = orthonormal_batch()
    step = set_embeddings(objective, z, 3 * z + 5)
    torch.testing.assert_close(objective.correlation(step), torch.eye(4), atol=1e-4, rtol=0)
    assert float(objective(step)["barlow"]) < 1e-7


def test_barlow_of_opposite_views_is_four_for_each_dimension():
    objective = small("barlow", out_dim=4)
    z = orthonormal_batch()
    assert float(objective(set_embeddings(objective, z, -z))["barlow"]) == pytest.approx(16, 1e-4)


def test_barlow_weighs_what_is_off_the_diagonal():
    """All dimensions the same: C is 1 everywhere, and the loss λ d (d - 1)."""
    objective = small("barlow", out_dim=4, lambd=0.01)
    z = torch.randn(64, 1).expand(64, 4)
    found = float(objective(set_embeddings(objective, z, z))["barlow"])
    assert found == pytest.approx(0.01 * 12, rel=1e-3)


def test_barlow_is_the_loop_over_the_matrix():
    objective = small("barlow", out_dim=5)
    first, second = torch.randn(32, 5), torch.randn(32, 5)
    found = objective(set_embeddings(objective, first, second))["barlow"]
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (first, second))
    expected = torch.zeros(())
    for i in range(5):
        for j in range(5):
            c = (a[:, i] * b[:, j]).sum() / 32
            expected = expected + ((1 - c) ** 2 if i == j else 0.0051 * c**2)
    torch.testing.assert_close(found, expected)


def test_what_is_off_the_diagonal_is_everything_else():
    square = torch.arange(9.0).reshape(3, 3)
    assert sorted(off_diagonal(square).flatten().tolist()) == [1, 2, 3, 5, 6, 7]


def byol_cosines(objective, step):
    predicted = [objective.predictor(objective.projector(f.invariant)) for f in step.online]
    target = [objective.target_projector(f.invariant) for f in step.target]
    return {
        (v, i): F.cosine_similarity(predicted[v], target[i]).mean()
        for v in range(len(predicted))
        for i in range(2)
        if v != i
    }


def test_byol_of_two_views_is_the_sum_of_both_directions():
    objective = small("byol")
    step = toy_step(objective, local=0)
    found = byol_cosines(objective, step)
    expected = (2 - 2 * found[0, 1]) + (2 - 2 * found[1, 0])
    torch.testing.assert_close(objective(step)["byol"], expected)


def test_byol_asks_local_crops_for_both_global_views_and_averages():
    objective = small("byol")
    step = toy_step(objective, local=3)
    found = byol_cosines(objective, step)
    assert len(found) == 2 + 2 * 3
    expected = 2 * torch.stack([2 - 2 * one for one in found.values()]).mean()
    torch.testing.assert_close(objective(step)["byol"], expected)


@pytest.mark.parametrize(("sign", "loss"), [(1, 0), (-1, 8)])
def test_byol_is_zero_for_perfect_predictions_and_four_a_direction_for_opposite_ones(sign, loss):
    objective = small("byol")
    step = toy_step(objective, local=0)
    objective.projector = objective.target_projector = objective.predictor = nn.Identity()
    z = torch.randn(BATCH, SPLIT)
    for record in step.target:
        record.pooled, record.split = 5 * z, None
    for record in step.online:
        record.pooled, record.split = sign * z, None
    assert float(objective(step)["byol"]) == pytest.approx(loss, abs=1e-5)


def test_byol_momentum_rises_to_one_and_its_target_head_follows():
    objective = byol(SPLIT, hidden_dim=8, out_dim=4)
    assert [objective.momentum(done) for done in (0.0, 0.5, 1.0)] == pytest.approx(
        [0.996, 0.998, 1]
    )
    before = objective.target_projector.get_parameter("0.weight").clone()
    with torch.no_grad():
        objective.projector.get_parameter("0.weight").add_(1.0)
    objective.after(toy_step(objective, done=0.0))
    moved = objective.target_projector.get_parameter("0.weight")
    torch.testing.assert_close(moved, before + 0.004)


def trained(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_heads_have_the_sizes_of_the_papers_on_a_resnet50():
    with torch.device("meta"):
        heads = {name: made(2048).heads() for name, made in PAPERS.items()}
    assert [trained(head) for head in heads["byol"]] == [
        2048 * 4096 + 4096 + 2 * 4096 + 4096 * 256,
        256 * 4096 + 4096 + 2 * 4096 + 4096 * 256,
    ]
    assert trained(heads["simclr"][0]) == 2048 * 2048 + 2 * 2048 + 2048 * 128 + 128
    assert trained(heads["barlow"][0]) == 2048 * 8192 + 2 * 8192**2 + 4 * 8192
    assert trained(heads["debiased"][0]) == 2048 * 512 + 2 * 512 + 512 * 128 + 128


PAPERS = {"byol": byol, "simclr": simclr, "barlow": barlow, "debiased": debiased}


def test_an_mlp_has_norms_and_biases_only_where_it_is_told():
    kinds = [type(m).__name__ for m in mlp(3, 4, 5, out_norm="bare")]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert [type(m).__name__ for m in mlp(3, 4, 5, norm=False)] == ["Linear", "ReLU", "Linear"]
    names = {name for name, _ in mlp(3, 4, 5, bias=True, norm=False).named_parameters()}
    assert names == {"0.weight", "0.bias", "2.weight"}


def test_similarities_leave_out_a_sample_itself_in_both_views():
    positives, negatives = similarities(torch.randn(3, 4), torch.randn(3, 4))
    assert positives.shape == (6,)
    hidden = torch.isinf(negatives).nonzero().tolist()
    assert hidden == [[row, column] for row in range(6) for column in (row % 3, row % 3 + 3)]


@pytest.mark.parametrize("name", ["simclr", "debiased", "barlow"])
def test_a_third_view_is_refused_by_what_compares_two(name):
    objective = small(name)
    step = toy_step(objective, local=0, with_target=False)
    step.views, step.online = [*step.views, step.views[0]], [*step.online, step.online[0]]
    with pytest.raises(UsageError, match="two global views, not 3"):
        objective(step)
