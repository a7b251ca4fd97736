"""Barlow Twins: make the cross-correlation of two views' embeddings the identity.

    C = Ẑ_1ᵀ Ẑ_2 / B,    L = Σ_i (1 - C_ii)² + λ Σ_{i ≠ j} C_ij²

with Ẑ the embeddings normalized along the batch (Zbontar et al., 2021, Eq. 1 and 2). B, the
statistics and C are those of all processes.
"""

import torch
from torch import Tensor, nn

from equitools.core import distributed
from equitools.core.records import Step
from equitools.nn.heads import mlp
from equitools.nn.term import Objective, two_views


class Barlow(Objective):
    """Barlow Twins: reduce redundancy between the dimensions of two views (Zbontar et al., 2021).

    Reads `.invariant` of two views, b d. hidden_dim, out_dim, nlayers: of the projector
    (8192-8192-8192). lambd weighs the off-diagonal terms.
    """

    apart = True  # the released code calls the network once a view
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
        super().__init__(hidden_dim=hidden_dim, out_dim=out_dim, nlayers=nlayers)
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
        views = [self.projector(view) for view in two_views(step, "barlow")]
        z1, z2 = (self.normalize(z.float()) for z in views)
        # Autocast would round a sum over the batch to bf16.
        with torch.autocast(z1.device.type, enabled=False):
            return distributed.sum_across(z1.T @ z2 / (len(z1) * distributed.world_size()))

    @staticmethod
    def new_heads(dim: int, *, hidden_dim: int, out_dim: int, nlayers: int) -> list[nn.Module]:
        """A projector."""
        return [mlp(dim, *[hidden_dim] * (nlayers - 1), out_dim)]


def off_diagonal(square: Tensor) -> Tensor:
    """The elements of a d d matrix that are not on its diagonal, as d - 1 d."""
    d = len(square)
    return square.flatten()[:-1].view(d - 1, d + 1)[:, 1:]
