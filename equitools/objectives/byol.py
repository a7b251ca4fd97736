"""BYOL: predict what a target network says about the other view, without negatives.

    L = 2 · mean over pairs (v, i ≠ v) of [ 2 - 2 cos(p_v, sg z'_i) ]

with p_v = predictor(projector(f_v)) of every view v and z'_i the target projection of each global
view i. Of two views it is the symmetric loss of Grill et al., 2020 ("Bootstrap Your Own Latent",
Eq. 2 and the sum after it); local crops are further queries of the mean.
"""

import torch
from torch import Tensor, nn

from equitools.core.records import Step
from equitools.nn import ema
from equitools.nn.heads import mlp
from equitools.nn.losses.cosine import cosine
from equitools.nn.term import Objective, partners, target_features


class BYOL(Objective):
    """BYOL: regress the target projection of another view (Grill et al., 2020).

    Reads `.invariant` of every view, b d, and of the target network's global views. Both heads are
    hidden_dim (bias, batch norm, ReLU) and out_dim, without a norm after it. momentum rises to 1
    along half a cosine: 0.996 for 1000 epochs, 0.99 for 300 and 100, 0.97 for 40.
    """

    target = True
    apart = True  # the released code calls the network once a view
    heads_kind = "projector"

    def __init__(
        self, dim: int, *, hidden_dim: int = 4096, out_dim: int = 256, momentum: float = 0.996
    ) -> None:
        super().__init__(hidden_dim=hidden_dim, out_dim=out_dim)
        self.projector, self.predictor = self.make_heads(dim)
        self.target_projector = ema.copy(self.projector)
        self.base_momentum = momentum

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Twice the mean squared distance of unit vectors, in [0, 8]; 0 is perfect prediction."""
        with torch.no_grad():
            targets = [self.target_projector(f.invariant) for f in target_features(step)]
        predicted = [self.predictor(self.projector(f.invariant)) for f in step.online]
        cosines = [
            cosine(predicted[v], targets[i]) for v, own in enumerate(partners(step)) for i in own
        ]
        return {"byol": 2 * (2 - 2 * torch.stack(cosines)).mean()}

    @staticmethod
    def new_heads(dim: int, *, hidden_dim: int, out_dim: int) -> list[nn.Module]:
        """A projector and a predictor."""
        return [mlp(width, hidden_dim, out_dim, bias=True) for width in (dim, out_dim)]
