"""Windows of a batch of pictures, each resized by two products with banded matrices.

    out = W_y · (picture · W_xᵀ),   W_ij ∝ k((p_j - c_i) / max(s, 1)),   c_i = start + (i + ½) s

with k the cubic kernel of a = -½ (Keys, 1981), stretched by the scale s where it shrinks, over the
pixels of the window alone: Pillow's and torch's antialiased BICUBIC, here for all samples at once,
where the pictures are. Rounded to 8 bits after each direction, as they do.
"""

import torch
from torch import Tensor


def resample(pictures: Tensor, windows: Tensor, size: int) -> Tensor:
    """Windows b 4 (top, left, height, width in whole pixels) of pictures b 3 h w uint8.

    Returns b 3 size size uint8, within two levels of the 8-bit filter of `crop.take`.
    """
    top, left, height, width = windows.to(pictures.device, torch.float32).unbind(1)
    across = weights(left, width, size, pictures.shape[3])
    down = weights(top, height, size, pictures.shape[2])
    rows = _bytes(pictures.float() @ across.mT[:, None])
    return _bytes(down[:, None] @ rows).to(torch.uint8)


def weights(start: Tensor, length: Tensor, size: int, pixels: int) -> Tensor:
    """One axis of the filter, b size pixels: rows sum to one and are zero outside the window."""
    start, scale = start[:, None, None], (length / size)[:, None, None]
    place = torch.arange(pixels, device=start.device) + 0.5
    center = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    kernel = _cubic((place - center) / scale.clamp(min=1))
    inside = (place > start) & (place < start + length[:, None, None])
    kernel = kernel * inside
    return kernel / kernel.sum(-1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _bytes(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)
