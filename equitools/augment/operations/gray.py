"""Gray: all channels become the luma 0.2989 r + 0.587 g + 0.114 b (torchvision's weights)."""

import numpy as np
import torch
from torch import Tensor

from equitools.augment.checks import probability
from equitools.augment.color import luma

NAMES = ("gray",)
IDENTITY = (0.0,)
COLUMNS = slice(34, 35)
SCOPE, PLACE, MOVES = "group", 50, False


def of_group(where: str, *, gray: float = 0.2) -> dict[str, float]:
    """gray: the probability."""
    return {"p": probability(gray, f"{where}.gray")}


def draw(uniforms: np.ndarray, *, p: float = 0.2) -> np.ndarray:
    """n × 1 uniforms → n × 1: 1 where the picture becomes gray, else 0."""
    return (uniforms[:, :1] < p).astype(np.float64)


def apply(image: Tensor, p: Tensor) -> Tensor:
    """Pictures b 3 h w, floats, without color where p (b 1) is 1."""
    chosen = p[:, 0] != 0
    gray = luma(image).expand_as(image)
    if chosen.all():
        return gray
    return torch.where(chosen.to(image.device)[:, None, None, None], gray, image)


def delta(p: Tensor, q: Tensor) -> Tensor:
    """b 1: 1 where only p is gray, -1 where only q is."""
    return p - q
