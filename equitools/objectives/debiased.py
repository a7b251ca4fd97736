"""Debiased contrastive learning: correct the negatives for those that are of the same class.

    g   = max( (Σ_neg e^{s/τ} - τ⁺ N e^{s⁺/τ}) / (1 - τ⁺),  N e^{-1/τ} ),   N = 2B - 2 negatives
    L   = mean of -log ( e^{s⁺/τ} / (e^{s⁺/τ} + g) )

with s the cosine to a negative, s⁺ to the other view, and τ⁺ the chance that a negative is of the
same class (Chuang et al., 2020, "Debiased Contrastive Learning", Eq. 7 and 8 with M = 1). It is
SimCLR's loss at τ⁺ = 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from equitools.core.errors import UsageError
from equitools.core.records import Step
from equitools.nn import collapse
from equitools.nn.heads import mlp
from equitools.nn.losses.info_nce import similarities
from equitools.nn.term import two_views


class Debiased(nn.Module):
    """Debiased contrastive loss over all views of the batch (Chuang et al., 2020).

    Reads `.invariant` of two views, b d. tau_plus: the chance that a negative is of the same
    class, in [0, 1). The projector is the released code's: one hidden layer with batch norm.
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
        hidden_dim: int = 512,
        out_dim: int = 128,
        temperature: float = 0.5,
        tau_plus: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= tau_plus < 1:
            raise UsageError(f"debiased.tau_plus is {tau_plus:g}; it is a chance in [0, 1)")
        self.knobs: dict[str, Any] = {"hidden_dim": hidden_dim, "out_dim": out_dim}
        (self.projector,) = self.make_heads(dim)
        self.temperature, self.tau_plus = temperature, tau_plus

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The mean loss in nats, 0 or more."""
        z1, z2 = (self.projector(f.invariant) for f in two_views(step, "debiased"))
        positives, negatives = similarities(z1, z2)
        # All exponentials are taken times e^{-1/τ}, so that none is above 1; L does not change.
        positive = torch.exp((positives - 1) / self.temperature)
        others = torch.exp((negatives - 1) / self.temperature).sum(1)
        number = negatives.shape[1] - 2
        corrected = (others - self.tau_plus * number * positive) / (1 - self.tau_plus)
        corrected = corrected.clamp(min=number * math.exp(-2 / self.temperature))
        return {"debiased": torch.log1p(corrected / positive).mean()}

    def momentum(self, done: float) -> float | None:
        """None: there is no slow network."""
        return None

    def heads(self) -> list[nn.Module]:
        """The projector; a regularizer may balance its own against it."""
        return [self.projector]

    def make_heads(self, dim: int, **knobs: Any) -> list[nn.Module]:
        """A fresh projector for another width, with some knobs changed."""
        made = {**self.knobs, **knobs}
        return [mlp(dim, made["hidden_dim"], made["out_dim"], out_bias=True)]

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Signs of collapse: log10 Σp² of the head and mean |z| of the representation."""
        return collapse.vital_signs(self, step)
