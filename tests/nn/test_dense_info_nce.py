"""Block by block, with gradients made on the way, is what a loop over all tokens gives."""

import itertools
import math

import forked
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from equitools.nn.losses import dense_info_nce

TAU = 0.3
KINDS = ["both", "cross"]


def tokens(images=4, cells=5, width=6, dtype=torch.float64, seed=0):
    """Unit queries and keys b t d that get gradients."""
    draw = torch.Generator().manual_seed(seed)
    made = torch.randn(2, images, cells, width, generator=draw, dtype=torch.float64).to(dtype)
    return [one.requires_grad_() for one in F.normalize(made, dim=-1)]


def naive(queries, keys, negatives, temperature=TAU):
    """The definition, one token after the other."""
    images, cells, _ = queries.shape
    found = []
    for image, cell in itertools.product(range(images), range(cells)):
        others = [keys[other] for other in range(images) if other != image]
        if negatives == "both":
            others += [queries[other] for other in range(images) if other != image]
        candidates = torch.cat([keys[image, cell][None], *others])
        logits = candidates @ queries[image, cell] / temperature
        found.append(logits.logsumexp(0) - logits[0])
    return torch.stack(found).mean()


def ours(queries, keys, negatives, temperature=TAU):
    return dense_info_nce.mean(queries, keys, temperature=temperature, negatives=negatives)


@pytest.mark.parametrize("negatives", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 10, 100])
def test_blocks_of_any_size_give_the_value_and_gradients_of_the_loop(monkeypatch, negatives, rows):
    both = tokens()
    columns = 20 * (2 if negatives == "both" else 1)
    monkeypatch.setitem(dense_info_nce.BLOCK, "cpu", rows * columns)
    one, other = ours(*both, negatives), naive(*both, negatives)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    pairs = zip(torch.autograd.grad(one, both), torch.autograd.grad(other, both), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("negatives", KINDS)
def test_gradients_are_those_of_finite_differences(negatives):
    both = tokens(images=3, cells=2, width=3)
    assert torch.autograd.gradcheck(lambda q, k: ours(q, k, negatives), both)


@pytest.mark.parametrize("negatives", KINDS)
def test_float32_at_a_low_temperature_neither_overflows_nor_vanishes(negatives):
    both = tokens(width=32, dtype=torch.float32)
    exact = [one.detach().double().requires_grad_() for one in both]
    value, expected = ours(*both, negatives, 0.005), naive(*exact, negatives, 0.005)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    found, wanted = torch.autograd.grad(value, both), torch.autograd.grad(expected, exact)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).norm() < 1e-5 * theirs.norm()


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes, and all operations."""

    def __init__(self):
        super().__init__()
        self.size, self.names = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.names.add(function.overloadpacket.__name__)
        if isinstance(found, torch.Tensor):
            self.size = max(self.size, found.numel())
        return found


@pytest.mark.parametrize("negatives", KINDS)
@pytest.mark.parametrize("rows", [3, 8, 16])
def test_no_more_than_one_block_of_similarities_is_ever_made(monkeypatch, negatives, rows):
    """Also where a block is less than one image's rows: 6 images of 8 cells, 4 wide."""
    both = tokens(6, 8, 4, torch.float32)
    columns = 48 * (2 if negatives == "both" else 1)
    monkeypatch.setitem(dense_info_nce.BLOCK, "cpu", rows * columns)
    with Largest() as seen:
        ours(*both, negatives).backward()
    assert seen.size <= max(rows * columns, 48 * 4)


@pytest.mark.parametrize("negatives", KINDS)
def test_a_block_is_as_large_as_it_says_at_the_papers_setting(negatives):
    """24 images of 196 cells on a CPU: 64 MiB instead of the 354 MB of (2 · 24 · 196)²."""
    rows = dense_info_nce.BLOCK["cpu"] // (2 * 24 * 196 if negatives == "both" else 24 * 196)
    parts = list(dense_info_nce._parts(24, 196, rows))
    counts = [(some.stop - some.start) * (cells.stop - cells.start) for some, cells in parts]
    assert sum(counts) == 24 * 196
    assert max(counts) <= rows


