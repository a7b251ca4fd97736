"""Gaussian blur with its own sigma for each sample, edges repeated.

DINO's blur is PIL's GaussianBlur(radius), whose radius is the sigma of a Gaussian that PIL
approximates by three box filters. Here it is the true Gaussian, cut at four sigma: 0.5 of 255
levels from PIL's on average on photos.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from equitools.augment.checks import interval, probability

NAMES = ("sigma",)
IDENTITY = (0.0,)
COLUMNS = slice(35, 37)
SCOPE, PLACE, MOVES = "group", 60, False

DEFAULTS = {"global": [1.0, 0.1]}  # of DINO


def of_group(
    where: str, *, blur: float | list[float] = 0.5, sigma: tuple[float, float] = (0.1, 2.0)
) -> dict[str, Any]:
    """blur: the probability. sigma: its range, in pixels of the view."""
    return {"p": probability(blur, f"{where}.blur"), "sigma": interval(sigma, f"{where}.sigma")}


def draw(
    uniforms: np.ndarray, *, p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)
) -> np.ndarray:
    """n × 2 uniforms → n × 1: sigma in pixels, uniform in a range, or 0 (no blur)."""
    drawn = sigma[0] + (sigma[1] - sigma[0]) * uniforms[:, 1:2]
    return np.where(uniforms[:, :1] < p, drawn, 0.0)


def apply(image: Tensor, p: Tensor) -> Tensor:
    """Pictures b c h w, floats, each blurred with its sigma (b 1); 0 does nothing."""
    batch, channels, height, width = image.shape
    taps = kernels(p[:, 0].float().cpu()).to(image).repeat_interleave(channels, dim=0)
    half = taps.shape[1] // 2
    padded = F.pad(image, [half] * 4, mode="replicate")
    planes = padded.view(1, batch * channels, -1, width + 2 * half)
    planes = F.conv2d(planes, taps[:, None, None, :], groups=len(taps))
    planes = F.conv2d(planes, taps[:, None, :, None], groups=len(taps))
    return planes.view(batch, channels, height, width)


def kernels(sigma: Tensor) -> Tensor:
    """The blur along an axis, b × (2 half + 1) weights that sum to one; half is for the widest."""
    half = math.floor(4 * float(sigma.max()))
    offset = torch.arange(-half, half + 1, device=sigma.device)
    spread = sigma[:, None].clamp(min=1e-4)
    kernel = torch.exp(-0.5 * (offset / spread) ** 2)
    # A sample's kernel must not depend on the widest of its batch.
    kernel = kernel * ((offset == 0) | (offset.abs() <= 4 * sigma[:, None]))
    return kernel / kernel.sum(1, keepdim=True)


def delta(p: Tensor, q: Tensor) -> Tensor:
    """Sigma of p less that of q, b 1."""
    return p - q
