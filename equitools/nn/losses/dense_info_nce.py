"""A contrast of every token with the tokens of all other images, without holding their matrix.

    L = mean over i of  -q_i·k_i / τ + log( exp(q_i·k_i / τ) + Σ_j exp(q_i·n_j / τ) )

q: the tokens of a view; k_i: the token of the other view that shows the same place; n: tokens of
other images, in the other view (`cross`) or in both views (`both`). Tokens of the same image are no
negatives (Pinheiro et al., 2020). With p the softmax's probabilities the gradients of a token are

    τ ∂/∂q_i = (p_ii - 1) k_i + Σ_j p_ij n_j,    τ ∂/∂k_i = (p_ii - 1) q_i,    τ ∂/∂n_j = p_ij q_i

They are made together with the value, as prototypes.py does it, for some rows at a time: one block
of similarities is alive, and only the gradients of the tokens stay until backward.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from equitools.core import distributed
from equitools.nn.losses import blocks

Negatives = Literal["both", "cross"]

# Similarities (rows · candidates) alive at a time, of 4 bytes each: 64 and 256 MiB.
BLOCK = {"cpu": 1 << 24, "cuda": 1 << 26}


@torch.compiler.disable
def mean(queries: Tensor, keys: Tensor, *, temperature: float, negatives: Negatives) -> Tensor:
    """The mean over all tokens of all processes' images, in nats: a scalar, this process's share.

    queries: b t d, unit tokens of the images of this process. keys: b t d, those of another view at
    the same places. b may differ between processes and be 0, t may not. The mean of what the
    processes return is the loss. Negatives come from all processes, with gradient; an image that
    is alone costs 0. There are no second derivatives.
    """
    gathered, counts = distributed.gather_rows(keys)
    others = [distributed.gather_rows(queries)[0]] if negatives == "both" else []
    first = sum(counts[: distributed.rank()]) if len(counts) > 1 else 0
    wanted = torch.is_grad_enabled()
    total = _Sum.apply(queries, temperature, first, wanted, gathered, *others)
    return total * (len(counts) / max(1, sum(counts) * queries.shape[1]))


class _Sum(torch.autograd.Function):
    """The sum over queries b t d against candidates N t d, whose first hold the keys."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, temperature: float, first: int, wanted: bool, *given: Tensor
    ) -> Tensor:
        needs = ctx.needs_input_grad
        with torch.autocast(queries.device.type, enabled=False):
            low = _precision(queries)
            sides = [_Side(one, low, wanted and n) for one, n in zip(given, needs[4:], strict=True)]
            mine = _Side(queries, low, wanted and needs[0])
            total = _run(mine, sides, temperature, first)
        ctx.save_for_backward(mine.gradient, *[side.gradient for side in sides])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        # Nobody else's, and large: scaled in place unless they are asked for again.
        again = torch._C._autograd._get_current_graph_task_keep_graph()
        scale = torch.mul if again else Tensor.mul_
        queries, *candidates = [None if g is None else scale(g, given) for g in ctx.saved_tensors]
        return (queries, None, None, None, *candidates)


class _Side:
    """Unit tokens b t d, the same as a matrix for products, and their gradient if it is needed."""

    def __init__(self, tokens: Tensor, low: torch.dtype, needed: bool) -> None:
        self.tokens = tokens.detach()
        self.matrix = self.tokens.flatten(0, 1).to(low)
        self.gradient = self.tokens.new_zeros(tokens.shape) if needed else None


def _run(queries: _Side, sides: list[_Side], temperature: float, first: int) -> Tensor:
    """The sum over all queries, part by part; the gradients of all sides are divided by τ."""
    columns = sum(len(side.matrix) for side in sides)
    most = BLOCK.get(queries.tokens.device.type, BLOCK["cuda"]) // max(1, columns)
    images, tokens = queries.tokens.shape[:2]
    sums = [
        _part(queries, sides, temperature, first, *part)
        for part in _parts(images, tokens, max(1, most))
    ]
    for side in (queries, *sides):
        if side.gradient is not None:
            side.gradient.div_(temperature)
    return torch.stack(sums).sum() if sums else queries.tokens.new_zeros(())


def _parts(images: int, tokens: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut b · t rows into parts of at most so many: whole images, or a piece of one."""
    for some in blocks(images, max(1, most // max(1, tokens))):
        for rows in blocks(tokens, min(most, tokens)):
            yield some, rows


def _part(
    queries: _Side, sides: list[_Side], temperature: float, first: int, images: slice, tokens: slice
) -> Tensor:
    """The sum over some rows; notes the gradients (without 1/τ)."""
    q = queries.tokens[images, tokens]
    own = slice(first + images.start, first + images.stop)
    k = sides[0].tokens[own, tokens]
    positive = (q * k).sum(-1).flatten() / temperature
    logits = [_logits(q, side, temperature, own) for side in sides]
    top = torch.stack([positive, *[block.amax(1) for block in logits]]).amax(0)
    logits = [block.sub_(top[:, None]).exp_() for block in logits]
    share = (positive - top).exp()
    mass = share + torch.stack([block.sum(1) for block in logits]).sum(0)
    _note(queries, sides, (images, own, tokens), logits, share / mass - 1, 1 / mass)
    return (top + mass.log() - positive).sum()


def _logits(q: Tensor, side: _Side, temperature: float, own: slice) -> Tensor:
    """q p r d against all candidates, p·r N·t: cosines over τ, -inf within an image."""
    logits = q.flatten(0, 1).to(side.matrix.dtype) @ side.matrix.T
    logits = logits.to(q.dtype).div_(temperature)
    images = torch.arange(len(q), device=q.device)
    cells = logits.view(*q.shape[:2], *side.tokens.shape[:2])
    cells[images, :, images + own.start] = -torch.inf
    return logits


def _note(
    queries: _Side,
    sides: list[_Side],
    place: tuple[slice, slice, slice],
    weights: list[Tensor],
    pull: Tensor,
    scale: Tensor,
) -> None:
    """Add the gradients of some rows, whose probabilities are scale · weights; pull: p_ii - 1."""
    images, own, tokens = place
    q, k = queries.tokens[images, tokens], sides[0].tokens[own, tokens]
    pull, scale = pull.view(*q.shape[:2], 1), scale[:, None]
    low = sides[0].matrix.dtype
    if queries.gradient is not None:
        push = [block.to(low) @ side.matrix for block, side in zip(weights, sides, strict=True)]
        pushed = torch.stack(push).sum(0).to(q.dtype) * scale
        queries.gradient[images, tokens] = pull * k + pushed.view_as(q)
    scaled = (q.flatten(0, 1) * scale).to(low)
    for block, side in zip(weights, sides, strict=True):
        if side.gradient is not None:
            side.gradient.view(-1, q.shape[-1]).add_(block.to(low).T @ scaled)
    if sides[0].gradient is not None:
        sides[0].gradient[own, tokens] += pull * q


def _precision(tokens: Tensor) -> torch.dtype:
    """What products are made in: bfloat16 under its autocast, else the tokens' own."""
    device = tokens.device.type
    low = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if low else tokens.dtype
