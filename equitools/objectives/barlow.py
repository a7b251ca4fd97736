"""Barlow Twins: make the cross-correlation of two views' embeddings the identity.

    C = Ẑ_1ᵀ Ẑ_2 / B,    L = Σ_i (1 - C_ii)² + λ Σ_{i ≠ j} C_ij²

with Ẑ the embeddings normalized along the batch (Zbontar et al., 2021, Eq. 1 and 2). B, the
statistics and C are those of all processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equitools.core import distributed
from equitools.core.records import Step
from equitools.nn import collapse
from equitools.nn.heads import mlp
from equitools.nn.term import two_views


class Barlow(nn.Module):
    """Barlow Twins: reduce redundancy between the dimensions of two views (Zbontar et al., 2021).

    Reads `.invariant` of two views, b d. hidden_dim, out_dim, nlayers: of the projector
    (8192-8192-8192). lambd weighs the off-diagonal terms.
    """

    target = False
    split = False
    actions: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    exports = "online"
    apart = True  # the released code calls the network once a view
    pairs = "embedding"
    crops = "two"

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int = 8192,
        out_dim: int = 8192,
        nlayers: int = 3,
        lambd: float = 0.0051,
    ) -> None:
        super().__init__()
        self.knobs = {"hidden_dim": hidden_dim, "out_dim": out_dim, "nlayers": nlayers}
        (self.projector,) = self.make_heads(dim)
        self.normalize = nn.BatchNorm1d(out_dim, affine=False)
        self.lambd = lambd

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The sum over the matrix, 0 or more; d for unrelated views, 0 for C = 1."""
        correlation = self.correlation(step)
        diagonal = (1 - correlation.diagonal()).square().sum()
        return {"barlow": diagonal + self.lambd * off_diagonal(correlation).square().sum()}

    def correlation(self, step: Step) -> Tensor:
        """C, d d, over the batches of all processes; in float32."""
        views = [self.projector(f.invariant) for f in two_views(step, "barlow")]
        z1, z2 = (self.normalize(z.float()) for z in views)
        # Autocast would round a sum over the batch to bf16.
        with torch.autocast(z1.device.type, enabled=False):
            return distributed.sum_across(z1.T @ z2 / (len(z1) * distributed.world_size()))

    def momentum(self, done: float) -> float | None:
        """None: there is no slow network."""
        return None

    def heads(self) -> list[nn.Module]:
        """The projector; a regularizer may balance its own against it."""
        return [self.projector]

    def make_heads(self, dim: int, **knobs: Any) -> list[nn.Module]:
        """A fresh projector for another width, with some knobs changed."""
        made = {**self.knobs, **knobs}
        return [mlp(dim, *[made["hidden_dim"]] * (made["nlayers"] - 1), made["out_dim"])]

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Signs of collapse: log10 Σp² of the head and mean |z| of the representation."""
        return collapse.vital_signs(self, step)


def off_diagonal(square: Tensor) -> Tensor:
    """The elements of a d d matrix that are not on its diagonal, as d - 1 d."""
    d = len(square)
    return square.flatten()[:-1].view(d - 1, d + 1)[:, 1:]
