"""CLeVER: keep what views disagree on in a part of the representation that is told apart.

    u_i = sg softmax((e_i - c) / τ_t),  w_v = softmax(e_v / τ_s)     (e: logits of the EF heads)
    L = β · mean over pairs (i, v ≠ i) of cos(u_i, w_v)  +  λ · mean over heads | S(h_I) - S(h_V) |

with S the sum of squares of a head's parameters (Song et al., 2024, "CLeVER", and the released
code, whose L_Orth is a cosine of probability vectors; the printed inner product is 4e-5 at
K = 65536, so it would do nothing).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from equitools.core.records import Step
from equitools.nn import collapse, ema
from equitools.nn.losses import prototypes
from equitools.nn.losses.parameter_balance import Norm, ScaleFree, balance
from equitools.nn.term import check_pair, partners


class CLeVER(nn.Module):
    """CLeVER: decorrelates assignments of the EF part across views, balances heads (Song, 2024).

    Reads `.equivariant`, b d. Needs an objective with a distribution head (dino, ibot) and an
    encoder that splits. out_dim: prototypes of the EF head. beta and regularization weigh L_Orth
    and L_PReg; "without L_PReg" is regularization 0. orthogonality: cosine, or dot as printed.
    norm: squared, or root as printed. scale_free: drop leaves weight-normed directions out of
    L_PReg, for their lengths do not change the function.
    """

    target = True
    split = True
    actions: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    needs = "distribution"

    def __init__(
        self,
        dim: int,
        objective: Any,
        *,
        out_dim: int = 65536,
        beta: float = 1.0,
        regularization: float = 0.001,
        orthogonality: Literal["cosine", "dot"] = "cosine",
        norm: Norm = "squared",
        scale_free: ScaleFree = "keep",
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        check_pair(self, "clever", dim, objective)
        (self.head,) = objective.make_heads(dim, out_dim=out_dim)
        self.slow_head = ema.slow_copy(self.head)
        self.center = ema.Center(out_dim, center_momentum)
        self.beta, self.regularization = beta, regularization
        self.orthogonality = orthogonality
        self.norm, self.scale_free = norm, scale_free

    def forward(self, step: Step) -> dict[str, Tensor]:
        """β · L_Orth, in [0, β], and λ · L_PReg when λ > 0."""
        found = {"clever/orth": self.beta * self.overlap(step)}
        if self.regularization:
            pairs = step.objective.heads(), self.heads()
            gap = balance(*pairs, norm=self.norm, scale_free=self.scale_free)
            found["clever/preg"] = self.regularization * gap
        return found

    def overlap(self, step: Step) -> Tensor:
        """L_Orth: how much the views' EF assignments overlap; 0 is orthogonal, 1 is equal."""
        online = torch.stack([f.equivariant for f in step.online])
        met, slow, warmth = partners(step), self.slow(step), step.objective.temperatures(step)
        # Both vectors are positive, so the absolute value of Eq. 11 is the value itself.
        pairs = prototypes.Pairs(self.orthogonality, met, warmth[0], slow)
        found = prototypes.mean(self.head.bottleneck(online), self.head.last_layer, pairs)
        if self.training:
            self.center.observe(slow.mean_logits())
        return found

    @torch.no_grad()
    def slow(self, step: Step) -> prototypes.Slow:
        """What the slow EF head needs to say something about each global view."""
        codes = self.slow_head.bottleneck(torch.stack([f.equivariant for f in step.target or []]))
        temperature = step.objective.temperatures(step)[1]
        return prototypes.Slow(codes, self.slow_head.last_layer, self.center.value, temperature)

    @torch.no_grad()
    def after(self, step: Step) -> None:
        """Move the center and the slow head, as the objective moves its own."""
        self.center.move()
        ema.update(self.slow_head, self.head, step.objective.momentum(step.done))

    def heads(self) -> list[nn.Module]:
        """The EF head that is trained."""
        return [self.head]

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Signs of collapse: entropies against ln K, log10 Σp² of the EF head, mean |z|."""
        return {
            **collapse.entropies(self.slow(step).assignments()),
            "h_V": collapse.log_power(self.heads()),
            "z_V": collapse.mean_size([features.equivariant for features in step.online]),
        }
