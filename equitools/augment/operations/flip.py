"""Horizontal flip: x → -x with probability p."""

import numpy as np
import torch
from torch import Tensor

from equitools.augment.checks import probability

NAMES = ("flip",)
IDENTITY = (0.0,)
COLUMNS = slice(24, 25)
SCOPE, PLACE, MOVES = "group", 10, True


def of_group(where: str, *, flip: float = 0.5) -> dict[str, float]:
    """flip: the probability."""
    return {"p": probability(flip, f"{where}.flip")}


def draw(uniforms: np.ndarray, *, p: float = 0.5) -> np.ndarray:
    """n × 1 uniforms → n × 1: 1 where the picture is flipped, else 0."""
    return (uniforms[:, :1] < p).astype(np.float64)


def apply(image: Tensor, p: Tensor) -> Tensor:
    """Pictures b c h w of any type, flipped left–right where p (b 1) is 1."""
    chosen = p[:, 0] != 0
    if chosen.all():
        return image.flip(-1)
    chosen = chosen.to(image.device)
    return torch.where(chosen[:, None, None, None], image.flip(-1), image)


def matrix(p: Tensor) -> Tensor:
    """b 1 → b 3 3: diag(-1, 1, 1) where flipped."""
    diagonal = torch.ones(len(p), 3, dtype=p.dtype, device=p.device)
    diagonal[:, 0] = 1 - 2 * p[:, 0]
    return torch.diag_embed(diagonal)


def delta(p: Tensor, q: Tensor) -> Tensor:
    """b 1: 0 where both are flipped or neither is, else 1."""
    return (p - q).abs()
