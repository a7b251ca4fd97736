"""A block of VMamba: scan the map along four paths, then mix the channels of each pixel.

    x ← x + S(norm x),   x ← x + M(norm₂ x),   S = out · norm · scan · SiLU · conv₃ₓ₃ · in

The scan (selective_scan) is one recurrence s_t = exp(Δ_t A) s_{t-1} + Δ_t B_t x_t,
y_t = C_t s_t + D x_t per channel and path: rows, columns, and both backward; Δ, B and C are
projections of x (Liu et al., 2024, "VMamba: Visual State Space Model", section 4).
"""

import math

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from equitools.backbones.selective_scan import cross_scan

PATHS = 4


class Block(nn.Module):
    """Scan, then mix: b h w d → b h w d, each branch dropped for whole samples at `rate`."""

    def __init__(self, dim: int, rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = Scanner(dim)
        self.drop_path = DropPath(rate)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """b h w d → b h w d."""
        x = x + self.drop_path(self.op(self.norm(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Scanner(nn.Module):
    """SS2D without gate: b h w d → b h w d; Δ has rank ⌈d/16⌉.

    A pixel's Δ, B and C do not depend on the path by which it is reached, only their weights do,
    so one product makes those of all paths in the order of the picture.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        rank = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, dim, bias=False)
        self.conv2d = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.x_proj_weight = nn.Parameter(_uniform(dim**-0.5, PATHS, rank + 2, dim))
        self.dt_projs_weight = nn.Parameter(_uniform(rank**-0.5, PATHS, dim, rank))
        self.dt_projs_bias = nn.Parameter(_first_steps(PATHS, dim))
        self.A_logs = nn.Parameter(torch.zeros(PATHS * dim, 1))
        self.Ds = nn.Parameter(torch.ones(PATHS * dim))
        self.out_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """b h w d → b h w d."""
        x = F.silu(self.conv2d(planes(self.in_proj(x))))
        delta, b, c = self.projected(x)
        bias, logs, d = map(_wide, (self.dt_projs_bias, self.A_logs, self.Ds))
        a = -torch.exp(logs)
        y = cross_scan(x, delta, bias, a.view(PATHS, -1), b, c, d.view(PATHS, -1))
        return self.out_proj(self.out_norm(pixels(y)))

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Δ before bias and softplus b 4 d h w, B and C b 4 h w, of a map b d h w."""
        rank = self.dt_projs_weight.shape[2]
        mixed = F.linear(pixels(x), self.x_proj_weight.flatten(0, 1))
        mixed = mixed.unflatten(3, (PATHS, rank + 2)).permute(3, 0, 1, 2, 4)  # 4 b h w rank+2
        low, b, c = mixed.split([rank, 1, 1], dim=4)
        delta = torch.bmm(low.flatten(1, 3), self.dt_projs_weight.mT)
        delta = delta.unflatten(1, low.shape[1:4]).permute(1, 0, 4, 2, 3)
        return delta, b.squeeze(4).transpose(0, 1), c.squeeze(4).transpose(0, 1)


def start(layer: nn.Module) -> None:
    """Linear layers start small, as the release's do; convolutions as torch's."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _uniform(bound: float, *shape: int) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound)


def _first_steps(*shape: int, shortest: float = 0.001, longest: float = 0.1) -> Tensor:
    """Biases whose softplus, the step Δ, is log-uniform from `shortest` to `longest`."""
    step = torch.exp(torch.empty(shape).uniform_(math.log(shortest), math.log(longest)))
    return step + torch.log(-torch.expm1(-step))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pixels(x: Tensor) -> Tensor:
    """b d h w → b h w d; nothing is copied."""
    return x.permute(0, 2, 3, 1)


def planes(x: Tensor) -> Tensor:
    """b h w d → b d h w; nothing is copied."""
    return x.permute(0, 3, 1, 2)
