"""DINO: match a target network's centered, sharpened assignments across views.

    q_i = sg softmax((t_i - c) / τ_t)
    L   = mean over pairs (i, v ≠ i) of -Σ_k q_ik log softmax(s_v / τ_s)_k

with i over the two global views that the target network sees and v over all views (Caron et al.,
2021, "Emerging Properties in Self-Supervised Vision Transformers").
"""

from typing import Any

import torch
from torch import Tensor, nn

from equitools.core.records import Step
from equitools.nn import collapse, ema, schedules
from equitools.nn.heads import DINOHead
from equitools.nn.losses import prototypes
from equitools.nn.term import Objective, partners, target_features


class DINO(Objective):
    """DINO: cross-view cross-entropy with a teacher (Caron et al., 2021).

    Reads `.invariant` of every view, b d, and of the target network's global views.
    out_dim: prototypes K of the head. teacher_temp is reached linearly from warmup_teacher_temp
    within warmup_teacher_temp_epochs (epochs, or "10%"). momentum_teacher rises to 1 along half
    a cosine. norm_last_layer freezes the gains of the prototypes at 1.
    """

    target = True
    exports = "slow"
    heads_kind = "distribution"

    def __init__(
        self,
        dim: int,
        *,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        nlayers: int = 3,
        norm_last_layer: bool = True,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        warmup_teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: float | str = 0,
        center_momentum: float = 0.9,
        momentum_teacher: float = 0.996,
    ) -> None:
        super().__init__(
            out_dim=out_dim,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            nlayers=nlayers,
            norm_last_layer=norm_last_layer,
        )
        self.head = DINOHead(dim, **self.knobs)
        self.target_head = ema.copy(self.head)
        self.center = ema.Center(out_dim, center_momentum)
        self.student_temp = student_temp
        self.teacher_temps = (warmup_teacher_temp, teacher_temp)
        self.warmup = warmup_teacher_temp_epochs
        self.base_momentum = momentum_teacher

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The mean cross-entropy over all pairs, in nats; ln K is a uniform student."""
        codes = self.head.bottleneck(torch.stack([f.invariant for f in step.online]))
        target = self.teacher(step)
        pairs = prototypes.ViewPairs("cross-entropy", partners(step), self.student_temp, target)
        if self.training:
            self.center.observe(target.mean_logits())
        return {"dino": prototypes.mean(codes, self.head.last_layer, pairs)}

    @torch.no_grad()
    def teacher(self, step: Step) -> prototypes.TargetHead:
        """What the target head needs to say something about each global view."""
        features = torch.stack([f.invariant for f in target_features(step)])
        temperature = self.temperatures(step)[1]
        return prototypes.target_head(self.target_head, features, self.center.value, temperature)

    def temperatures(self, step: Step) -> tuple[float, float]:
        """Temperatures of the online and of the target network at this step."""
        start, end = self.teacher_temps
        return self.student_temp, start + (end - start) * schedules.elapsed(self.warmup, step)

    @torch.no_grad()
    def after(self, step: Step) -> None:
        """Move the center and the target head."""
        self.center.move()
        super().after(step)

    @staticmethod
    def new_heads(dim: int, **knobs: Any) -> list[nn.Module]:
        """A head over prototypes."""
        return [DINOHead(dim, **knobs)]

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Entropies against ln K beside log10 Σp² of the head and mean |z|."""
        entropies = collapse.entropies(self.teacher(step).assignments())
        return entropies | super().diagnostics(step)
