"""Rows of outputs: what they are worth against a target, and their gradient in their place.

logits n r K are those of n views before the columns' scale K (s = scale · logits); target r K is
the same for all of them. Each function returns values n r and factors n r, and when asked writes
gradients into `logits` so that dvalue/ds = factor · logits. The equations are in prototypes.py;
prototypes_triton.py has the same three functions for NVIDIA GPUs.
"""

import torch
from torch import Tensor


def assign(logits: Tensor, scale: Tensor, shift: Tensor, unit: bool) -> Tensor:
    """softmax(scale · logits - shift) over the last axis, in float32 at least; unit: length 1."""
    probabilities = torch.addcmul(-shift, logits, scale).softmax(-1)
    return probabilities.div_(probabilities.norm(dim=-1, keepdim=True)) if unit else probabilities


def cross_entropy(
    logits: Tensor, scale: Tensor, target: Tensor, count: int, gradient: bool
) -> tuple[Tensor, Tensor]:
    """-Σ target · log softmax(s), for a target that is the sum of `count` distributions."""
    values = []
    for view in logits:  # one at a time, so that what is in between stays in the cache
        s = _scaled(view, scale)
        log = s.log_softmax(-1)
        values.append(-torch.mul(log, target, out=s).sum(-1))
        if gradient:
            view.copy_(torch.sub(log.exp_(), target, alpha=1 / count, out=s))
    stacked = torch.stack(values)
    return stacked, torch.full_like(stacked, count)


def overlap(
    logits: Tensor, scale: Tensor, target: Tensor, unit: bool, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Σ target · p with p = softmax(s); unit: with p made a vector of length 1."""
    values, factors = [], []
    for view in logits:
        s = _scaled(view, scale)
        p = s.softmax(-1)
        inner = torch.mul(p, target, out=s).sum(-1, keepdim=True)
        factor = p.norm(dim=-1, keepdim=True).reciprocal() if unit else torch.ones_like(inner)
        values.append(inner * factor)
        factors.append(factor)
        if gradient and unit:
            against = torch.mul(p, inner * factor.square(), out=s)
            view.copy_(torch.sub(target, against, out=s).mul_(p))
        elif gradient:
            view.copy_(torch.sub(target, inner, out=s).mul_(p))
    return torch.cat(values, 1).T, torch.cat(factors, 1).T


def _scaled(view: Tensor, scale: Tensor) -> Tensor:
    """scale · view with the precision of the scale; in place where that is the view's."""
    return view.mul_(scale) if view.dtype == scale.dtype else view * scale
