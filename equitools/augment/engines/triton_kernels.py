"""The passes of triton_program.py as Triton kernels, an instance for a block of a picture.

Everything is computed in float32 from the bytes by the formulae of the modules beside this one.
Flips and rotations are theirs to the bit; floats in [0, 1] differ by 1e-5 at most, by 1e-4 behind
an elastic deformation, and by what solarizing makes of that where a value meets the threshold.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from equitools.augment.engines import triton_program
from equitools.augment.engines.triton_color import colors, luma
from equitools.augment.engines.triton_program import PassPlan
from equitools.augment.normalize import Levels
from equitools.augment.operation import Operations

BLOCK = tl.constexpr(1024)  # pixels at a time
CHUNK = 1 << 25  # floats worked on at a time; working memory takes up to five times as many
JOB, WORDS = tl.constexpr(triton_program.JOB), tl.constexpr(triton_program.WORDS)
MEAN, NOISE = tl.constexpr(triton_program.MEAN), tl.constexpr(triton_program.NOISE.start)
DISPLACEMENT = tl.constexpr(triton_program.DISPLACEMENT)
BLUR = tl.constexpr(triton_program.BLUR.start)
ELASTIC = tl.constexpr(triton_program.ELASTIC.start)


def apply(
    images: Tensor, parameters: Sequence[Tensor], operations: Operations, mean: Levels, std: Levels
) -> Tensor:
    """Pictures b 3 h w uint8 in any layout → floats b 3 h w, (x - mean) / std of x in [0, 1].

    parameters: b k float64 of each operation on the CPU, in the order of carrying out.
    """
    out = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    levels = np.zeros(triton_program.JOB, np.float32)
    levels[:3], levels[3:6] = mean, np.reciprocal(np.array(std, np.float64))
    count = max(1, CHUNK // max(1, out[:1].numel()))
    with torch.cuda.device(images.device) if images.is_cuda else nullcontext():
        for start in range(0, len(images), count):
            rows = slice(start, start + count)
            given = [p[rows] for p in parameters]
            size = (images.shape[2], images.shape[3])
            made = triton_program.plan(given, operations, len(images[rows]), size)
            _carry_out(images[rows], made, levels, out[rows])
    return out


def _carry_out(images: Tensor, made: PassPlan, levels: np.ndarray, out: Tensor) -> None:
    """Launch the passes of a plan one after another."""
    parts = [levels.view(np.int32), made.table.ravel(), *(jobs.ravel() for _, jobs in made.passes)]
    first, table, *every = _sent(np.concatenate(parts), images).split([len(part) for part in parts])
    height, width = images.shape[2:]
    tiles = triton.cdiv(height * width, int(BLOCK))
    work = out.new_empty(made.places, 3, height, width)
    known = {"table": table, "reals": table.view(torch.float32), "work": work, "out": out}
    known |= {"images": images, "norm": first.view(torch.float32)}
    known |= dict(zip(("batch", "channel", "row", "pixel"), images.stride(), strict=True))
    known |= {"height": height, "width": width}
    for (name, jobs), there in zip(made.passes, every, strict=True):
        kernel, planes, options = PASSES[name]
        given = {key: known[key] for key in kernel.arg_names if key in known}
        count = len(jobs) * (planes * tiles or 1)
        kernel[(count,)](jobs=there, **given, **options, enable_fp_fusion=True)


def _sent(words: np.ndarray, like: Tensor) -> Tensor:
    """Words on the pictures' device; the copy is on its way when this returns."""
    here = torch.from_numpy(words)
    return here.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else here


@triton.jit
def _mean(jobs, table, reals, work, images, batch, channel, row, pixel, height, width):
    """The mean luma of a whole picture, before what its program does from `end` on."""
    jobs += tl.program_id(0) * JOB
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, height * width, BLOCK):
        lanes = first + tl.arange(0, BLOCK)
        red, green, blue = colors(
            jobs, table, reals, work, images, batch, channel, row, pixel, lanes, height, width
        )
        total += tl.where(lanes < height * width, luma(red, green, blue), 0.0)
    tl.store(reals + tl.load(jobs) * WORDS + MEAN, tl.sum(total, 0) / (height * width))


@triton.jit
def _paint(jobs, table, reals, work, images, batch, channel, row, pixel, height, width):
    """Carry out a part of a picture's program."""
    jobs, lanes = _block(jobs, height, width)
    red, green, blue = colors(
        jobs, table, reals, work, images, batch, channel, row, pixel, lanes, height, width
    )
    _store(work, tl.load(jobs + 4), red, green, blue, lanes, height * width)


@triton.jit
def _finish(jobs, table, reals, work, images, batch, channel, row, pixel, out, norm, height, width):
    """Carry out the last part of a picture's program, normalized to the output."""
    jobs, lanes = _block(jobs, height, width)
    red, green, blue = colors(
        jobs, table, reals, work, images, batch, channel, row, pixel, lanes, height, width
    )
    red = (red - tl.load(norm)) * tl.load(norm + 3)
    green = (green - tl.load(norm + 1)) * tl.load(norm + 4)
    blue = (blue - tl.load(norm + 2)) * tl.load(norm + 5)
    _store(out, tl.load(jobs + 4), red, green, blue, lanes, height * width)


