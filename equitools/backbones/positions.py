"""Fixed positions of a ViT's patches: sines and cosines of their two coordinates.

    e(x, y) = [ sin ω x, cos ω x, sin ω y, cos ω y ],   ω_k = 10000^(-4k/d),  k < d/4

on the patch grid, and 0 for the class token (Vaswani et al., 2017, in two dimensions; Chen, Xie &
He, 2021, "MoCo v3").
"""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from equitools.core.errors import UsageError


def sincos(height: int, width: int, dim: int) -> Tensor:
    """Positions of height × width cells, row after row: h·w d; UsageError unless 4 divides d."""
    if dim % 4:
        raise UsageError(f"backbone.positions=sincos needs a width that 4 divides, not {dim}")
    quarter = dim // 4
    omega = 10_000 ** -(torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


@torch.no_grad()
def fix(trunk: VisionTransformer) -> None:
    """Give a timm ViT these positions, which are not trained."""
    assert trunk.pos_embed is not None
    height, width = trunk.patch_embed.grid_size
    positions = sincos(height, width, trunk.pos_embed.shape[-1])
    trunk.pos_embed.zero_()
    trunk.pos_embed[0, -len(positions) :] = positions
    trunk.pos_embed.requires_grad_(False)
