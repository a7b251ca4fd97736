"""Gaussian blur with its own sigma for each sample, edges repeated.

DINO's blur is PIL's GaussianBlur(radius), whose radius is the sigma of a Gaussian that PIL
approximates by three box filters. Here it is the true Gaussian, cut at four sigma: 0.5 of 255
levels from PIL's on average on photos.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

NAMES = ("sigma",)
IDENTITY = (0.0,)
COLUMNS = slice(35, 37)


def draw(
    uniforms: np.ndarray, *, p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)
) -> np.ndarray:
    """n × 2 uniforms → n × 1: sigma in pixels, uniform in a range, or 0 (no blur)."""
    drawn = sigma[0] + (sigma[1] - sigma[0]) * uniforms[:, 1:2]
    return np.where(uniforms[:, :1] < p, drawn, 0.0)


def apply(image: Tensor, p: Tensor) -> Tensor:
    """Pictures b c h w, floats, each blurred with its sigma (b 1); 0 does nothing."""
    height, width = image.shape[-2:]
    columns = band(p[:, 0].float().cpu(), height).to(image)
    rows = columns if width == height else band(p[:, 0].float().cpu(), width).to(image)
    return columns[:, None] @ image @ rows[:, None].mT


def band(sigma: Tensor, size: int) -> Tensor:
    """The blur along one axis as banded matrices b size size, whose rows sum to one.

    Two products with a banded matrix are faster on small pictures, and as fast on large ones, as
    a convolution with different kernels for different samples.
    """
    half = math.ceil(4 * float(sigma.max()))
    offset = torch.arange(-half, half + 1, device=sigma.device)
    spread = sigma[:, None].clamp(min=1e-4)
    kernel = torch.exp(-0.5 * (offset / spread) ** 2)
    # A sample's kernel must not depend on the widest of its batch.
    kernel = kernel * ((offset == 0) | (offset.abs() <= 4 * sigma[:, None]))
    kernel = kernel / kernel.sum(1, keepdim=True)
    target = torch.arange(size, device=sigma.device)[:, None] + offset
    target = target.clamp_(0, size - 1).expand(len(sigma), -1, -1)
    matrix = sigma.new_zeros(len(sigma), size, size)
    return matrix.scatter_add_(2, target, kernel[:, None].expand(-1, size, -1))


def delta(p: Tensor, q: Tensor) -> Tensor:
    """Sigma of p less that of q, b 1."""
    return p - q
