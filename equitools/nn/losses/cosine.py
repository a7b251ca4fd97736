"""The cosine of pairs of rows, and that of predictions with what they predict (Chen & He, 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each pair of rows, b d and b d → b; in float32."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


def predicted_cosine(predicted: Sequence[Tensor], projected: Sequence[Tensor]) -> Tensor:
    """The mean over ordered pairs of views of cos(p_i, sg z_j), i ≠ j, for each sample; → b.

    Chen & He, 2021: the gradient reaches the predicted side only.
    """
    pairs = [
        cosine(p, z.detach())
        for i, p in enumerate(predicted)
        for j, z in enumerate(projected)
        if i != j
    ]
    return torch.stack(pairs).mean(0)
