"""The fast scan is the plain loop over positions, in its values and in all its gradients."""

import importlib.util
import itertools
import logging
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from equitools.backbones import selective_scan
from equitools.backbones.selective_scan import torch_sweep

NAMES = ("x", "delta", "bias", "A", "B", "C", "D")
# Sides and channels of the stages of VMamba-T at 224, 96 and 32 px.
MET = [
    (side, 96 << stage)
    for sides in ((56, 28, 14, 7), (24, 12, 6, 3), (8, 4, 2, 1))
    for stage, side in enumerate(sides)
]


def made(b, d, h, w, *, seed=0, dtype=torch.float32, spread=1.0):
    """Inputs of a scan; steps start from 0.001 to 0.1 as in the model, and states decay so."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(b, d, h, w), (b, 4, d, h, w), (4, d), (4, d), (b, 4, h, w), (b, 4, h, w), (4, d)]
    x, delta, bias, logs, B, C, D = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes
    )
    found = x, spread * delta, bias - 4, -torch.exp(spread * logs), B, C, D
    return [t.to(dtype) for t in found]


def outputs(scan, inputs, given=None):
    """What a scan makes of inputs, and the gradients of all of them."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = scan(*leaves)
    given = torch.linspace(-1, 1, y.numel()).view(y.shape) if given is None else given
    return [y.detach(), *torch.autograd.grad(y, leaves, given.to(y.dtype))]


def check_near(ours, theirs, share=1e-5):
    """Is the difference of two lists a small share of each one's norm, or below float32's least?"""
    for name, a, b in zip(("y", *NAMES), ours, theirs, strict=True):
        assert a.isfinite().all(), name
        error, whole = (a.double() - b.double()).norm().item(), b.double().norm().item()
        assert error <= share * whole + 1e-35, f"{name}: {error:.1e} of {whole:.1e}"


def check_against_loop(inputs, share=1e-5):
    exact = outputs(selective_scan.reference, [t.double() for t in inputs])
    check_near(outputs(selective_scan.cross_scan, inputs), exact, share)


@pytest.mark.parametrize("k", range(4))
def test_a_pulse_decays_along_its_path_and_is_unseen_before_it(k):
    h, w, at = 3, 4, (1, 2)
    x, delta, bias, A, B, C, D = made(1, 1, h, w, dtype=torch.float64)
    x, delta = torch.zeros_like(x), torch.full_like(delta, 0.3)
    x[0, 0, *at] = 2
    D, C = torch.zeros_like(D), C * torch.eye(4)[k].view(1, 4, 1, 1)
    step = torch.log1p(torch.exp(0.3 + bias[k, 0]))
    path = [(i, j) for i in range(h) for j in range(w)]
    path = sorted(path, key=lambda p: p[:: -1 if k % 2 else 1], reverse=k >= 2)
    expected = torch.zeros(h, w, dtype=torch.float64)
    for n, place in enumerate(path[path.index(at) :]):
        expected[place] = C[0, k, *place] * torch.exp(n * step * A[k, 0]) * step * B[0, k, *at] * 2
    for scan in (selective_scan.reference, selective_scan.cross_scan):
        torch.testing.assert_close(scan(x, delta, bias, A, B, C, D)[0, 0], expected)


@pytest.mark.parametrize(("side", "channels"), MET)
def test_at_every_size_of_vmamba_tiny_it_is_the_loop(side, channels):
    check_against_loop(made(1, channels, side, side))


def test_at_random_shapes_it_is_the_loop():
    draw = random.Random(0)
    for seed in range(25):
        b, d, h, w = (draw.randint(1, most) for most in (3, 20, 17, 17))
        check_against_loop(made(b, d, h, w, seed=seed))


@pytest.mark.parametrize("limit", [1, 40, 100_000])
def test_how_it_is_cut_into_blocks_changes_nothing(limit, monkeypatch):
    monkeypatch.setitem(torch_sweep.BLOCK, "cpu", limit)
    check_against_loop(made(3, 37, 5, 6))


@pytest.mark.parametrize("shift", [-80.0, -8.0, 8.0, 300.0])
@pytest.mark.parametrize("rate", [1e-6, 1.0, 1e6])
def test_steps_and_rates_of_any_size_leave_it_finite_and_right(shift, rate):
    inputs = made(1, 5, 6, 7, spread=2.0)
    inputs[2] += shift
    inputs[3] *= rate
    check_against_loop(inputs)


