"""MoCo v3: tell the slow network's key of the other view from the keys of all other pictures.

    L = 4 τ · mean over pairs (v, i ≠ v) of -log ( exp(q_v·k_i⁺ / τ) / Σ_k exp(q_v·k_i / τ) )

with q_v = predictor(projector(f_v)) of every view v, k_i = slow projector(slow f_i) of each global
view i, unit vectors, and keys of all processes. Of two views it is the 2 τ (CE_12 + CE_21) of
Chen, Xie & He, 2021 ("An Empirical Study of Training Self-Supervised Vision Transformers"); local
crops are further queries of the mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equitools.core import distributed
from equitools.core.records import Step
from equitools.nn import collapse, ema, schedules
from equitools.nn.heads import mlp
from equitools.nn.losses.info_nce import info_nce, unit
from equitools.nn.term import partners


class MoCoV3(nn.Module):
    """MoCo v3: symmetric InfoNCE with slow keys and a predictor (Chen, Xie & He, 2021).

    Reads `.invariant` of every view, b d, and of the slow encoder's global views. nlayers: of the
    projector, 3 for a ViT and 2 for a ResNet. predictor_norm: batch norm after the predictor, as
    ViTs have it. temperature: 0.2 for a ViT, 1.0 for a ResNet. momentum rises to 1 along half a
    cosine; the released code updates the slow network between query and key, the loop here after
    the step before, which is the same weights.
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
        nlayers: int = 3,
        predictor_norm: bool = True,
        temperature: float = 0.2,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        self.knobs: dict[str, Any] = {
            "hidden_dim": hidden_dim,
            "out_dim": out_dim,
            "nlayers": nlayers,
            "predictor_norm": predictor_norm,
        }
        self.projector, self.predictor = self.make_heads(dim)
        self.slow_projector = ema.slow_copy(self.projector)
        self.temperature, self.start = temperature, momentum

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The mean cross-entropy in nats times 4 τ; 4 τ ln N where all keys are the same."""
        met, keys = partners(step), self.keys(step)
        projected = [self.projector(features.invariant) for features in step.online]
        queries = [unit(self.predictor(z)) for z in projected]
        losses = [
            info_nce(queries[v], keys[i], self.temperature)
            for v, own in enumerate(met)
            for i in own
        ]
        return {"mocov3": 4 * self.temperature * torch.stack(losses).mean()}

    @torch.no_grad()
    def keys(self, step: Step) -> list[Tensor]:
        """The slow projector's unit vectors of each global view, N out_dim, of all processes."""
        slow = [self.slow_projector(features.invariant) for features in step.target or []]
        return [distributed.gather(unit(z)) for z in slow]

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
        return [
            mlp(dim, *[hidden] * (made["nlayers"] - 1), out, out_norm="bare"),
            mlp(out, hidden, out, out_norm="bare" if made["predictor_norm"] else None),
        ]

    def constant_rate(self) -> list[nn.Parameter]:
        """No parameter: the predictor follows the schedule."""
        return []

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Signs of collapse: log10 Σp² of the heads and mean |z| of the representation."""
        return collapse.vital_signs(self, step)
