"""SimCLR: tell a picture's other view from the views of all other pictures of the batch.

    ℓ(i, j) = -log ( exp(cos(z_i, z_j) / τ) / Σ_{k ≠ i} exp(cos(z_i, z_k) / τ) )
    L       = mean over the 2N ordered positive pairs (i, j) of ℓ(i, j)

over the N pictures of all processes (Chen et al., 2020, "A Simple Framework for Contrastive
Learning of Visual Representations", Eq. 1). The released code adds the two views' means, which is
2 L; under LARS the factor does nothing, and the ports and the paper have the mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitools.core.records import Step
from equitools.nn import collapse
from equitools.nn.heads import mlp
from equitools.nn.losses.info_nce import similarities
from equitools.nn.term import two_views


class SimCLR(nn.Module):
    """SimCLR: NT-Xent over all views of the batch (Chen et al., 2020).

    Reads `.invariant` of two views, b d. hidden_dim: of the projector; None is the width of the
    representation. The projector sees both views at once, and so does its batch norm; after the
    last layer batch norm has a scale and no shift. temperature: 0.1 on ImageNet, 0.5 on CIFAR.
    """

    target = False
    split = False
    actions: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    exports = "online"
    pairs = "embedding"
    crops = "two"

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int | None = None,
        out_dim: int = 128,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.knobs: dict[str, Any] = {"hidden_dim": hidden_dim, "out_dim": out_dim}
        (self.projector,) = self.make_heads(dim)
        self.temperature = temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The mean cross-entropy in nats; ln(2N - 1) when every view looks the same."""
        first, second = two_views(step, "simclr")
        z1, z2 = self.projector(torch.cat([first.invariant, second.invariant])).chunk(2)
        positives, negatives = similarities(z1, z2)
        others = torch.logsumexp(negatives / self.temperature, dim=1)
        # -log(e^p / (e^p + e^o)) = log(1 + e^(o - p))
        return {"simclr": F.softplus(others - positives / self.temperature).mean()}

    def momentum(self, done: float) -> float | None:
        """None: SimCLR keeps no slow network."""
        return None

    def heads(self) -> list[nn.Module]:
        """The projector; a regularizer may balance its own against it."""
        return [self.projector]

    def make_heads(self, dim: int, **knobs: Any) -> list[nn.Module]:
        """A fresh projector for another width, with some knobs changed."""
        made = {**self.knobs, **knobs}
        return [mlp(dim, made["hidden_dim"] or dim, made["out_dim"], out_norm="scale")]

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Signs of collapse: log10 Σp² of the head and mean |z| of the representation."""
        return collapse.vital_signs(self, step)
