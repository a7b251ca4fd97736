"""DINO: match a slow network's centered, sharpened assignments across views.

    q_i = sg softmax((t_i - c) / τ_t)
    L   = mean over pairs (i, v ≠ i) of -Σ_k q_ik log softmax(s_v / τ_s)_k

with i over the two global views that the slow network sees and v over all views (Caron et al.,
2021, "Emerging Properties in Self-Supervised Vision Transformers").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equitools.core.records import Step
from equitools.nn import collapse, ema, schedules
from equitools.nn.heads import DINOHead
from equitools.nn.losses import prototypes
from equitools.nn.term import partners


class DINO(nn.Module):
    """DINO: cross-view cross-entropy with a slow teacher (Caron et al., 2021).

    Reads `.invariant` of every view, b d, and of the slow encoder's global views.
    out_dim: prototypes K of the head. teacher_temp is reached linearly from warmup_teacher_temp
    within warmup_teacher_temp_epochs (epochs, or "10%"). momentum_teacher rises to 1 along half
    a cosine. norm_last_layer freezes the gains of the prototypes at 1.
    """

    target = True
    split = False
    actions: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    exports = "slow"
    pairs = "distribution"
    crops = "all"

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
        super().__init__()
        self.knobs: dict[str, Any] = {
            "out_dim": out_dim,
            "hidden_dim": hidden_dim,
            "bottleneck_dim": bottleneck_dim,
            "nlayers": nlayers,
            "norm_last_layer": norm_last_layer,
        }
        self.head = DINOHead(dim, **self.knobs)
        self.slow_head = ema.slow_copy(self.head)
        self.center = ema.Center(out_dim, center_momentum)
        self.student_temp = student_temp
        self.teacher_temps = (warmup_teacher_temp, teacher_temp)
        self.warmup = warmup_teacher_temp_epochs
        self.momentum_teacher = momentum_teacher

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The mean cross-entropy over all pairs, in nats; ln K is a uniform student."""
        online, warmth = torch.stack([f.invariant for f in step.online]), self.student_temp
        met, slow = partners(step), self.slow(step)
        pairs = prototypes.Pairs("cross-entropy", met, warmth, slow)
        loss = prototypes.mean(self.head.bottleneck(online), self.head.last_layer, pairs)
        if self.training:
            self.center.observe(slow.mean_logits())
        return {"dino": loss}

    @torch.no_grad()
    def slow(self, step: Step) -> prototypes.Slow:
        """What the slow head needs to say something about each global view."""
        codes = self.slow_head.bottleneck(torch.stack([f.invariant for f in step.target or []]))
        temperature = self.temperatures(step)[1]
        return prototypes.Slow(codes, self.slow_head.last_layer, self.center.value, temperature)

    def temperatures(self, step: Step) -> tuple[float, float]:
        """Temperatures of the online and of the slow network at this step."""
        start, end = self.teacher_temps
        return self.student_temp, start + (end - start) * schedules.elapsed(self.warmup, step)

    def momentum(self, done: float) -> float:
        """The slow networks' momentum when `done` of the run is behind us."""
        return schedules.half_cosine(self.momentum_teacher, 1.0, done)

    @torch.no_grad()
    def after(self, step: Step) -> None:
        """Move the center and the slow head."""
        self.center.move()
        ema.update(self.slow_head, self.head, self.momentum(step.done))

    def heads(self) -> list[nn.Module]:
        """The head that is trained; a regularizer may balance its own against it."""
        return [self.head]

    def make_heads(self, dim: int, **knobs: Any) -> list[nn.Module]:
        """Fresh heads of the same kind for another width, with some knobs changed."""
        return [DINOHead(dim, **{**self.knobs, **knobs})]

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Signs of collapse: entropies against ln K, log10 Σp² of the head, mean |z|."""
        return {
            **collapse.entropies(self.slow(step).assignments()),
            "h_I": collapse.log_power(self.heads()),
            "z_I": collapse.mean_size([features.invariant for features in step.online]),
        }