@pytest.mark.parametrize("negatives", KINDS)
def test_perfect_keys_pay_for_the_negatives_only(negatives):
    """Every positive at 1/τ and every negative at 0: L = ln(1 + n e^(-1/τ)); n of 4 images."""
    queries = torch.eye(20, dtype=torch.float64).view(4, 5, 20)
    others = 15 * (2 if negatives == "both" else 1)
    expected = math.log(1 + others * math.exp(-1 / TAU))
    assert float(ours(queries, queries, negatives)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("negatives", KINDS)
@pytest.mark.parametrize("images", [0, 1])
def test_without_other_images_it_costs_nothing_and_pulls_nowhere(negatives, images):
    both = tokens(images=images)
    value = ours(*both, negatives)
    assert value.shape == ()
    assert float(value.detach()) == 0
    for gradient in torch.autograd.grad(value, both):
        assert (gradient == 0).all()


def test_tokens_of_the_same_image_are_no_negatives():
    """Images of one color each, orthogonal to the others: their cells are alike and pay nothing."""
    alike = torch.eye(4, dtype=torch.float64)[:, None].expand(4, 5, 4)
    expected = math.log(1 + 15 * math.exp(-1 / TAU))
    assert float(ours(alike, alike, "cross")) == pytest.approx(expected, rel=1e-12)


def test_backward_scales_adds_up_and_can_be_repeated_when_the_graph_is_kept():
    both = tokens()
    once = torch.autograd.grad(ours(*both, "both"), both)
    (3 * ours(*both, "both")).backward()
    value = ours(*both, "both")
    value.backward(retain_graph=True)
    value.backward()
    for leaf, slope in zip(both, once, strict=True):
        torch.testing.assert_close(leaf.grad, 5 * slope)


def test_keys_without_gradient_are_constants():
    queries, keys = tokens()
    ours(queries, keys.detach(), "both").backward()
    assert keys.grad is None
    theirs = torch.autograd.grad(naive(queries, keys.detach(), "both"), queries)[0]
    torch.testing.assert_close(queries.grad, theirs)


@pytest.mark.parametrize("negatives", KINDS)
def test_without_gradients_there_is_no_work_for_them(negatives):
    both = tokens()
    with Largest() as seen, torch.no_grad():
        value = ours(*both, negatives)
    assert not value.requires_grad
    assert seen.names.isdisjoint({"zeros", "new_zeros", "zeros_like", "add_"})
    torch.testing.assert_close(value, naive(*both, negatives).detach())


def test_under_autocast_products_are_low_and_the_rest_is_not():
    both = tokens(width=64, dtype=torch.float32)
    exact = torch.autograd.grad(ours(*both, "both"), both)
    with torch.autocast("cpu", torch.bfloat16):
        value = ours(*both, "both")
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(ours(*both, "both").detach()), rel=5e-3)
    for one, other in zip(torch.autograd.grad(value, both), exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


def test_a_compiled_network_steps_around_it():
    both = tokens()
    plain = torch.autograd.grad(2 * ours(*both, "both"), both)
    compiled = torch.compile(lambda q, k: 2 * ours(q, k, "both"), backend="eager")
    for one, other in zip(torch.autograd.grad(compiled(*both), both), plain, strict=True):
        assert torch.equal(one, other)


SHARES = """
import sys, torch
from equitools.core import distributed
from test_dense_info_nce import ours, tokens

distributed.start("cpu")
rank, cuts = distributed.rank(), {"uneven": (0, 3, 4), "empty": (0, 4, 4), "none": (0, 0, 0)}
for name, cut in cuts.items():
    for negatives in ("both", "cross"):
        mine = [one.detach()[cut[rank]:cut[rank + 1]].requires_grad_() for one in tokens()]
        value = ours(*mine, negatives)
        (value / 2).backward()  # processes are averaged
        whole = [one.detach()[: cut[-1]].requires_grad_() for one in tokens()]
        total = distributed.mean_across(value)
        distributed.world_size, world = (lambda: 1), distributed.world_size
        alone = ours(*whole, negatives)
        distributed.world_size = world
        alone.backward()
        torch.testing.assert_close(total, alone.detach(), msg=lambda m: name + m)
        for one, other in zip(mine, whole):
            share = other.grad[cut[rank]:cut[rank + 1]]
            torch.testing.assert_close(one.grad, share, msg=lambda m: name + m)
            assert name == "none" or not len(share) or share.abs().sum() > 0
distributed.stop()
"""


def test_two_processes_with_any_shares_are_one_process_with_the_whole():
    forked.programs(SHARES)
