"""Programs and passes on a GPU give what torch gives, operation by operation and in any order."""

import os
import subprocess
import sys
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equitools.augment import engines, native, operations
from equitools.augment.engines import triton_program

NAMES = ("blur", "elastic", "flip", "gray", "jitter", "rotation", "solarize")
KNOBS = {"solarize": {"p": 0.5, "threshold": 0.5}, "elastic": {"alpha": 20.0, "sigma": 0.7}}
LEVELS = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
EXACT = ("flip", "rotation")
triton = pytest.mark.skipif(
    not triton_program.available(), reason="there is no Triton or no C compiler"
)
gpu = pytest.mark.skipif(
    not (triton_program.available() and torch.cuda.is_available()),
    reason="there is no GPU that runs it",
)


def pictures(count, height=11, width=8, seed=0):
    """Noise, uint8, one view: 1 b 3 h w, channels last in memory."""
    pixels = np.random.default_rng(seed).integers(0, 256, (1, count, height, width, 3), np.uint8)
    return torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)


def drawn(names, count, seed=0):
    """Parameters of some operations; solarizing where the inverse continues what it inverts."""
    uniforms = np.random.default_rng(seed).random((count, 64))
    menu = {name: getattr(operations, name) for name in names}
    return {
        name: torch.from_numpy(one.draw(uniforms[:, one.COLUMNS], **KNOBS.get(name, {})))
        for name, one in menu.items()
    }


def by_torch(crops, parameters):
    """Normalized pictures by the modules' own functions on the CPU."""
    chosen = {name: getattr(operations, name) for name in parameters}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        return engines.carry_out(crops.cpu(), parameters, chosen, *LEVELS)


def by_kernels(crops, parameters):
    from equitools.augment.engines import (
        triton_kernels,  # not above: its import decides about interpretation
    )

    modules = [getattr(operations, name) for name in parameters]
    return triton_kernels.apply(
        crops.flatten(0, 1), list(parameters.values()), modules, *LEVELS
    ).cpu()


def agree(crops, parameters):
    """Within 1e-4 of [0, 1] behind an elastic deformation, else within 1e-5; moved pixels exact."""
    ours, theirs = by_kernels(crops, parameters), by_torch(crops, parameters)
    exact, std = set(parameters) <= set(EXACT), torch.tensor(LEVELS[1])[:, None, None]
    tolerance = 5e-7 if exact else 1e-4 if "elastic" in parameters else 1e-5
    difference = float(((ours - theirs) * std).abs().max())
    assert difference <= tolerance, f"{difference} in {list(parameters)}"


def each_operation_agrees(device="cpu", sides=((11, 8),)):
    for name in NAMES:
        for height, width in sides:
            agree(pictures(3, height, width).to(device), drawn((name,), 3))


def every_jitter_order_agrees(device="cpu"):
    orders = torch.tensor(list(permutations(range(4)))).double()
    factors = torch.tensor([[1.3, 0.6, 1.5, -0.2]]).double().expand(24, 4)
    agree(pictures(24, 3, 5).to(device), {"jitter": torch.cat((factors, orders), dim=1)})


def random_recipes_agree(seeds, device="cpu", count=3, sides=(11, 8)):
    for seed in seeds:
        generator = np.random.default_rng(seed)
        names = generator.permutation(NAMES)[: generator.integers(3, 8)].tolist()
        agree(pictures(count, *sides, seed).to(device), drawn(names, count, seed))


def whole_recipes_agree(device="cpu", count=3, sides=(11, 8)):
    """CLeVER's order, and SimSiam's, whose flips and rotations come last."""
    color = ("jitter", "gray", "blur", "solarize")
    for names in (("flip", "rotation", "elastic", *color), (*color, "flip", "rotation")):
        agree(pictures(count, *sides).to(device), drawn(names, count))


def planes_and_thresholds_agree(device="cpu"):
    """Bytes as planes; a level of 128 is inverted, as it meets the threshold of 128 / 255."""
    levels = torch.arange(3 * 85, dtype=torch.uint8).view(1, 1, 3, 5, 17).to(device)
    agree(levels, {"solarize": torch.tensor([[128 / 255]]).double()})
    turned = torch.tensor([[1, 1, 1, 0.31, 3, 0, 1, 2]]).double()
    primaries = torch.eye(3).mul(255).byte().view(1, 1, 3, 1, 3).to(device)
    agree(primaries, {"jitter": turned})


def nothing_and_no_pictures_agree(device="cpu"):
    agree(pictures(2).to(device), {})
    agree(pictures(2).to(device), drawn(("jitter",), 2) | {"blur": torch.zeros(2, 1).double()})
    empty = pictures(2)[:, :0].to(device)
    assert by_kernels(empty, drawn(("jitter", "blur"), 0)).shape == (0, 3, 11, 8)


