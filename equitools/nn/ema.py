"""Target networks: their parameters follow another's as an exponential moving average.

    target ← m · target + (1 - m) · online        (Tarvainen & Valpola, 2017; He et al., 2020)

Parameters only: buffers such as batch-norm statistics are its own.
"""

from copy import deepcopy
from typing import TypeVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from equitools.core import distributed

Network = TypeVar("Network", bound=nn.Module)


def copy(online: Network, *, drop_path: bool = False) -> Network:
    """A copy that takes no gradient and, unless asked, drops no paths (DINO's ViT teacher).

    Its names and shapes are those of `online`, so that one loads the other's state.
    """
    target = deepcopy(online)
    for module in target.modules():
        if isinstance(module, DropPath) and not drop_path:
            module.drop_prob = 0.0
    return target.requires_grad_(False)


@torch.no_grad()
def update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move the target's parameters one step; momentum in [0, 1], 1 leaves them where they are."""
    followers: list[Tensor] = list(target.parameters())
    leaders: list[Tensor] = list(online.parameters())
    if len(followers) != len(leaders):
        raise ValueError(f"the target has {len(followers)} parameters, online {len(leaders)}")
    if followers:
        torch._foreach_lerp_(followers, leaders, 1 - momentum)


class Center(nn.Module):
    """The running mean of a target head's logits over batches, views and processes; zero at first.

    `observe` is called with every forward pass and `move` once a step, so that accumulated
    passes count as one large batch.
    """

    value: Tensor

    def __init__(self, out_dim: int, momentum: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(out_dim))
        self.momentum = momentum
        self.seen: list[Tensor] = []

    @torch.no_grad()
    def observe(self, mean: Tensor) -> None:
        """Note a forward pass's mean logits, K, for the next move."""
        self.seen.append(mean)

    @torch.no_grad()
    def move(self) -> None:
        """Move toward the mean of what was observed since the last move, over all processes."""
        if self.seen:
            mean = distributed.mean_across(torch.stack(self.seen).mean(0))
            self.value.lerp_(mean, 1 - self.momentum)
        self.seen = []
