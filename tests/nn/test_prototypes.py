"""Block by block, with gradients made on the way, is what a loop over all pairs gives."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from equitools.nn.heads import WeightNormLinear
from equitools.nn.losses import prototypes

KINDS = ["cross-entropy", "cosine", "dot"]
ONLINE, TARGET = 0.3, 0.2
SIMILARITY = {
    "cross-entropy": lambda q, s: -(q * s.log_softmax(-1)).sum(-1),
    "cosine": lambda q, s: F.cosine_similarity(q, s.softmax(-1), dim=-1),
    "dot": lambda q, s: (q * s.softmax(-1)).sum(-1),
}


def made(kind, *, views=4, samples=5, dim=6, width=11, dtype=torch.float32, freeze_gain=False):
    """Codes of all views, an online layer, and the pairs with two target views."""
    torch.manual_seed(0)
    layer, own = (WeightNormLinear(dim, width, freeze_gain=freeze_gain).to(dtype) for _ in "ab")
    layer.weight_g.data += 0.1 * torch.randn(width, 1)
    codes, seen = (
        F.normalize(torch.randn(n, samples, dim, dtype=dtype), dim=-1) for n in (views, 2)
    )
    center = 0.1 * torch.randn(width, dtype=dtype)
    partners = [(1,), (0,), *[(0, 1)] * (views - 2)]
    pairs = prototypes.ViewPairs(
        kind,
        partners,
        ONLINE,
        prototypes.TargetHead(seen, own.requires_grad_(False), center, TARGET),
    )
    return codes.requires_grad_(), layer, pairs


def naive(codes, layer, pairs):
    """The definition: one similarity after the other."""
    target = pairs.target
    targets = ((target.layer(target.codes) - target.center) / target.temperature).softmax(-1)
    return torch.stack(
        [
            SIMILARITY[pairs.kind](targets[i], layer(codes[v]) / pairs.temperature).mean()
            for v, partners in enumerate(pairs.partners)
            for i in partners
        ]
    ).mean()


def gradients(value, codes, layer):
    leaves = [codes, layer.weight_v, *([layer.weight_g] if layer.weight_g.requires_grad else [])]
    return torch.autograd.grad(value, leaves)


def near(ours, theirs, share=1e-6):
    """Is the difference of two lists of tensors a small share of each one's norm?"""
    return all((a - b).norm() <= share * b.norm() for a, b in zip(ours, theirs, strict=True))


def block_of(monkeypatch, samples, codes, layer):
    monkeypatch.setitem(prototypes.BLOCK, "cpu", samples * len(codes) * len(layer.weight_g))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [1, 2, 5, 100])
