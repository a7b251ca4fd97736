"""Solarize: values at or above a threshold are inverted, x → 1 - x (PIL's threshold is 128/255)."""

import numpy as np
import torch
from torch import Tensor

from equitools.augment.checks import probability

NAMES = ("threshold",)
IDENTITY = (1.0,)
COLUMNS = slice(37, 38)
SCOPE, PLACE, MOVES = "group", 70, False

DEFAULTS = {"global": [0.0, 0.2]}  # of DINO


def of_group(where: str, *, solarize: float | list[float] = 0.0) -> dict[str, float | list[float]]:
    """solarize: the probability."""
    return {"p": probability(solarize, f"{where}.solarize")}


def draw(uniforms: np.ndarray, *, p: float = 0.2, threshold: float = 128 / 255) -> np.ndarray:
    """n × 1 uniforms → n × 1: the threshold where the picture is solarized, else 1."""
    return np.where(uniforms[:, :1] < p, threshold, 1.0)


def apply(image: Tensor, p: Tensor) -> Tensor:
    """Pictures b c h w in [0, 1]; a threshold (b 1) of 1 or more does nothing."""
    bound = torch.where(p[:, 0] < 1, p[:, 0], torch.inf)
    bound = bound.to(device=image.device, dtype=image.dtype)[:, None, None, None]
    return torch.where(image >= bound, 1 - image, image)


def delta(p: Tensor, q: Tensor) -> Tensor:
    """Threshold of p less that of q, b 1."""
    return p - q
