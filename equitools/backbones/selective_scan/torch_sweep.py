"""The selective scan in plain torch: a linear recurrence swept up and down a tree of radix 8.

    s_t = a_t s_{t-1} + b_t,     a_t = exp(Δ_t A),  b_t = Δ_t B_t x_t

Eight steps in a row are one step, s → (Π a) s + (their result from 0), so the last states of all
groups of eight follow from a recurrence an eighth as long, and the rest from these (Blelloch, 1990,
"Prefix Sums and Their Applications", section 1.4, with eight in place of two). With λ = dL/ds, the
gradient is the same recurrence backwards along the path and products of what it gives:

    λ_t = C_t dy_t + a_{t+1} λ_{t+1}
    dΔ_t = λ_t (A a_t s_{t-1} + B_t x_t),   dA = Σ λ_t Δ_t a_t s_{t-1},   dB_t = Σ λ_t Δ_t x_t
    dx_t = Σ λ_t Δ_t B_t + D dy_t,          dC_t = Σ s_t dy_t,            dD = Σ x_t dy_t

A few samples and channels at a time, with the channels last in memory: what is in between stays in
a processor's cache, so that it costs little to make it twice, and nothing is kept for backward but
the inputs. See selective_scan/__init__.py for the names.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RADIX = 8
# Elements (samples · positions · channels) of a direction that are worked on at a time: what a
# core's cache holds of some buffers, few launches on other devices.
BLOCK = {"cpu": 3 << 17, "cuda": 1 << 25}


def swept(
    x: Tensor, delta: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """As `cross_scan`; deterministic on a CPU, one opaque step for torch.compile."""
    return _Swept.apply(x, delta, bias, A, B, C, D)


class _Swept(torch.autograd.Function):
    """Forward and backward are operators, so that a compiler does not unroll their loops."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return _forward(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, ...]:
        return tuple(_backward(given, ctx.saved_tensors))


@torch.library.custom_op("equitools::cross_scan", mutates_args=())
def _forward(inputs: Sequence[Tensor]) -> Tensor:
    x, delta, *others = inputs
    y, tensors = torch.empty_like(x), (x, delta, *_wide(x, *others))
    for rows, channels in _blocks(x):
        _forward_block(y[rows, channels], *_cut(tensors, rows, channels))
    return y


