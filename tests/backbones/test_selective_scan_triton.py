"""The scan in Triton is the plain loop over positions, at every size that VMamba-T meets at 224, 96
and 32 px, and every thread of it scans alone."""

import importlib.util
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from test_selective_scan import MET

from equitools.backbones import selective_scan

triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not built for this platform"
)
gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and selective_scan.engine("cuda") == "Triton"),
    reason="there is no GPU that runs it",
)
CLOSE = {torch.float32: 1e-5, torch.float16: 7e-4, torch.bfloat16: 5e-3}
LAYOUTS = {"b d h w": (0, 1, 2, 3), "b h w d": (0, 2, 3, 1), "w d h b": (3, 1, 2, 0)}


def made(b, d, h, w, dtype=torch.float32, layout="b h w d", device="cpu", seed=0):
    """The seven inputs and a gradient; A from -0.05 to -20, steps from 1e-3 to 4."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x, B, C, y = noise(b, d, h, w), noise(b, 4, h, w), noise(b, 4, h, w), noise(b, d, h, w)
    delta, bias = 2 * noise(b, 4, d, h, w) - 1, noise(4, d) - 2
    A, D = -torch.exp(1.5 * noise(4, d)), noise(4, d)
    x, B, C, y, delta = (one.to(device, dtype) for one in (x, B, C, y, delta))
    bias, A, D = (one.to(device, torch.float32) for one in (bias, A, D))
    delta = delta.transpose(0, 1)
    x, y, *steps = (in_memory(one, LAYOUTS[layout]) for one in (x, y, *delta))
    return [x, torch.stack(steps, 1), bias, A, B, C, D], y


def in_memory(picture, order):
    """The same values with the axes of a picture in another order in memory."""
    back = [order.index(axis) for axis in range(4)]
    return picture.permute(order).contiguous().permute(back)


def with_gradients(scan, inputs, given):
    """y and the gradients of all inputs."""
    leaves = [one.detach().requires_grad_() for one in inputs]
    y = scan(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, given)]


def far(ours, theirs):
    """The largest norm of a difference as a share of the norm, or of 1e-20 if that is more."""
    shares = [
        (one.double() - other).norm() / other.norm().clamp(min=1e-20)
        for one, other in zip(ours, theirs, strict=True)
    ]
    return float(torch.stack(shares).max())


def agrees(inputs, given):
    """Output and all gradients of the kernels are those of the loop in float64."""
    from equitools.backbones.selective_scan import (
        triton_kernels,  # not above: its import decides about interpretation
    )

    ours = with_gradients(triton_kernels.fused, inputs, given)
    theirs = with_gradients(
        selective_scan.reference, [one.double() for one in inputs], given.double()
    )
    for one, like in zip(ours, [inputs[0], *inputs], strict=True):
        assert one.shape == like.shape
        assert one.dtype == like.dtype
    share, dtype = far(ours, theirs), inputs[0].dtype
    assert share <= CLOSE[dtype], f"{share} at {tuple(inputs[0].shape)} {dtype}"


def every_shape_agrees(device="cpu", shapes=((1, 1, 1, 1), (2, 5, 3, 2), (1, 3, 9, 1))):
    for shape in shapes:
        agrees(*made(*shape, device=device))


def every_layout_and_type_agrees(device="cpu", shape=(1, 3, 2, 5)):
    for layout in ("b d h w", "w d h b"):
        agrees(*made(*shape, layout=layout, device=device))
    for dtype in (torch.float16, torch.bfloat16):
        agrees(*made(*shape, dtype, device=device))
    inputs, given = made(*shape, device=device)
    agrees(inputs, in_memory(given, LAYOUTS["b d h w"]))
    agrees(inputs, given[:1, :1, :1, :1].expand(shape))


def very_small_and_very_large_steps_agree(device="cpu", shape=(1, 3, 2, 5)):
    for shift, factor in ((-80, 1), (60, 1e4), (-3, 1e4), (500, 1e-6)):
        (x, delta, bias, A, *rest), given = made(*shape, device=device)
        agrees([x, delta + shift, bias, A * factor, *rest], given)


def directions_in_turn_give_what_directions_apart_give(device="cpu", shape=(1, 3, 2, 3)):
    from equitools.backbones.selective_scan import triton_kernels

    found, (inputs, given) = [], made(*shape, device=device)
    for programs, turns in ((1 << 20, 1), (2 * shape[0], 2), (1, 4)):
        triton_kernels.PROGRAMS = programs
        assert triton_kernels._turns(inputs[0]) == turns
        agrees(inputs, given)
        found.append(with_gradients(triton_kernels.fused, inputs, given))
    again = with_gradients(triton_kernels.fused, inputs, given)
    assert all(torch.equal(one, other) for one, other in zip(found[-1], again, strict=True))
    for one, other in pairwise(found):
        assert far(one, [t.double() for t in other]) < 1e-6


def nothing_and_what_needs_no_gradient_go_through(device="cpu"):
    from equitools.backbones.selective_scan import triton_kernels

    inputs, given = made(1, 3, 2, 5, device=device)
    trained = with_gradients(triton_kernels.fused, inputs, given)[0]
    still = triton_kernels.fused(*inputs)
    assert not still.requires_grad
    assert torch.equal(still, trained)
    inputs[2].requires_grad_()
    triton_kernels.fused(*inputs).backward(given)
    assert inputs[2].grad.isfinite().all()
    found = with_gradients(triton_kernels.fused, *made(0, 3, 2, 5, device=device))
    assert found[0].shape == (0, 3, 2, 5)
    assert not any(one.any() for one in found)


INTERPRETED = """
import numpy as np
from test_selective_scan_triton import *
from triton import next_power_of_2
from triton.runtime import interpreter
from equitools.backbones.selective_scan import triton_kernels as kernels

