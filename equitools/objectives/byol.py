"""BYOL: predict what a slow network says about the other view, without negatives.

    L = 2 · mean over pairs (v, i ≠ v) of [ 2 - 2 cos(p_v, sg z'_i) ]

with p_v = predictor(projector(f_v)) of every view v and z'_i the slow projection of each global
view i. Of two views it is the symmetric loss of Grill et al., 2020 ("Bootstrap Your Own Latent",
Eq. 2 and the sum after it); local crops are further queries of the mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equitools.core.records import Step
from equitools.nn import collapse, ema, schedules
from equitools.nn.heads import mlp
from equitools.nn.losses.cosine import cosine
from equitools.nn.term import partners


class BYOL(nn.Module):
    """BYOL: regress the slow projection of another view (Grill et al., 2020).

    Reads `.invariant` of every view, b d, and of the slow encoder's global views. Both heads are
    hidden_dim (bias, batch norm, ReLU) and out_dim, without a norm after it. momentum rises to 1
    along half a cosine: 0.996 for 1000 epochs, 0.99 for 300 and 100, 0.97 for 40.
    """

    target = True
    split = False
    actions: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    exports = "online"
    apart = True  # the released code calls the network once a view
    pairs = "projector"
    crops = "all"

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        momentum: float = 0.996,
    ) -> None:
        super().__init__()
        self.knobs = {"hidden_dim": hidden_dim, "out_dim": out_dim}
        self.projector, self.predictor = self.make_heads(dim)
        self.slow_projector = ema.slow_copy(self.projector)
        self.start = momentum

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Twice the mean squared distance of unit vectors, in [0, 8]; 0 is perfect prediction."""
        met, slow = partners(step), self.slow(step)
        predicted = [self.predictor(self.projector(f.invariant)) for f in step.online]
        pairs = [cosine(predicted[v], slow[i]) for v, own in enumerate(met) for i in own]
        return {"byol": 2 * (2 - 2 * torch.stack(pairs)).mean()}

    @torch.no_grad()
    def slow(self, step: Step) -> list[Tensor]:
        """What the slow projector says about each global view, b out_dim."""
        return [self.slow_projector(features.invariant) for features in step.target or []]

    def momentum(self, done: float) -> float:
        """The slow networks' momentum when `done` of the run is behind us."""
        return schedules.half_cosine(self.start, 1.0, done)

    @torch.no_grad()
    def after(self, step: Step) -> None:
        """Move the slow projector."""
        ema.update(self.slow_projector, self.projector, self.momentum(step.done))

    def heads(self) -> list[nn.Module]:
        """Projector and predictor; a regularizer may balance its own against them."""
        return [self.projector, self.predictor]

    def make_heads(self, dim: int, **knobs: Any) -> list[nn.Module]:
        """A fresh projector and predictor for another width, with some knobs changed."""
        made = {**self.knobs, **knobs}
        hidden, out = made["hidden_dim"], made["out_dim"]
        return [mlp(dim, hidden, out, bias=True), mlp(out, hidden, out, bias=True)]

    def constant_rate(self) -> list[nn.Parameter]:
        """No parameter: the predictor follows the schedule."""
        return []

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Signs of collapse: log10 Σp² of the heads and mean |z| of the representation."""
        return collapse.vital_signs(self, step)
