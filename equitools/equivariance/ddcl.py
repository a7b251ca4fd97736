"""DDCL: make what views disagree on orthogonal between predictor and projector.

    L = | ½ mean cos(p'_1, sg z'_2) + ½ mean cos(p'_2, sg z'_1) |
        + λ · mean over heads | S(h_I) - S(h_V) |

on the EF part, with a projector and predictor of its own (DDCL, WACV 2024). The second term is
L_PReg of "CLeVER" (Song et al., 2024); the original DDCL is λ = 0.
"""

from torch import Tensor, nn

from equitools.core.records import Step
from equitools.nn.losses.cosine import predicted_cosine
from equitools.nn.losses.parameter_balance import Norm, balance
from equitools.nn.term import Objective, Term, check_pair


class DDCL(Term):
    """DDCL: predicted and projected EF parts of two views become orthogonal (Wang et al., 2024).

    Reads `.equivariant`, b d. Needs an objective with a projector and a predictor (simsiam) and
    an encoder that splits. regularization weighs L_PReg; 0 is the original. per_sample takes the
    absolute value of every sample's cosine, not of the batch's mean, in which signs may cancel.
    norm: squared, or root as printed.
    """

    split = True
    needs = "projector"

    def __init__(
        self,
        dim: int,
        objective: Objective,
        *,
        regularization: float = 0.001,
        per_sample: bool = False,
        norm: Norm = "squared",
    ) -> None:
        super().__init__()
        check_pair(self, "ddcl", dim, objective)
        self.projector, self.predictor = objective.make_heads(dim)
        self.fix_pred_lr = bool(objective.constant_rate())
        self.regularization = regularization
        self.per_sample = per_sample
        self.norm = norm

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The absolute cosine, in [0, 1], and λ · L_PReg when λ > 0."""
        z = [self.projector(features.equivariant) for features in step.online]
        overlap = predicted_cosine([self.predictor(one) for one in z], z)
        losses = {"ddcl/orth": overlap.abs().mean() if self.per_sample else overlap.mean().abs()}
        if self.regularization:
            gap = balance(step.objective.heads(), self.heads(), norm=self.norm)
            losses["ddcl/preg"] = self.regularization * gap
        return losses

    def constant_rate(self) -> list[nn.Parameter]:
        """Parameters whose learning rate is not scheduled, as the objective has it."""
        return list(self.predictor.parameters()) if self.fix_pred_lr else []