def doubling(self, given):
    # The interpreter's own scan takes minutes for a picture: it goes element by element.
    data = [np.moveaxis(one.handle.data, self.axis, 0).copy() for one in given]
    reach = 1
    while reach < len(data[0]):
        pieces = [np.roll(d, reach, 0) for d in data] + [d.copy() for d in data]
        pieces = [self.to_tensor(p, given[i % len(data)].dtype) for i, p in enumerate(pieces)]
        for d, new in zip(data, self.combine_fn.fn(*pieces)):
            d[reach:] = new.handle.data[reach:]
        reach *= 2
    return [self.to_tensor(np.moveaxis(d, 0, self.axis), g.dtype) for d, g in zip(data, given)]

kernels.CHANNELS, kernels.CHUNK = 4, 4
agrees(*made(1, 1, 2, 3))
interpreter.ScanOps.generic_scan = doubling
every_shape_agrees()
every_layout_and_type_agrees()
nothing_and_what_needs_no_gradient_go_through()
very_small_and_very_large_steps_agree()
directions_in_turn_give_what_directions_apart_give()
kernels.CHUNK = 64
for side, channels in MET:
    # One program has all channels: the interpreter goes through programs one by one.
    kernels.CHANNELS = next_power_of_2(channels)
    every_shape_agrees(shapes=[(1, channels, side, side)])
"""

# The interpreter accepts more than the compiler does; compiling needs no GPU.
COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from equitools.backbones.selective_scan import triton_kernels as kernels

FLOATS = ("bias", "A", "D", "states", "dbias", "dA", "dD", "dB", "dC")
INPUTS, SIZES = ("x", "delta", "bias", "A", "B", "C", "D"), ("b", "d", "h", "w", "chunks")
X, DELTA, GIVEN = ("", 1, "", ""), ("", "", 1, "", ""), ("", 1, "", "")  # channels innermost
SLOPES = ("parts", "slopes", "dbias", "dA", "dD", "dB", "dC")
FORWARD = (INPUTS, ("parts", "states"), SIZES, (X, DELTA))
BACKWARD = ((*INPUTS, "given", "states"), SLOPES, SIZES, (X, DELTA, GIVEN))

def typed(name, place, known, constants):
    if isinstance(name, tuple):
        return tuple(typed(one, (*place, i), known, constants) for i, one in enumerate(name))
    if not isinstance(name, str):
        constants[place] = name
        return "constexpr"
    return known.get(name, "i32")

def made(kernel, arguments, capability, type):
    pointers = dict.fromkeys(("x", "delta", "B", "C", "given", "parts", "slopes"), f"*{type}")
    known, constants = pointers | dict.fromkeys(FLOATS, "*fp32"), {}
    arguments = (*arguments, 2, kernels.CHUNK, kernels.CHANNELS)
    types = [typed(one, (i,), known, constants) for i, one in enumerate(arguments)]
    signature = dict(zip(kernel.arg_names, types, strict=True))
    source = ASTSource(kernel, signature, constants)
    return compile(source, GPUTarget("cuda", capability, 32), kernels.OPTIONS).asm["ptx"]

for capability, type in ((75, "fp16"), (80, "bf16"), (90, "fp32"), (120, "bf16")):
    ptx = made(kernels._forward, FORWARD, capability, type)
    assert "shfl" not in ptx, "threads scan together"
    assert made(kernels._backward, BACKWARD, capability, type)
assert made(kernels._forward, (INPUTS, ("parts", None), SIZES, (X, DELTA)), 80, "bf16")
"""


def run(code, folder=None):
    there = {"PYTHONPATH": os.pathsep.join(sys.path)}
    there |= {"TRITON_CACHE_DIR": str(folder)} if folder else {"TRITON_INTERPRET": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | there
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@triton
def test_kernels_give_what_the_loop_gives_where_triton_is_interpreted():
    run(INTERPRETED)


@triton
def test_kernels_compile_without_a_gpu_and_threads_scan_alone(tmp_path):
    run(COMPILED, tmp_path)


@gpu
def test_kernels_give_what_the_loop_gives_on_a_gpu():
    every_shape_agrees("cuda", ((1, 1, 1, 1), (2, 5, 3, 11), (3, 96, 14, 9)))
    every_shape_agrees("cuda", [(2, channels, side, side) for side, channels in MET])
    every_layout_and_type_agrees("cuda", (3, 70, 7, 12))
    very_small_and_very_large_steps_agree("cuda", (2, 33, 9, 10))
    nothing_and_what_needs_no_gradient_go_through("cuda")


@gpu
def test_autocast_leaves_the_types_alone():
    from equitools.backbones.selective_scan import triton_kernels

    for dtype in (torch.float32, torch.bfloat16):
        inputs, given = made(2, 33, 5, 6, dtype, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            found = with_gradients(triton_kernels.fused, inputs, given)
        assert [one.dtype for one in found] == [dtype, *(one.dtype for one in inputs)]


@gpu
def test_directions_in_turn_give_what_directions_apart_give_on_a_gpu(monkeypatch):
    from equitools.backbones.selective_scan import triton_kernels

    monkeypatch.setattr(triton_kernels, "PROGRAMS", triton_kernels.PROGRAMS)
    directions_in_turn_give_what_directions_apart_give("cuda", (8, 32, 14, 14))
