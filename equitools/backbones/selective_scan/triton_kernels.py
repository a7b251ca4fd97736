"""The scan of selective_scan/__init__.py along all four directions in Triton, forward and backward.

A direction is a start and two steps in memory, from line to line and along a line, so that nothing
is flattened or copied. A program is one warp: it walks one picture's 32 channels, a thread each,
along a direction (or along several in turn, adding up), CHUNK positions of a line at a time, with
the float32 state carried on. A thread has all positions of a chunk and scans alone: no shuffles.

The state before every chunk is kept for the backward. That walks from the last chunk to the first,
computes the states of a chunk again, and scans against the path for g_t = ∂loss/∂s_t:

    g_t = C_t ∂y_t + a_{t+1} g_{t+1},   a_t = exp(Δ_t A),   u_t = a_t s_{t-1}
    ∂B_t = Σ_d g_t Δ_t x_t    ∂C_t = Σ_d ∂y_t s_t    ∂x_t = g_t Δ_t B_t + D ∂y_t
    ∂Δ_t = g_t (B_t x_t + A u_t)    ∂A = Σ_t g_t Δ_t u_t    ∂D = Σ_t ∂y_t x_t

Sums over channels, directions and pictures are of parts and in a fixed order: no atomics, the same
bits every time. Parts of y and ∂x have the type of x, all others are float32.

x, delta and the gradient of y may have any strides; fast are those with channels innermost in
memory (b h w d, b 4 h w d). A small batch leaves a large GPU idle: there are at most 4 b d / 32
warps, and each walks a whole picture.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.language import constexpr

CHUNK = 8  # positions that a thread has in registers
CHANNELS = 32  # of a program: one a thread
OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}
PROGRAMS = 1536  # as few as this (12 warps on each of 128 multiprocessors) keep a GPU busy


def fused(
    x: Tensor, delta: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """`cross_scan` for CUDA tensors; y b d h w has its channels innermost in memory."""
    bias, A, D = (one.float().contiguous() for one in (bias, A, D))
    inputs = x, delta, bias, A, B.contiguous(), C.contiguous(), D
    if torch.is_grad_enabled() and any(one.requires_grad for one in inputs):
        return _Fused.apply(*inputs)
    return _walked(inputs, keep=False)[0]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        y, states = _walked(inputs, keep=True)
        ctx.save_for_backward(*inputs, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, ...]:
        *inputs, states = ctx.saved_tensors
        return _walked_back(given, tuple(inputs), states)


def _walked(inputs: tuple[Tensor, ...], *, keep: bool) -> tuple[Tensor, Tensor | None]:
    """y, and the state before every chunk (None where it is not kept)."""
    x, delta, _, A, *_ = inputs
    (b, d, h, w), chunk, turns = x.shape, _chunk(x), _turns(x)
    chunks = max(h * triton.cdiv(w, chunk), w * triton.cdiv(h, chunk))
    states = A.new_empty(b, 4, chunks, d) if keep else None
    parts = x.new_empty(4 // turns, b, h, w, d)
    sizes, strides = (b, d, h, w, chunks), (x.stride(), delta.stride())
    programs = b * parts.shape[0] * triton.cdiv(d, CHANNELS)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _forward[(programs,)](
            inputs, (parts, states), sizes, strides, turns, chunk, CHANNELS, **OPTIONS
        )
    return _added(parts), states


def _walked_back(given: Tensor, inputs: tuple[Tensor, ...], states: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the seven inputs."""
    x, delta, _, A, B, C, _ = inputs
    (b, d, h, w), turns, blocks = x.shape, _turns(x), triton.cdiv(x.shape[1], CHANNELS)
    parts = x.new_empty(4 // turns, b, h, w, d)
    slopes = delta.new_empty(b, 4, h, w, d)
    weights = A.new_empty(3, b, 4, d)
    inner = A.new_empty(2, blocks, b, 4, h, w)
    inputs, outputs = (*inputs, given, states), (parts, slopes, *weights, *inner)
    sizes, strides = (b, d, h, w, states.shape[2]), (x.stride(), delta.stride(), given.stride())
    programs = b * parts.shape[0] * blocks
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _backward[(programs,)](
            inputs, outputs, sizes, strides, turns, _chunk(x), CHANNELS, **OPTIONS
        )
    dB, dC = inner.sum(1)
    dbias, dA, dD = weights.sum(1)
    dx, ddelta = _added(parts), slopes.permute(0, 1, 4, 2, 3)
    return dx, ddelta, dbias, dA, dB.to(B.dtype), dC.to(C.dtype), dD


def _chunk(x: Tensor) -> int:
    """Positions at a time: no more than the longer side needs."""
    return min(CHUNK, triton.next_power_of_2(max(x.shape[2:])))


def _turns(x: Tensor) -> int:
    """How many directions a program walks: the more, the fewer parts, but programs must suffice."""
    programs = len(x) * triton.cdiv(x.shape[1], CHANNELS)
    return 4 if programs >= PROGRAMS else 2 if 2 * programs >= PROGRAMS else 1


def _added(parts: Tensor) -> Tensor:
    """The sum of n b h w d over n, as b d h w."""
    # Without its type autocast would make the sum float32.
    total = parts.sum(0, dtype=parts.dtype) if len(parts) > 1 else parts[0]
    return total.permute(0, 3, 1, 2)


@triton.jit
def _forward(
    inputs, outputs, sizes, strides, TURNS: constexpr, CHUNK: constexpr, CHANNELS: constexpr
):
    x, delta, bias, A, B, C, D = inputs
    parts, states = outputs
    b, d, h, w, chunks = sizes
    x_sample, x_channel, x_down, x_right = strides[0]
    delta_sample, delta_direction, delta_channel, delta_down, delta_right = strides[1]
    part, sample, channel = _place(b, d, TURNS, CHANNELS)
    valid = channel < d
    x += sample * x_sample + channel * x_channel
    delta += sample * delta_sample + channel * delta_channel
    parts += (part * b + sample) * d * h * w + channel
    t = tl.arange(0, CHUNK)[:, None]
    for turn in range(TURNS):
        k, lines, length = _direction(part * TURNS + turn, h, w)
        row = sample * 4 + k
        own = k * d + channel
        shift, rate, skip = _load(bias + own, valid), _load(A + own, valid), _load(D + own, valid)
        x_from, x_line, x_step = _way(k, h, w, x_down, x_right)
        delta_from, delta_line, delta_step = _way(k, h, w, delta_down, delta_right)
        from_, pixel_line, pixel_step = _way(k, h, w, w, 1)
        delta_from += k.to(tl.int64) * delta_direction
        if states is not None:
            before = states + row * chunks * d + channel
        state = tl.zeros([1, CHANNELS], tl.float32)
        tl.debug_barrier()  # a turn adds to what the one before it has stored
        for line in range(lines):
            for start in range(0, length, CHUNK):
                if states is not None:
                    tl.store(before, state, mask=valid)
                    before += d
                at, there = start + t, start + t < length
                x_t = _load(x + x_from + line * x_line + at * x_step, there & valid)
                raw = _load(delta + delta_from + line * delta_line + at * delta_step, there & valid)
                pixel = from_ + line * pixel_line + at * pixel_step
                B_t = _load(B + row * h * w + pixel, there)
                C_t = _load(C + row * h * w + pixel, there)
                step, _ = _softplus(raw + shift)
                step = tl.where(there, step, 0.0)  # a = 1 and b = 0: the state stays
                a, s = tl.exp(step * rate), step * B_t * x_t
                s = tl.where(t == 0, a * state + s, s)
                _, s = tl.associative_scan((a, s), 0, _then)
                state = tl.sum(tl.where(t == CHUNK - 1, s, 0.0), 0, keep_dims=True)
                y = C_t * s + skip * x_t
                if TURNS > 1:
                    y += _load(parts + pixel * d, there & valid & (turn > 0))
                tl.store(parts + pixel * d, y, mask=there & valid)


@triton.jit
def _backward(
    inputs, outputs, sizes, strides, TURNS: constexpr, CHUNK: constexpr, CHANNELS: constexpr
):
    x, delta, bias, A, B, C, D, given, states = inputs
    parts, slopes, dbias, dA, dD, dB, dC = outputs
    b, d, h, w, chunks = sizes
    x_sample, x_channel, x_down, x_right = strides[0]
    delta_sample, delta_direction, delta_channel, delta_down, delta_right = strides[1]
    given_sample, given_channel, given_down, given_right = strides[2]
    part, sample, channel = _place(b, d, TURNS, CHANNELS)
    valid = channel < d
    x += sample * x_sample + channel * x_channel
    delta += sample * delta_sample + channel * delta_channel
    given += sample * given_sample + channel * given_channel
    parts += (part * b + sample) * d * h * w + channel
    t = tl.arange(0, CHUNK)[:, None]
    for turn in range(TURNS):
        k, lines, length = _direction(part * TURNS + turn, h, w)
        row, pieces = sample * 4 + k, tl.cdiv(length, CHUNK)
        own = k * d + channel
        shift, rate, skip = _load(bias + own, valid), _load(A + own, valid), _load(D + own, valid)
        x_from, x_line, x_step = _way(k, h, w, x_down, x_right)
        delta_from, delta_line, delta_step = _way(k, h, w, delta_down, delta_right)
        given_from, given_line, given_step = _way(k, h, w, given_down, given_right)
        from_, pixel_line, pixel_step = _way(k, h, w, w, 1)
        delta_from += k.to(tl.int64) * delta_direction
        before = states + (row * chunks + lines * pieces) * d + channel
        inner = (tl.program_id(0) % tl.cdiv(d, CHANNELS) * b * 4 + row) * h * w
        later = tl.zeros([1, CHANNELS], tl.float32)  # a g of the position behind the chunk
        bias_sum, A_sum, D_sum = later, later, later
        tl.debug_barrier()  # a turn adds to what the one before it has stored
        for last in range(lines * pieces, 0, -1):
            line, start = (last - 1) // pieces, (last - 1) % pieces * CHUNK
            before -= d
            state = tl.load(before, mask=valid, other=0.0)
            at, there = start + t, start + t < length
            x_t = _load(x + x_from + line * x_line + at * x_step, there & valid)
            raw = _load(delta + delta_from + line * delta_line + at * delta_step, there & valid)
            dy = _load(given + given_from + line * given_line + at * given_step, there & valid)
            pixel = from_ + line * pixel_line + at * pixel_step
            B_t, C_t = _load(B + row * h * w + pixel, there), _load(C + row * h * w + pixel, there)
            step, slope = _softplus(raw + shift)
            step = tl.where(there, step, 0.0)
            a = tl.exp(step * rate)
            u = tl.where(t == 0, a * state, 0.0)
            _, s, u = tl.associative_scan((a, u + step * B_t * x_t, u), 0, _then_both)
            g = C_t * dy + tl.where(t == CHUNK - 1, later, 0.0)
            ones = tl.full(g.shape, 1.0, tl.float32)
            _, g, _ = tl.associative_scan((ones, g, a), 0, _before, True)
            later = tl.sum(tl.where(t == 0, a * g, 0.0), 0, keep_dims=True)
            tl.store(dB + inner + pixel, tl.sum(g * step * x_t, 1, keep_dims=True), mask=there)
            tl.store(dC + inner + pixel, tl.sum(dy * s, 1, keep_dims=True), mask=there)
            dx = g * step * B_t + skip * dy
            if TURNS > 1:
                dx += _load(parts + pixel * d, there & valid & (turn > 0))
            tl.store(parts + pixel * d, dx, mask=there & valid)
            slope *= tl.where(there, g * (B_t * x_t + rate * u), 0.0)
            tl.store(slopes + row * h * w * d + channel + pixel * d, slope, mask=there & valid)
            bias_sum += tl.sum(slope, 0, keep_dims=True)
            A_sum += tl.sum(g * step * u, 0, keep_dims=True)
            D_sum += tl.sum(dy * x_t, 0, keep_dims=True)
        tl.store(dbias + row * d + channel, bias_sum, mask=valid)
        tl.store(dA + row * d + channel, A_sum, mask=valid)
        tl.store(dD + row * d + channel, D_sum, mask=valid)


@triton.jit
def _place(b, d, TURNS: constexpr, CHANNELS: constexpr):
    """A program's part, its picture and its channels."""
    blocks = tl.cdiv(d, CHANNELS)
    rest = tl.program_id(0) // blocks
    part, sample = rest % (4 // TURNS), (rest // (4 // TURNS)).to(tl.int64)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    # Said to start anywhere, or a thread would read several at once, and threads share a chunk.
    channel = tl.multiple_of(channel, 1)
    return part, sample, channel[None, :]


@triton.jit
def _direction(i, h, w):
    """The i-th direction in the order 0, 2, 1, 3 (each starts where the last ended), its lines."""
    column = i // 2
    return column + i % 2 * 2, tl.where(column == 1, w, h), tl.where(column == 1, h, w)


@triton.jit
def _way(k, h, w, down, right):
    """Where a direction starts in memory, its step from line to line and that along a line."""
    column, back = k % 2 == 1, k >= 2
    sign = tl.where(back, -1, 1)
    start = tl.where(back, (h - 1) * down + (w - 1) * right, 0)
    return start, tl.where(column, right, down) * sign, tl.where(column, down, right) * sign


@triton.jit
def _load(at, mask):
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) and its slope; 1 + e is not formed, as it drops the digits of a small e."""
    e = tl.exp(-tl.abs(x))
    # log(1 + e) / e for e in [0, 1] within 3e-8 (Chebyshev fit).
    log = (e * 0.00525345780 - 0.0295885074) * e + 0.0783616680
    log = (log * e - 0.136747697) * e + 0.191114311
    log = (log * e - 0.248443699) * e + 0.333192713
    log = (log * e - 0.499995015) * e + 0.999999971
    return tl.maximum(x, 0.0) + log * e, tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _then(a, s, next_a, next_s):
    """s ← next_a s + next_s."""
    return a * next_a, next_a * s + next_s


@triton.jit
def _then_both(a, s, u, next_a, next_s, next_u):
    """s as in _then, and u = s without what the last position brings."""
    return a * next_a, next_a * s + next_s, next_a * s + next_u


@triton.jit
def _before(weight, g, a, next_weight, next_g, next_a):
    """g ← next_weight a g + next_g: the a of a position acts on the g that leaves it."""
    factor = next_weight * a
    return factor * weight, factor * g + next_g, next_a
