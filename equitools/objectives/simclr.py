"""SimCLR: tell a picture's other view from the views of all other pictures of the batch.

    ℓ(i, j) = -log ( exp(cos(z_i, z_j) / τ) / Σ_{k ≠ i} exp(cos(z_i, z_k) / τ) )
    L       = mean over the 2N ordered positive pairs (i, j) of ℓ(i, j)

over the N pictures of all processes (Chen et al., 2020, "A Simple Framework for Contrastive
Learning of Visual Representations", Eq. 1). The released code adds the two views' means, which is
2 L; under LARS the factor does nothing, and the ports and the paper have the mean.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitools.core.records import Step
from equitools.nn.heads import mlp
from equitools.nn.losses.info_nce import similarities
from equitools.nn.term import Objective, two_views


class SimCLR(Objective):
    """SimCLR: NT-Xent over all views of the batch (Chen et al., 2020).

    Reads `.invariant` of two views, b d. hidden_dim: of the projector; None is the width of the
    representation. The projector sees both views at once, and so does its batch norm; after the
    last layer batch norm has a scale and no shift. temperature: 0.1 on ImageNet, 0.5 on CIFAR.
    """

    crops = "two"

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int | None = None,
        out_dim: int = 128,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(hidden_dim=hidden_dim, out_dim=out_dim)
        (self.projector,) = self.make_heads(dim)
        self.temperature = temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The mean cross-entropy in nats; ln(2N - 1) when every view looks the same."""
        z1, z2 = self.projector(torch.cat(two_views(step, "simclr"))).chunk(2)
        positives, negatives = similarities(z1, z2)
        others = torch.logsumexp(negatives / self.temperature, dim=1)
        # -log(e^p / (e^p + e^o)) = log(1 + e^(o - p))
        return {"simclr": F.softplus(others - positives / self.temperature).mean()}

    @staticmethod
    def new_heads(dim: int, *, hidden_dim: int | None, out_dim: int) -> list[nn.Module]:
        """A projector."""
        return [mlp(dim, hidden_dim or dim, out_dim, out_norm="scale")]