INTERPRETED = """
from test_triton_engine import *
assert "triton" not in sys.modules, "who has no GPU need not wait for Triton"
from equitools.augment.engines import triton_kernels

triton_kernels.BLOCK = 64  # a picture of 11 × 8 pixels is more than one block
each_operation_agrees()
every_jitter_order_agrees()
planes_and_thresholds_agree()
random_recipes_agree(range(3))
random_recipes_agree([3], sides=(1, 1))
whole_recipes_agree()
nothing_and_no_pictures_agree()
triton_kernels.CHUNK = 2 * 3 * 11 * 8
agree(pictures(3), drawn(("flip", "jitter", "blur"), 3))
"""

# The interpreter accepts more than the compiler does; compiling needs no GPU.
COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from equitools.augment.engines import triton_kernels

TYPES = {"jobs": "*i32", "table": "*i32", "images": "*u8"}
FLOATS = dict.fromkeys(("reals", "work", "out", "norm"), "*fp32")
NUMBERS = dict.fromkeys(("batch", "channel", "row", "pixel", "height", "width"), "i32")
for kernel, _, options in triton_kernels.PASSES.values():
    known = TYPES | FLOATS | NUMBERS | dict.fromkeys(options, "constexpr")
    signature = {name: known[name] for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in options.items()}
    source = ASTSource(kernel, signature, constants)
    made = compile(source, GPUTarget("cuda", 80, 32), {"enable_fp_fusion": True})
    assert made.asm["ptx"]
"""


def run(code, folder=None):
    there = {"PYTHONPATH": os.pathsep.join(sys.path)}
    there |= {"TRITON_CACHE_DIR": str(folder)} if folder else {"TRITON_INTERPRET": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | there
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@triton
def test_kernels_give_what_torch_gives_where_triton_is_interpreted():
    run(INTERPRETED)


@triton
def test_kernels_compile_without_a_gpu(tmp_path):
    run(COMPILED, tmp_path)


@gpu
def test_kernels_give_what_torch_gives_on_a_gpu():
    each_operation_agrees("cuda", sides=((96, 96), (33, 47), (1, 1)))
    every_jitter_order_agrees("cuda")
    planes_and_thresholds_agree("cuda")
    random_recipes_agree(range(12), "cuda", count=6, sides=(40, 56))
    whole_recipes_agree("cuda", count=16, sides=(96, 96))
    nothing_and_no_pictures_agree("cuda")


@gpu
def test_nothing_waits_for_the_gpu():
    crops, parameters = pictures(8, 32, 32).cuda(), drawn(NAMES, 8)
    by_kernels(crops, parameters)
    modules = [getattr(operations, name) for name in parameters]
    mode = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        chosen = dict(zip(parameters, modules, strict=True))
        engines.carry_out(crops, parameters, chosen, *LEVELS)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_what_the_kernels_do_not_know_goes_to_torch(monkeypatch):
    monkeypatch.setattr(triton_program, "available", lambda: True)
    there = {"dtype": torch.uint8, "device": torch.device("cuda"), "dim": lambda: 4}
    crops = SimpleNamespace(**there, shape=(2, 3, 8, 8))
    assert triton_program.can(crops, [operations.jitter, operations.blur])
    assert not triton_program.can(crops, [operations.jitter, operations.jitter])
    assert not triton_program.can(crops, [operations.jitter, operations.crop])
    assert not triton_program.can(SimpleNamespace(**there, shape=(2, 1, 8, 8)), [operations.jitter])
    assert not triton_program.can(
        SimpleNamespace(**there, shape=(2, 3, 8, 1 << 14)), [operations.jitter]
    )
    assert not triton_program.can(pictures(2)[0], [operations.jitter])
    monkeypatch.setattr(triton_program, "available", lambda: False)
    assert not triton_program.can(crops, [operations.jitter])


def test_a_picture_waits_for_nothing_that_it_does_not_need():
    """Without blur or contrast, bytes become the output in one pass."""
    p = {"flip": torch.ones(3, 1), "blur": torch.tensor([[0.0], [0.2], [1.0]])}
    made = triton_program.plan(
        [one.double() for one in p.values()], [operations.flip, operations.blur], 3, (8, 8)
    )
    assert [(name, jobs[:, 0].tolist()) for name, jobs in made.passes] == [
        ("paint", [2]),
        ("blur across", [2]),
        ("blur down", [2]),
        ("finish", [0, 1, 2]),
    ]
    _, last = made.passes[-1]
    assert last[:, 1].tolist() == [-1, -1, 0]


def test_the_mean_is_of_what_the_operations_before_contrast_have_made():
    (jitter,) = drawn(("jitter",), 40).values()
    made = triton_program.plan([jitter], [operations.jitter], 40, (8, 8))
    (name, jobs), _ = made.passes
    assert name == "mean"
    assert jobs[:, 0].tolist() == (jitter[:, 1] != 1).nonzero()[:, 0].tolist()
    kinds = made.table[jobs[:, 0], triton_program.KINDS]
    assert (kinds[np.arange(len(jobs)), jobs[:, 3]] == triton_program.CONTRAST).all()
