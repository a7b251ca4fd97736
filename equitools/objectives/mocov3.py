"""MoCo v3: tell the target network's key of the other view from the keys of all other pictures.

    L = 4 τ · mean over pairs (v, i ≠ v) of -log ( exp(q_v·k_i⁺ / τ) / Σ_k exp(q_v·k_i / τ) )

with q_v = predictor(projector(f_v)) of every view v, k_i = target projector(target f_i) of each
global view i, unit vectors, and keys of all processes. Of two views it is the 2 τ (CE_12 + CE_21)
of Chen, Xie & He, 2021 ("An Empirical Study of Training Self-Supervised Vision Transformers");
local crops are further queries of the mean.
"""

import torch
from torch import Tensor, nn

from equitools.core import distributed
from equitools.core.records import Step
from equitools.nn import ema
from equitools.nn.heads import mlp
from equitools.nn.losses.info_nce import info_nce, unit
from equitools.nn.term import Objective, partners, target_features


class MoCoV3(Objective):
    """MoCo v3: symmetric InfoNCE with target keys and a predictor (Chen, Xie & He, 2021).

    Reads `.invariant` of every view, b d, and of the target network's global views. nlayers: of the
    projector, 3 for a ViT and 2 for a ResNet. predictor_norm: batch norm after the predictor, as
    ViTs have it. temperature: 0.2 for a ViT, 1.0 for a ResNet. momentum rises to 1 along half a
    cosine; the released code updates the target network between query and key, the loop here after
    the step before, which is the same weights.
    """

    target = True
    apart = True  # the released code calls the network once a view
    heads_kind = "projector"

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
        super().__init__(
            hidden_dim=hidden_dim, out_dim=out_dim, nlayers=nlayers, predictor_norm=predictor_norm
        )
        self.projector, self.predictor = self.make_heads(dim)
        self.target_projector = ema.copy(self.projector)
        self.temperature, self.base_momentum = temperature, momentum

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The mean cross-entropy in nats times 4 τ; 4 τ ln N where all keys are the same."""
        keys = self.keys(step)
        projected = [self.projector(features.invariant) for features in step.online]
        queries = [unit(self.predictor(z)) for z in projected]
        losses = [
            info_nce(queries[v], keys[i], self.temperature)
            for v, own in enumerate(partners(step))
            for i in own
        ]
        return {"mocov3": 4 * self.temperature * torch.stack(losses).mean()}

    @torch.no_grad()
    def keys(self, step: Step) -> list[Tensor]:
        """The target projector's unit vectors of each global view, N out_dim, of all processes."""
        targets = [self.target_projector(features.invariant) for features in target_features(step)]
        return [distributed.gather(unit(z)) for z in targets]

    @staticmethod
    def new_heads(
        dim: int, *, hidden_dim: int, out_dim: int, nlayers: int, predictor_norm: bool
    ) -> list[nn.Module]:
        """A projector and a predictor."""
        return [
            mlp(dim, *[hidden_dim] * (nlayers - 1), out_dim, out_norm="bare"),
            mlp(out_dim, hidden_dim, out_dim, out_norm="bare" if predictor_norm else None),
        ]
