"""Random resized crop: a window of random area and shape, resized to the view.

    area ~ U(scale) · H · W,  log(w / h) ~ U(log ratio),  the place uniform among those that fit;
after ten windows that do not fit, the largest central one (Szegedy et al., 2015; torchvision's
RandomResizedCrop). Bicubic with antialiasing on 8-bit values, taken where the image is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

NAMES = ("top", "left", "height", "width")
IDENTITY = (0.0, 0.0, 1.0, 1.0)
COLUMNS = slice(0, 24)
ATTEMPTS = 10


def draw(
    uniforms: np.ndarray,
    height: int,
    width: int,
    *,
    scale: Sequence = (0.08, 1.0),
    ratio: Sequence = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Windows in fractions of an image of height × width pixels.

    uniforms: n × 24; scale and ratio: (low, high) for all, or a list of one pair for each row.
    Returns n × 4 (top, left, height, width), whole pixels once multiplied by the image's size.
    """
    rows = uniforms.tolist()
    scales, ratios = (
        pair if isinstance(pair[0], Sequence) else [pair] * len(rows) for pair in (scale, ratio)
    )
    found = [
        _window(row, height, width, *pairs)
        for row, *pairs in zip(rows, scales, ratios, strict=True)
    ]
    return np.array(found).reshape(-1, 4) / (height, width, height, width)


def _window(
    u: list[float], height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """One window in pixels. Plain Python: a sample has a handful, and arrays would cost more."""
    area, low, high = height * width, math.log(ratio[0]), math.log(ratio[1])
    for i in range(ATTEMPTS):
        target = area * (scale[0] + (scale[1] - scale[0]) * u[i])
        shape = math.exp(low + (high - low) * u[ATTEMPTS + i])
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            place = u[2 * ATTEMPTS : 2 * ATTEMPTS + 2]
            return int(place[0] * (height - h + 1)), int(place[1] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def take(image: Tensor, window: np.ndarray, size: int) -> Tensor:
    """One window (4 fractions) of an image 1 3 h w uint8, resized to 1 3 size size.

    A channels-last view (pixels as they come from a decoder) is the fast layout. Within 13 grey
    levels of PIL's BICUBIC, 0.04 on average: weights are rounded differently.
    """
    height, width = image.shape[-2:]
    top, bottom = round(window[0] * height), round((window[0] + window[2]) * height)
    left, right = round(window[1] * width), round((window[1] + window[3]) * width)
    part = image[:, :, top:bottom, left:right]
    return F.interpolate(part, (size, size), mode="bicubic", antialias=True)


def apply(image: Tensor, p: Tensor, size: int | None = None) -> Tensor:
    """Windows b 4 of images b 3 h w, resized to `size` (the images' height unless given)."""
    size = image.shape[-2] if size is None else size
    windows = p.cpu().double().numpy()
    return torch.cat(
        [take(one[None], window, size) for one, window in zip(image, windows, strict=True)]
    )


def matrix(p: Tensor) -> Tensor:
    """Source → window in [-1, 1] coordinates: parameters b 4 → b 3 3."""
    result = torch.zeros(len(p), 3, 3, dtype=p.dtype, device=p.device)
    top, left, height, width = p.unbind(1)
    result[:, 0, 0], result[:, 0, 2] = 1 / width, (1 - 2 * left - width) / width
    result[:, 1, 1], result[:, 1, 2] = 1 / height, (1 - 2 * top - height) / height
    result[:, 2, 2] = 1
    return result


def delta(p: Tensor, q: Tensor) -> Tensor:
    """Center and size of p less those of q, b 4 (y, x, height, width), as in AugSelf (Lee, 2021).

    Where a view is flipped, its x center is 1 - x in the view; who compares such views mirrors it.
    """
    center = (p[:, :2] + p[:, 2:] / 2) - (q[:, :2] + q[:, 2:] / 2)
    return torch.cat((center, p[:, 2:] - q[:, 2:]), dim=1)
