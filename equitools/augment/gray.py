"""Gray: all channels become the luma 0.2989 r + 0.587 g + 0.114 b (torchvision's weights)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NAMES = ("gray",)
IDENTITY = (0.0,)
COLUMNS = slice(34, 35)
WEIGHTS = (0.2989, 0.587, 0.114)


def draw(uniforms: np.ndarray, *, p: float = 0.2) -> np.ndarray:
    """n × 1 uniforms → n × 1: 1 where the picture becomes gray, else 0."""
    return (uniforms[:, :1] < p).astype(np.float64)


def apply(image: Tensor, p: Tensor) -> Tensor:
    """Pictures b 3 h w, floats, without color where p (b 1) is 1."""
    chosen = (p[:, 0] != 0).to(image.device)
    weights = image.new_tensor(WEIGHTS)
    luma = torch.einsum("bchw,c->bhw", image, weights)
    return torch.where(chosen[:, None, None, None], luma[:, None], image)


def delta(p: Tensor, q: Tensor) -> Tensor:
    """b 1: 1 where only p is gray, -1 where only q is."""
    return p - q
