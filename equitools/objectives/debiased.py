"""Debiased contrastive learning: correct the negatives for those that are of the same class.

    g   = max( (Σ_neg e^{s/τ} - τ⁺ N e^{s⁺/τ}) / (1 - τ⁺),  N e^{-1/τ} ),   N = 2B - 2 negatives
    L   = mean of -log ( e^{s⁺/τ} / (e^{s⁺/τ} + g) )

with s the cosine to a negative, s⁺ to the other view, and τ⁺ the chance that a negative is of the
same class (Chuang et al., 2020, "Debiased Contrastive Learning", Eq. 7 and 8 with M = 1). It is
SimCLR's loss at τ⁺ = 0.
"""

import math

import torch
from torch import Tensor, nn

from equitools.core.errors import UsageError
from equitools.core.records import Step
from equitools.nn.heads import mlp
from equitools.nn.losses.info_nce import similarities
from equitools.nn.term import Objective, two_views


class Debiased(Objective):
    """Debiased contrastive loss over all views of the batch (Chuang et al., 2020).

    Reads `.invariant` of two views, b d. tau_plus: the chance that a negative is of the same
    class, in [0, 1). The projector is the released code's: one hidden layer with batch norm.
    """

    apart = True  # the released code calls the network once a view
    crops = "two"

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int = 512,
        out_dim: int = 128,
        temperature: float = 0.5,
        tau_plus: float = 0.1,
    ) -> None:
        super().__init__(hidden_dim=hidden_dim, out_dim=out_dim)
        if not 0 <= tau_plus < 1:
            raise UsageError(f"debiased.tau_plus is {tau_plus:g}; it is a chance in [0, 1)")
        (self.projector,) = self.make_heads(dim)
        self.temperature, self.tau_plus = temperature, tau_plus

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The mean loss in nats, 0 or more."""
        z1, z2 = (self.projector(view) for view in two_views(step, "debiased"))
        positives, negatives = similarities(z1, z2)
        # All exponentials are taken times e^{-1/τ}, so that none is above 1; L does not change.
        positive = torch.exp((positives - 1) / self.temperature)
        others = torch.exp((negatives - 1) / self.temperature).sum(1)
        number = negatives.shape[1] - 2
        corrected = (others - self.tau_plus * number * positive) / (1 - self.tau_plus)
        corrected = corrected.clamp(min=number * math.exp(-2 / self.temperature))
        return {"debiased": torch.log1p(corrected / positive).mean()}

    @staticmethod
    def new_heads(dim: int, *, hidden_dim: int, out_dim: int) -> list[nn.Module]:
        """A projector."""
        return [mlp(dim, hidden_dim, out_dim, out_bias=True)]
