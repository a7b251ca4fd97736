"""CLeVER: keep what views disagree on in a part of the representation that is told apart.

    u_i = sg softmax((e_i - c) / τ_t),  w_v = softmax(e_v / τ_s)     (e: logits of the EF heads)
    L = β · mean over pairs (i, v ≠ i) of cos(u_i, w_v)  +  λ · mean over heads | S(h_I) - S(h_V) |

with S the sum of squares of a head's parameters (Song et al., 2024, "CLeVER", and the released
code, whose L_Orth is a cosine of probability vectors; the printed inner product is 4e-5 at
K = 65536, so it would do nothing).
"""

from typing import Literal, cast

import torch
from torch import Tensor

from equitools.core.records import Step
from equitools.nn import collapse, ema
from equitools.nn.heads import DINOHead
from equitools.nn.losses import prototypes
from equitools.nn.losses.parameter_balance import Norm, ScaleFree, balance
from equitools.nn.term import Objective, Term, check_pair, partners, target_features


class CLeVER(Term):
    """CLeVER: decorrelates assignments of the EF part across views, balances heads (Song, 2024).

    Reads `.equivariant`, b d. Needs an objective with a distribution head (dino, ibot) and an
    encoder that splits. out_dim: prototypes of the EF head. beta and regularization weigh L_Orth
    and L_PReg; "without L_PReg" is regularization 0. orthogonality: cosine, or dot as printed.
    norm: squared, or root as printed. scale_free: drop leaves weight-normed directions out of
    L_PReg, for their lengths do not change the function.
    """

    target = True
    split = True
    needs = "distribution"

    def __init__(
        self,
        dim: int,
        objective: Objective,
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
        self.head = cast(DINOHead, objective.make_heads(dim, out_dim=out_dim)[0])
        self.target_head = ema.copy(self.head)
        self.center = ema.Center(out_dim, center_momentum)
        self.beta, self.regularization = beta, regularization
        self.orthogonality = orthogonality
        self.norm, self.scale_free = norm, scale_free

    def forward(self, step: Step) -> dict[str, Tensor]:
        """β · L_Orth, in [0, β], and λ · L_PReg when λ > 0."""
        losses = {"clever/orth": self.beta * self.overlap(step)}
        if self.regularization:
            pairs = step.objective.heads(), self.heads()
            gap = balance(*pairs, norm=self.norm, scale_free=self.scale_free)
            losses["clever/preg"] = self.regularization * gap
        return losses

    def overlap(self, step: Step) -> Tensor:
        """L_Orth: how much the views' EF assignments overlap; 0 is orthogonal, 1 is equal."""
        codes = self.head.bottleneck(torch.stack([f.equivariant for f in step.online]))
        target, temperature = self.teacher(step), step.objective.temperatures(step)[0]
        # Both vectors are positive, so the absolute value of Eq. 11 is the value itself.
        pairs = prototypes.ViewPairs(self.orthogonality, partners(step), temperature, target)
        if self.training:
            self.center.observe(target.mean_logits())
        return prototypes.mean(codes, self.head.last_layer, pairs)

    @torch.no_grad()
    def teacher(self, step: Step) -> prototypes.TargetHead:
        """What the target EF head needs to say something about each global view."""
        features = torch.stack([f.equivariant for f in target_features(step)])
        temperature = step.objective.temperatures(step)[1]
        return prototypes.target_head(self.target_head, features, self.center.value, temperature)

    @torch.no_grad()
    def after(self, step: Step) -> None:
        """Move the center and the target head."""
        self.center.move()
        super().after(step)

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Entropies against ln K beside log10 Σp² of the EF head and mean |z|."""
        entropies = collapse.entropies(self.teacher(step).assignments())
        return entropies | super().diagnostics(step)
