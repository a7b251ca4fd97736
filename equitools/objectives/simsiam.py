"""SimSiam: predict one view's projection from another's; a stopped gradient, no target network.

L = -½ [ cos(p_1, sg z_2) + cos(p_2, sg z_1) ]        (Chen & He, 2021)
"""

from torch import Tensor, nn

from equitools.core.errors import UsageError
from equitools.core.records import Step
from equitools.nn.heads import simsiam_predictor, simsiam_projector
from equitools.nn.losses.cosine import predicted_cosine
from equitools.nn.term import Objective


class SimSiam(Objective):
    """SimSiam: negative cosine between predictor and stopped projector (Chen & He, 2021).

    Reads `.invariant` of every view, b d. dim: width of the projector's layers and output.
    hidden: bottleneck of the predictor. freeze_bias: the projector's last bias, which batch norm
    makes void, is not trained. fix_pred_lr: the predictor's learning rate stays constant.
    """

    apart = True  # the released code calls the network once a view: batch norm sees one at a time
    heads_kind = "projector"
    crops = "global"

    def __init__(
        self,
        width: int,
        *,
        dim: int = 2048,
        hidden: int = 512,
        freeze_bias: bool = True,
        fix_pred_lr: bool = True,
    ) -> None:
        super().__init__(dim=dim, hidden=hidden, freeze_bias=freeze_bias)
        self.projector, self.predictor = self.make_heads(width)
        self.fix_pred_lr = fix_pred_lr

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Minus the mean cosine over ordered pairs of views, in [-1, 1]; -1 is full agreement."""
        if len(step.online) < 2:
            raise UsageError("simsiam compares views; set views.global.count to 2")
        z = [self.projector(features.invariant) for features in step.online]
        return {"simsiam": -predicted_cosine([self.predictor(one) for one in z], z).mean()}

    @staticmethod
    def new_heads(width: int, *, dim: int, hidden: int, freeze_bias: bool) -> list[nn.Module]:
        """A projector and a predictor."""
        projector = simsiam_projector(width, dim, freeze_bias=freeze_bias)
        return [projector, simsiam_predictor(dim, hidden)]

    def constant_rate(self) -> list[nn.Parameter]:
        """Parameters whose learning rate is not scheduled."""
        return list(self.predictor.parameters()) if self.fix_pred_lr else []
