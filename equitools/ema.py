"""Slow copies: a network whose parameters follow another's as an exponential moving average.

    slow ← m · slow + (1 - m) · online        (Tarvainen & Valpola, 2017; He et al., 2020)

Parameters only: buffers such as batch-norm statistics are the slow network's own.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def slow_copy(online: Network, *, drop_path: bool = False) -> Network:
    """A copy that takes no gradient and, unless asked, drops no paths (DINO's ViT teacher).

    Its names and shapes are those of `online`, so that one loads the other's state.
    """
    slow = copy.deepcopy(online)
    for module in slow.modules():
        if isinstance(module, DropPath) and not drop_path:
            module.drop_prob = 0.0
    return slow.requires_grad_(False)


@torch.no_grad()
def update(slow: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move the slow parameters one step; momentum in [0, 1], 1 leaves them where they are."""
    followers: list[Tensor] = list(slow.parameters())
    leaders: list[Tensor] = list(online.parameters())
    if len(followers) != len(leaders):
        raise ValueError(f"slow copy has {len(followers)} parameters, online {len(leaders)}")
    if followers:
        torch._foreach_lerp_(followers, leaders, 1 - momentum)