def test_blocks_of_any_size_give_the_value_and_gradients_of_the_pair_loop(
    monkeypatch, kind, samples
):
    codes, layer, pairs = made(kind, dtype=torch.float64)
    block_of(monkeypatch, samples, codes, layer)
    ours, theirs = prototypes.mean(codes, layer, pairs), naive(codes, layer, pairs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    assert near(gradients(ours, codes, layer), gradients(theirs, codes, layer), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_the_difference_to_the_pair_loop_is_rounding(kind):
    codes, layer, pairs = made(kind, views=10, samples=16, dim=32, width=2048, freeze_gain=True)
    ours, theirs = prototypes.mean(codes, layer, pairs), naive(codes, layer, pairs)
    assert float(abs(ours - theirs).detach()) <= 1e-6 * float(theirs.detach())
    assert near(gradients(ours, codes, layer), gradients(theirs, codes, layer))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(monkeypatch, kind):
    codes, layer, pairs = made(kind, views=3, samples=3, dim=3, width=5, dtype=torch.float64)
    block_of(monkeypatch, 2, codes, layer)

    def value(codes, directions, gains):
        return prototypes.mean(codes, SimpleNamespace(weight_v=directions, weight_g=gains), pairs)

    assert torch.autograd.gradcheck(value, (codes, layer.weight_v, layer.weight_g))


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


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_than_one_block_of_outputs_is_ever_made(monkeypatch, kind):
    codes, layer, pairs = made(kind, views=10, samples=8, dim=4, width=64)
    block_of(monkeypatch, 2, codes, layer)
    with Largest() as seen:
        prototypes.mean(codes, layer, pairs).backward()
    assert seen.size == 2 * 10 * 64


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_there_is_no_work_for_them(kind):
    codes, layer, pairs = made(kind)
    with Largest() as seen, torch.no_grad():
        value = prototypes.mean(codes, layer, pairs)
    assert not value.requires_grad
    assert seen.names.isdisjoint({"zeros_like", "addmm_", "copy_", "sub"})
    torch.testing.assert_close(value, naive(codes, layer, pairs).detach())


def test_only_what_needs_a_gradient_gets_one():
    codes, layer, pairs = made("cosine")
    layer.requires_grad_(False)
    prototypes.mean(codes, layer, pairs).backward()
    assert codes.grad is not None
    assert layer.weight_v.grad is layer.weight_g.grad is None
    codes, layer, pairs = made("cosine", freeze_gain=True)
    prototypes.mean(codes.detach(), layer, pairs).backward()
    assert layer.weight_v.grad is not None
    assert layer.weight_g.grad is None


def test_views_without_a_partner_take_no_part():
    codes, layer, pairs = made("cross-entropy", views=3)
    alone = prototypes.ViewPairs(pairs.kind, [(), (0, 1), (0,)], ONLINE, pairs.target)
    value = prototypes.mean(codes, layer, alone)
    torch.testing.assert_close(value, naive(codes, layer, alone))
    value.backward()
    assert not codes.grad[0].any()
    assert codes.grad[1:].abs().sum() > 0


def test_backward_scales_adds_up_and_can_be_repeated_when_the_graph_is_kept():
    codes, layer, pairs = made("cross-entropy")
    once = gradients(prototypes.mean(codes, layer, pairs), codes, layer)[1]
    (3 * prototypes.mean(codes, layer, pairs)).backward()
    value = prototypes.mean(codes, layer, pairs)
    value.backward(retain_graph=True)
    value.backward()
    torch.testing.assert_close(layer.weight_v.grad, 5 * once)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_products_are_low_and_the_rest_is_not(kind):
    codes, layer, pairs = made(kind, views=6, samples=8, dim=32, width=512)
    exact = prototypes.mean(codes, layer, pairs)
    with torch.autocast("cpu", torch.bfloat16):
        value = prototypes.mean(codes, layer, pairs)
        mean = pairs.target.mean_logits()
    assert value.dtype == mean.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=5e-3)
    found = gradients(value, codes, layer)
    assert {one.dtype for one in found} == {torch.float32}
    assert near(found, gradients(exact, codes, layer), 0.02)


def test_checkpointing_changes_nothing():
    codes, layer, pairs = made("cosine")
    plain = gradients(prototypes.mean(codes, layer, pairs), codes, layer)
    again = checkpoint(prototypes.mean, codes, layer, pairs, use_reentrant=False)
    for one, other in zip(gradients(again, codes, layer), plain, strict=True):
        assert torch.equal(one, other)


def test_a_compiled_network_steps_around_it():
    codes, layer, pairs = made("dot")
    plain = gradients(2 * prototypes.mean(codes, layer, pairs), codes, layer)
    compiled = torch.compile(lambda x: 2 * prototypes.mean(x, layer, pairs), backend="eager")
    for one, other in zip(gradients(compiled(codes), codes, layer), plain, strict=True):
        assert torch.equal(one, other)


def test_mean_logits_are_the_mean_of_the_logits():
    target = made("dot")[2].target
    torch.testing.assert_close(target.mean_logits(), target.layer(target.codes).mean((0, 1)))


def test_assignments_are_centered_and_sharpened():
    target = made("dot")[2].target
    expected = ((target.layer(target.codes) - target.center) / TARGET).softmax(-1)
    torch.testing.assert_close(target.assignments(), expected)


KERNELS = """
import torch
from equitools.nn.losses import prototypes, prototypes_torch as rows, prototypes_triton as kernels
from test_prototypes import KINDS, gradients, made, near

kernels.PIECE = 16  # the last piece is not full
for kind in KINDS:
    found = []
    for module in (rows, kernels):
        prototypes._rows = lambda device: module
        codes, layer, pairs = made(kind, views=3, samples=2, width=19)
        value = prototypes.mean(codes, layer, pairs)
        with torch.no_grad():
            still = prototypes.mean(codes, layer, pairs)
        assert torch.equal(still, value)
        found.append([value, *gradients(value, codes, layer)])
    assert near(*found)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not built for this platform"
)
def test_kernels_compute_the_same_where_triton_is_interpreted():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
