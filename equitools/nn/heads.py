"""Heads between a representation and a loss: DINO's prototypes, and projectors and predictors.

    DINO      ŷ_k = g_k · cos(v_k, bottleneck(MLP(z)))        (Caron et al., 2021)
    SimSiam   p = predictor(projector(z))                     (Chen & He, 2021)
    others    z = W_n ReLU(norm(… ReLU(norm(W_1 h))))         (Chen et al., 2020, "SimCLR")

With g frozen at 1 every logit of the DINO head is a cosine; the lengths of the directions v do
not change the function.
"""

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WeightNormLinear(nn.Module):
    """A bias-free linear map whose rows are unit directions times a gain.

    weight = weight_g · weight_v / ‖weight_v‖ with weight_g K 1 (ones; frozen when asked) and
    weight_v K d (PyTorch's default for a linear layer). Salimans & Kingma, 2016.
    """

    def __init__(self, dim: int, out_dim: int, *, freeze_gain: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(dim)
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not freeze_gain)
        self.weight_v = nn.Parameter(torch.empty(out_dim, dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, b d → b K."""
        # Scaling the outputs instead of the rows needs no second tensor of the weight's size.
        return F.linear(x, self.weight_v) * (self.weight_g.squeeze(1) / self.weight_v.norm(dim=1))


class DINOHead(nn.Module):
    """An MLP with GELU, an L2-normalized bottleneck and weight-normed prototypes; b d → b K.

    Linear weights of the MLP are truncated normal (0.02) and biases 0; the prototypes keep
    PyTorch's uniform init. Caron et al., 2021; no batch norm.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int = 65536,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        nlayers: int = 3,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        widths = [dim, *[hidden_dim] * (nlayers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [_truncated_linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim, freeze_gain=norm_last_layer)
        self.out_dim = out_dim

    def bottleneck(self, x: Tensor) -> Tensor:
        """Unit vectors before the prototypes, b d → b 256; in float32."""
        return F.normalize(self.mlp(x).float(), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits b K; cosines in [-1, 1] while the gains are 1."""
        return self.last_layer(self.bottleneck(x))


def _truncated_linear(dim: int, out_dim: int) -> nn.Linear:
    layer = nn.Linear(dim, out_dim)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def simsiam_projector(dim: int, out_dim: int, *, freeze_bias: bool = True) -> nn.Sequential:
    """SimSiam's projector: two hidden layers with batch norm, and a batch norm without affine.

    The bias before the last batch norm has no effect on the output; SimSiam freezes it, DDCL
    trains (and so decays) it. Chen & He, 2021.
    """
    last = nn.Linear(out_dim, out_dim)
    last.bias.requires_grad_(not freeze_bias)
    return nn.Sequential(
        *_hidden(dim, out_dim),
        *_hidden(out_dim, out_dim),
        last,
        nn.BatchNorm1d(out_dim, affine=False),
    )


def simsiam_predictor(dim: int, hidden: int) -> nn.Sequential:
    """SimSiam's predictor, a bottleneck: dim → hidden (batch norm, ReLU) → dim. Chen & He, 2021."""
    return nn.Sequential(*_hidden(dim, hidden), nn.Linear(hidden, dim))


def mlp(
    *widths: int,
    bias: bool = False,
    out_bias: bool = False,
    norm: bool = True,
    out_norm: Literal["bare", "scale"] | None = None,
) -> nn.Sequential:
    """Linear layers of these widths with batch norm and ReLU between them; b d → b out.

    bias, norm: of the hidden layers. out_bias: of the last linear layer. out_norm: a batch norm
    after it, without parameters (bare) or with a learned scale and no shift (scale).
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += _hidden(before, after, bias=bias, norm=norm)
    layers.append(nn.Linear(widths[-2], widths[-1], bias=out_bias))
    if out_norm:
        last = nn.BatchNorm1d(widths[-1], affine=out_norm == "scale")
        if out_norm == "scale":
            last.bias.requires_grad_(False)
        layers.append(last)
    return nn.Sequential(*layers)


def _hidden(dim: int, out_dim: int, *, bias: bool = False, norm: bool = True) -> list[nn.Module]:
    linear, rectified = nn.Linear(dim, out_dim, bias=bias), nn.ReLU(inplace=True)
    return [linear, nn.BatchNorm1d(out_dim), rectified] if norm else [linear, rectified]