@torch.library.custom_op("equitools::cross_scan_backward", mutates_args=())
def _backward(given: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    x, delta, *others = inputs
    tensors = (x, delta, *_wide(x, *others))
    sums = [torch.zeros_like(t) for t in tensors[2:]]
    gradients = [torch.empty_like(x), torch.empty_like(delta), *sums]
    for rows, channels in _blocks(x):
        block = (_cut(those, rows, channels) for those in (tensors, gradients))
        _backward_block(given[rows, channels], *block)
    return [g.to(t.dtype) for g, t in zip(gradients, inputs, strict=True)]


@_forward.register_fake
def _(inputs: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(inputs[0])


@_backward.register_fake
def _(given: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(t) for t in inputs]


def _forward_block(
    y: Tensor, x: Tensor, delta: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> None:
    """Write the sum of the four scans into y."""
    (inputs,) = (t.contiguous() for t in _wide(x, _last(x)))
    total = inputs * D.sum(0)
    step, a, state = (torch.empty_like(inputs).flatten(1, 2) for _ in range(3))
    for k in range(4):
        path = _Path(k, total.shape)
        path.add(delta, bias, out=step)
        path.states(path(inputs) * path.weights(B), A, step, a, state)
        path(total).addcmul_(path.rows(state), path.weights(C))
    _last(y).copy_(total)


def _backward_block(given: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Write the gradients of x and delta, and add to those of the others."""
    x, delta, bias, A, B, C, D = tensors
    dx, ddelta, dbias, dA, dB, dC, dD = gradients
    inputs, outputs = (t.contiguous() for t in _wide(x, _last(x), _last(given)))
    total = outputs * D.sum(0)
    dD += (outputs * inputs).sum((0, 1, 2))
    step, slope, state, p, q = (torch.empty_like(inputs).flatten(1, 2) for _ in range(5))
    # One position more than the path has: a is a view, and a of its neighbors is another.
    padded = p.new_empty(p.shape[0], p.shape[1] + 1, p.shape[2])
    for k in range(4):
        path = _Path(k, total.shape)
        b, c, a = path.weights(B), path.weights(C), padded[:, path.earlier]
        path.add(delta, bias, out=step)
        torch.sigmoid(step, out=slope)  # dΔ/ddelta
        path.states(torch.mul(path(inputs), b, out=path.rows(q)), A, step, a, state)
        torch.mul(path(outputs), path.rows(state), out=path.rows(p))
        path(dC[:, k]).add_(path.rows(p).sum(-1))
        torch.mul(path(outputs), c, out=path.rows(p))
        λ = scan_(padded[:, path.later], p, backwards=not path.backwards)
        a[:, path.later].mul_(state[:, path.earlier])  # a_t s_{t-1}
        a[:, path.first].zero_()
        torch.addcmul(q, a, A[k], out=q).mul_(λ).mul_(slope)
        path(_last(ddelta[:, k])).copy_(path.rows(q))
        dbias[k] += q.sum((0, 1))
        λ.mul_(step)
        dA[k] += a.mul_(λ).sum((0, 1))
        path(total).addcmul_(path.rows(λ), b)
        path(dB[:, k]).add_(path.rows(λ).mul_(path(inputs)).sum(-1))
    _last(dx).copy_(total)


class _Path:
    """Direction k through pictures n h w c: by rows or columns, ahead or backwards.

    Where it goes backwards, first, earlier and later are places of memory all the same.
    """

    def __init__(self, k: int, shape: torch.Size) -> None:
        self.k, self.backwards = k, k >= 2
        self.sides = (shape[2], shape[1]) if k % 2 else (shape[1], shape[2])
        self.first = -1 if self.backwards else 0
        self.earlier, self.later = slice(None, -1), slice(1, None)
        if self.backwards:
            self.earlier, self.later = self.later, self.earlier

    def __call__(self, picture: Tensor) -> Tensor:
        """A view of n h w ... with the positions of the path in order of memory, n p q ..."""
        return picture.transpose(1, 2) if self.k % 2 else picture

    def rows(self, flat: Tensor) -> Tensor:
        """A view n p q c of n (p q) c."""
        return flat.unflatten(1, self.sides)

    def weights(self, of_all: Tensor) -> Tensor:
        """This direction's part n p q 1 of n 4 h w."""
        return self(of_all[:, self.k, ..., None])

    def add(self, delta: Tensor, bias: Tensor, *, out: Tensor) -> None:
        """delta + bias, n (p q) c."""
        raw = self(_last(delta[:, self.k])).to(out.dtype)
        torch.add(raw, bias[self.k], out=self.rows(out))

    def states(self, brought: Tensor, A: Tensor, step: Tensor, a: Tensor, state: Tensor) -> None:
        """From delta + bias in `step` and B x n p q c to Δ, a and the states in their places."""
        # softplus, without the exponential of what is large enough to be its own softplus
        torch.clamp(step, max=80, out=a).exp_().log1p_()
        torch.maximum(step, a, out=step)
        torch.mul(self.rows(step), brought, out=self.rows(state))
        torch.mul(step, A[self.k], out=a).exp_()
        scan_(a, state, backwards=self.backwards)


def scan_(a: Tensor, b: Tensor, *, backwards: bool = False) -> Tensor:
    """h_t = a_t h_{t-1} + b_t (backwards: a_t h_{t+1} + b_t) in the place of b; all n t c.

    The first state is b there: what a says of it is not used, whatever it is.
    """
    length = b.shape[1]
    groups = length // RADIX if length >= 2 * RADIX else 0
    done = groups * RADIX
    if groups:
        ends = slice(length - done, None) if backwards else slice(done)
        _scan_groups(a[:, ends], b[:, ends], backwards)
    order = range(length)[::-1] if backwards else range(length)
    for t in range(max(done, 1), length):
        b[:, order[t]].addcmul_(a[:, order[t]], b[:, order[t - 1]])
    return b


def _scan_groups(a: Tensor, b: Tensor, backwards: bool) -> None:
    """scan_ for a whole number of groups: up to their ends, over these, and down again."""
    way = -1 if backwards else 1
    a_at, b_at = (t.unflatten(1, (-1, RADIX)).unbind(2)[::way] for t in (a, b))
    product, end = a_at[0] * a_at[1], torch.addcmul(b_at[1], a_at[1], b_at[0])
    for a_j, b_j in zip(a_at[2:], b_at[2:], strict=True):
        product.mul_(a_j)
        torch.addcmul(b_j, a_j, end, out=end)
    scan_(product, end, backwards=backwards)
    earlier, later = (slice(None, -1), slice(1, None))[::way]
    b_at[0][:, later].addcmul_(a_at[0][:, later], end[:, earlier])
    for j in range(1, RADIX - 1):
        b_at[j].addcmul_(a_at[j], b_at[j - 1])
    b_at[-1].copy_(end)


def _blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Samples and channels of b d h w that are worked on together; 16 channels fill registers."""
    limit = BLOCK["cpu" if x.device.type == "cpu" else "cuda"]
    samples, channels, h, w = x.shape
    pieces = math.ceil(channels * h * w / limit)
    width = 16 * math.ceil(channels / pieces / 16)
    number = max(limit // (min(width, channels) * h * w), 1)
    for i in range(0, samples, number):
        for j in range(0, channels, width):
            yield slice(i, i + number), slice(j, j + width)


def _cut(tensors: Sequence[Tensor], rows: slice, channels: slice) -> tuple[Tensor, ...]:
    """What belongs to some samples and channels of x, delta, bias, A, B, C and D; views."""
    x, delta, bias, A, B, C, D = tensors
    bias, A, D = (t[:, channels] for t in (bias, A, D))
    return x[rows, channels], delta[rows, :, channels], bias, A, B[rows], C[rows], D


def _last(picture: Tensor) -> Tensor:
    """n c h w → n h w c, a view."""
    return picture.permute(0, 2, 3, 1)


def _wide(x: Tensor, *tensors: Tensor) -> list[Tensor]:
    """In the precision of the states."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [t.to(wide) for t in tensors]
