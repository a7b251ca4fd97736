"""Heads of equal size: L_PReg (Song et al., 2024, "CLeVER").

balance   mean over heads | S(h_I) - S(h_V) |,   S = Σ p²"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from equitools.nn.heads import WeightNormLinear

Norm = Literal["squared", "root"]
ScaleFree = Literal["keep", "drop"]


def magnitude(
    head: nn.Module, *, norm: Norm = "squared", scale_free: ScaleFree = "keep", gains: bool = True
) -> Tensor:
    """S(h): the sum of squares of all parameters of a head, or its root; a scalar.

    norm: "squared" (what trained the published models) or "root" (as printed). scale_free:
    "drop" leaves out weight-normed directions, whose lengths do not change the function.
    gains: count the gains of weight-normed layers.
    """
    skipped: set[int] = set()
    for module in head.modules():
        if isinstance(module, WeightNormLinear):
            skipped |= {id(module.weight_v)} if scale_free == "drop" else set()
            skipped |= set() if gains else {id(module.weight_g)}
    squares = [p.float().square().sum() for p in head.parameters() if id(p) not in skipped]
    power = torch.stack(squares).sum()
    return power.sqrt() if norm == "root" else power


def balance(
    invariant: Sequence[nn.Module],
    equivariant: Sequence[nn.Module],
    *,
    norm: Norm = "squared",
    scale_free: ScaleFree = "keep",
) -> Tensor:
    """L_PReg: heads are paired by position, |S(h_I) - S(h_V)| is averaged over the pairs.

    When a pair's output widths differ, its gains (ones, one for each output) are left out: they
    would add a constant that training cannot move. Song et al., 2024; the released code pairs
    DDCL's projectors and predictors separately and uses squares.
    """
    gaps = []
    for first, second in zip(invariant, equivariant, strict=True):
        gains = getattr(first, "out_dim", None) == getattr(second, "out_dim", None)
        sizes = [
            magnitude(head, norm=norm, scale_free=scale_free, gains=gains)
            for head in (first, second)
        ]
        gaps.append((sizes[0] - sizes[1]).abs())
    return torch.stack(gaps).mean()