@triton.jit
def _smooth(jobs, table, reals, work, height, width, FIELD: tl.constexpr, ACROSS: tl.constexpr):
    """Planes smoothed along one axis: two of a field of displacements, whose edges are reflected
    as often as needed, or three of a picture, whose edges are repeated."""
    PLANES: tl.constexpr = 2 if FIELD else 3
    tiles = tl.cdiv(height * width, BLOCK)
    jobs += tl.program_id(0) // (tiles * PLANES) * JOB
    plane = tl.program_id(0) // tiles % PLANES
    lanes = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    size, valid = height * width, lanes < height * width
    column = tl.load(jobs) * WORDS + (ELASTIC if FIELD else BLUR)
    spread, half = tl.load(reals + column), tl.load(table + column + 1)
    planes = work + (tl.load(jobs + 1).to(tl.int64) * 3 + plane) * size
    x, y = lanes % width, lanes // width
    total = tl.zeros([BLOCK], tl.float32)
    weights = 0.0
    for offset in range(-half, half + 1):
        if ACROSS:
            place = y * width + _edge(x + offset, width, FIELD)
        else:
            place = _edge(y + offset, height, FIELD) * width + x
        distance = offset / spread
        weight = tl.exp(-0.5 * distance * distance)
        total += weight * tl.load(planes + place, mask=valid, other=0.0)
        weights += weight
    target = work + (tl.load(jobs + 4).to(tl.int64) * 3 + plane) * size
    tl.store(target + lanes, total / weights, mask=valid)


@triton.jit
def _noise(jobs, table, work, height, width):
    """Two planes of noise in (-1, 1), hashed from a picture's seed and the pixel's number."""
    jobs, lanes = _block(jobs, height, width)
    seed = table + tl.load(jobs) * WORDS + NOISE
    word = _mix((lanes + tl.load(seed)).to(tl.uint32, bitcast=True))
    word = _mix(word ^ tl.load(seed + 1).to(tl.uint32, bitcast=True))
    to = work + tl.load(jobs + 4).to(tl.int64) * 3 * height * width + lanes
    for half in tl.static_range(2):
        bits = (word >> 16) if half == 0 else (word & 0xFFFF)
        noise = bits.to(tl.float32) * (2 / 65536) + (1 / 65536 - 1)
        tl.store(to + half * height * width, noise, mask=lanes < height * width)


@triton.jit
def _fetch(jobs, reals, work, height, width):
    """Pixels from displaced places, bilinear, weighed again with how much of them lay inside."""
    jobs, lanes = _block(jobs, height, width)
    size, valid = height * width, lanes < height * width
    scale = tl.load(reals + tl.load(jobs) * WORDS + DISPLACEMENT)
    moved = work + tl.load(jobs + 2).to(tl.int64) * 3 * size + lanes
    u = lanes % width + scale * tl.load(moved, mask=valid, other=0.0)
    v = lanes // width + scale * tl.load(moved + size, mask=valid, other=0.0)
    # Farther than a pixel outside is as black as a pixel outside, and has a whole number.
    u, v = tl.clamp(u, -1.0, width * 1.0), tl.clamp(v, -1.0, height * 1.0)
    left, top = tl.floor(u), tl.floor(v)
    u, v = u - left, v - top
    planes = work + tl.load(jobs + 1).to(tl.int64) * 3 * size
    inside = tl.zeros([BLOCK], tl.float32)
    red, green, blue = inside, inside, inside
    for corner in tl.static_range(4):
        x, y = left.to(tl.int32) + corner % 2, top.to(tl.int32) + corner // 2
        there = valid & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        weight = (u if corner % 2 else 1 - u) * (v if corner // 2 else 1 - v)
        place = planes + y * width + x
        red += weight * tl.load(place, mask=there, other=0.0)
        green += weight * tl.load(place + size, mask=there, other=0.0)
        blue += weight * tl.load(place + 2 * size, mask=there, other=0.0)
        inside += tl.where(there, weight, 0.0)
    _store(work, tl.load(jobs + 4), red * inside, green * inside, blue * inside, lanes, size)


# How a pass is launched: its kernel, instances a block of pixels (0: one a picture), and options.
PASSES: dict[str, tuple[Any, int, dict[str, bool]]] = {
    "mean": (_mean, 0, {}),
    "paint": (_paint, 1, {}),
    "finish": (_finish, 1, {}),
    "noise": (_noise, 1, {}),
    "fetch": (_fetch, 1, {}),
    "blur across": (_smooth, 3, {"FIELD": False, "ACROSS": True}),
    "blur down": (_smooth, 3, {"FIELD": False, "ACROSS": False}),
    "smooth across": (_smooth, 2, {"FIELD": True, "ACROSS": True}),
    "smooth down": (_smooth, 2, {"FIELD": True, "ACROSS": False}),
}


@triton.jit
def _block(jobs, height, width):
    """Where this instance's job stands, and the pixels that are its own."""
    tiles = tl.cdiv(height * width, BLOCK)
    return (
        jobs + tl.program_id(0) // tiles * JOB,
        tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK),
    )


@triton.jit
def _store(planes, target, red, green, blue, lanes, size):
    to = planes + target.to(tl.int64) * 3 * size + lanes
    tl.store(to, red, mask=lanes < size)
    tl.store(to + size, green, mask=lanes < size)
    tl.store(to + 2 * size, blue, mask=lanes < size)


@triton.jit
def _edge(at, size, REFLECT: tl.constexpr):
    """The pixel that stands for one beyond the edge."""
    if REFLECT:
        period = tl.maximum(2 * (size - 1), 1)
        at = tl.abs(at) % period
        at = tl.minimum(at, period - at)
    else:
        at = tl.minimum(tl.maximum(at, 0), size - 1)
    return at


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return x ^ (x >> 15)
