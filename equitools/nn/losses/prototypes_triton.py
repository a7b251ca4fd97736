"""The three functions of prototypes_torch.py as Triton kernels: one program a row, two passes.

The first pass reads the prototypes in pieces; every lane keeps its own running maximum and rescales
what it has added up when that rises (Milakov & Gimelshein, 2018, "Online normalizer calculation
for softmax"). The second writes. All arithmetic is in float32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 4096  # prototypes that a program has before it at a time
WARPS = 8
LOW = tl.constexpr(-1e30)  # below every logit, yet finite: the difference of two is no NaN


def assign(logits: Tensor, scale: Tensor, shift: Tensor, unit: bool) -> Tensor:
    """softmax(scale · logits - shift) over the last axis, in float32; unit: of length 1."""
    values = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    _launch(_assign, logits, scale, shift, values, UNIT=unit)
    return values


def cross_entropy(
    logits: Tensor, scale: Tensor, target: Tensor, count: int, gradient: bool
) -> tuple[Tensor, Tensor]:
    """-Σ target · log softmax(s), for a target that is the sum of `count` distributions."""
    values = scale.new_empty(logits.shape[:-1])
    _launch(
        _cross_entropy, logits, scale, target, values, target.shape[0], count, GRADIENT=gradient
    )
    return values, torch.full_like(values, count)


def overlap(
    logits: Tensor, scale: Tensor, target: Tensor, unit: bool, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Σ target · p with p = softmax(s); unit: with p made a vector of length 1."""
    values, factors = (scale.new_empty(logits.shape[:-1]) for _ in range(2))
    outputs, flags = (values, factors), {"UNIT": unit, "GRADIENT": gradient}
    _launch(_overlap, logits, scale, target, *outputs, target.shape[0], **flags)
    return values, factors


def _launch(kernel: Any, logits: Tensor, *arguments: Any, **flags: bool) -> None:
    """Run one program for each row of contiguous logits."""
    width = logits.shape[-1]
    rows = logits.numel() // width
    kernel[(rows,)](logits, width, *arguments, **flags, PIECE=PIECE, num_warps=WARPS)


@triton.jit
def _assign(logits, width, scale, shift, values, UNIT: tl.constexpr, PIECE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * width
    values += row * width
    lanes = tl.arange(0, PIECE)
    top = tl.full([PIECE], LOW, tl.float32)
    total = tl.zeros([PIECE], tl.float32)
    power = tl.zeros([PIECE], tl.float32)
    for start in range(0, width, PIECE):
        s = _shifted(logits, scale, shift, start + lanes, width)
        higher = tl.maximum(top, s)
        old, new = tl.exp(top - higher), tl.exp(s - higher)
        total = total * old + new
        power = power * old * old + new * new
        top = higher
    highest = tl.max(top, 0)
    weight = tl.exp(top - highest)
    divisor = tl.sum(total * weight, 0)
    if UNIT:
        divisor = tl.sqrt(tl.sum(power * weight * weight, 0))
    for start in range(0, width, PIECE):
        s = _shifted(logits, scale, shift, start + lanes, width)
        tl.store(values + start + lanes, tl.exp(s - highest) / divisor, mask=start + lanes < width)


@triton.jit
def _cross_entropy(
    logits,
    width,
    scale,
    target,
    values,
    samples,
    count,
    GRADIENT: tl.constexpr,
    PIECE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * width
    target += (row % samples) * width
    lanes = tl.arange(0, PIECE)
    top = tl.full([PIECE], LOW, tl.float32)
    total = tl.zeros([PIECE], tl.float32)
    inner = tl.zeros([PIECE], tl.float32)
    for start in range(0, width, PIECE):
        k = start + lanes
        s = _scaled(logits, scale, k, width)
        higher = tl.maximum(top, s)
        total = total * tl.exp(top - higher) + tl.exp(s - higher)
        inner += tl.load(target + k, mask=k < width, other=0.0) * s
        top = higher
    highest = tl.max(top, 0)
    lse = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    tl.store(values + row, count * lse - tl.sum(inner, 0))
    if GRADIENT:
        for start in range(0, width, PIECE):
            k = start + lanes
            p = tl.exp(_scaled(logits, scale, k, width) - lse)
            q = tl.load(target + k, mask=k < width, other=0.0)
            tl.store(logits + k, p - q / count, mask=k < width)


@triton.jit
def _overlap(
    logits,
    width,
    scale,
    target,
    values,
    factors,
    samples,
    UNIT: tl.constexpr,
    GRADIENT: tl.constexpr,
    PIECE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * width
    target += (row % samples) * width
    lanes = tl.arange(0, PIECE)
    top = tl.full([PIECE], LOW, tl.float32)
    total = tl.zeros([PIECE], tl.float32)
    inner = tl.zeros([PIECE], tl.float32)
    power = tl.zeros([PIECE], tl.float32)
    for start in range(0, width, PIECE):
        k = start + lanes
        s = _scaled(logits, scale, k, width)
        higher = tl.maximum(top, s)
        old, new = tl.exp(top - higher), tl.exp(s - higher)
        total = total * old + new
        inner = inner * old + new * tl.load(target + k, mask=k < width, other=0.0)
        power = power * old * old + new * new
        top = higher
    highest = tl.max(top, 0)
    weight = tl.exp(top - highest)
    divisor = tl.sum(total * weight, 0)
    product = tl.sum(inner * weight, 0) / divisor
    length = tl.sqrt(tl.sum(power * weight * weight, 0)) / divisor
    factor = 1.0 / length if UNIT else 1.0
    tl.store(values + row, product * factor)
    tl.store(factors + row, factor)
    if GRADIENT:
        slope = product / (length * length) if UNIT else 0.0
        offset = 0.0 if UNIT else product
        for start in range(0, width, PIECE):
            k = start + lanes
            p = tl.exp(_scaled(logits, scale, k, width) - highest) / divisor
            q = tl.load(target + k, mask=k < width, other=0.0)
            tl.store(logits + k, p * (q - slope * p - offset), mask=k < width)


@triton.jit
def _scaled(logits, scale, k, width):
    raw = tl.load(logits + k, mask=k < width, other=0.0).to(tl.float32)
    return tl.where(k < width, raw * tl.load(scale + k, mask=k < width, other=0.0), LOW)


@triton.jit
def _shifted(logits, scale, shift, k, width):
    shifted = _scaled(logits, scale, k, width) - tl.load(shift + k, mask=k < width, other=0.0)
    return tl.where(k < width, shifted, LOW)