def test_gradients_are_the_slopes_of_finite_differences():
    inputs = [t.requires_grad_() for t in made(2, 2, 3, 6, dtype=torch.float64)]
    assert torch.autograd.gradcheck(selective_scan.cross_scan, inputs)
    tiny = [t.requires_grad_() for t in made(1, 1, 2, 3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(selective_scan.reference, tiny)


def test_bfloat16_is_rounded_where_it_enters_and_leaves_and_nowhere_between():
    low = [0, 1, 4, 5]  # x, delta, B and C
    inputs = [t.bfloat16() if i in low else t for i, t in enumerate(made(2, 9, 12, 11))]
    given = torch.randn(2, 9, 12, 11, generator=torch.Generator().manual_seed(1)).bfloat16()
    ours = outputs(selective_scan.cross_scan, inputs, given)
    exact = outputs(selective_scan.reference, [t.double() for t in inputs], given)
    assert [g.dtype for g in ours] == [inputs[0].dtype, *(t.dtype for t in inputs)]
    for result, expected in zip(ours, exact, strict=True):
        share = 2**-8 if result.dtype == torch.bfloat16 else 1e-5
        assert (result.double() - expected).norm() <= share * expected.norm()


def test_autocast_changes_nothing():
    inputs = made(2, 5, 6, 7)
    plain = outputs(selective_scan.cross_scan, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        cast = outputs(selective_scan.cross_scan, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_channels_may_lie_last_in_memory_and_gradients_lie_as_their_inputs():
    inputs = made(2, 5, 6, 7)
    moved = [t.movedim(-3, -1).contiguous().movedim(-1, -3) if t.ndim > 2 else t for t in inputs]
    plain, last = (outputs(selective_scan.cross_scan, those) for those in (inputs, moved))
    check_near(last, plain, 0)
    assert last[0].stride() == last[1].stride() == moved[0].stride()
    assert last[2].stride() == moved[1].stride()


def test_the_same_inputs_give_the_same_bits():
    inputs = made(2, 40, 20, 20)
    first, second = (outputs(selective_scan.cross_scan, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backwards", [False, True])
def test_a_sweep_is_the_recurrence_at_every_length(backwards):
    draw = torch.Generator().manual_seed(0)
    for length in [*range(1, 40), 63, 64, 65, 129, 520]:
        a, b = torch.rand(2, 2, length, 3, generator=draw, dtype=torch.float64)
        order = range(length)[::-1] if backwards else range(length)
        a[:, order[0]] = torch.nan  # nothing comes before the first
        expected, state = torch.empty_like(b), b[:, order[0]]
        for i, t in enumerate(order):
            state = a[:, t] * state + b[:, t] if i else state
            expected[:, t] = state
        torch.testing.assert_close(torch_sweep.scan_(a, b, backwards=backwards), expected)


def test_eight_times_the_positions_take_one_level_more_and_no_loop():
    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.number += 1
            return function(*args, **(kwargs or {}))

    numbers = []
    for length in (64, 512, 4096, 32768):
        with Count() as count:
            torch_sweep.scan_(*torch.rand(2, 1, length, 1))
        numbers.append(count.number)
    levels = [b - a for a, b in itertools.pairwise(numbers)]
    assert len(set(levels)) == 1
    assert levels[0] < 100


def test_nothing_but_the_inputs_is_kept_for_backward():
    kept = []
    inputs = [t.requires_grad_() for t in made(2, 5, 6, 7)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        selective_scan.cross_scan(*inputs)
    assert {t.data_ptr() for t in kept} <= {t.data_ptr() for t in inputs}


def test_its_operators_are_what_they_promise_to_a_compiler():
    inputs = made(2, 3, 4, 5)
    torch.library.opcheck(torch.ops.equitools.cross_scan.default, (inputs,))
    given = torch.randn(2, 3, 4, 5)
    torch.library.opcheck(torch.ops.equitools.cross_scan_backward.default, (given, inputs))


def test_compiled_it_is_one_graph_with_the_same_numbers():
    def around(x, *others):
        return selective_scan.cross_scan(2 * x, *others).square()

    inputs = made(2, 3, 4, 5)
    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    check_near(outputs(compiled, inputs), outputs(around, inputs), 0)


def test_triton_is_for_gpus_that_can_and_the_log_says_once_why_not(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "triton")
    monkeypatch.setenv("CC", "cc")
    selective_scan._missing.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert selective_scan.engine("cpu") == "torch"
        assert selective_scan.engine("cuda:0") == "Triton"
        assert selective_scan.engine("cuda:0", torch.float64) == "torch"
        assert not caplog.records
        assert [selective_scan.engine("cuda:0", torch.bfloat16) for _ in range(2)] == ["torch"] * 2
    assert len(caplog.records) == 1
    assert "bfloat16 takes compute capability 8.0, this is 7.5" in caplog.text
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    selective_scan._missing.cache_clear()
    assert selective_scan.engine("cuda:0") == "torch"
    selective_scan._missing.cache_clear()
    assert "triton is not installed" in caplog.text
