"""Elastic deformation: every pixel is fetched from a smoothly random place nearby.

    displacement = alpha / size · G_sigma * noise,  noise ~ U(-1, 1) for each pixel and axis

in [-1, 1] coordinates, hence alpha / 2 pixels for each unit of blurred noise; bilinear, black from
outside (Simard et al., 2003; torchvision's ElasticTransform, its kernel of 8 sigma + 1 taps and
reflected edges). The Gaussian is separable, so the field is A · noise · Aᵀ with one banded matrix.

The noise is a hash of (seed, pixel), the same on every device; torch's generators are not.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from equitools.augment import geometry

NAMES = ("alpha",)
IDENTITY = (0.0,)
COLUMNS = slice(26, 28)
SCOPE, PLACE, MOVES = "views", 30, True


def draw(
    uniforms: np.ndarray, *, alpha: float = 100.0, sigma: float = 5.0, p: float = 0.5
) -> np.ndarray:
    """n × 2 uniforms → n × 3: alpha (0: nothing is done), sigma, and the seed of the noise."""
    chosen = np.where(uniforms[:, 0] < p, alpha, 0.0)
    seed = np.floor(uniforms[:, 1] * 2**53)
    return np.stack((chosen, np.full(len(uniforms), sigma), seed), axis=1)


def apply(image: Tensor, p: Tensor) -> Tensor:
    """Pictures b c h w, floats, each deformed by its own field (b 3: alpha, sigma, seed)."""
    height, width = image.shape[-2:]
    noise = hashed(p[:, 2], height, width, image.device).to(image.dtype)
    where = field(noise, p[:, 0], p[:, 1]) + geometry.centers(height, width, image)
    # torchvision weighs what it has sampled once more with how much of it lay inside.
    inside = image.new_ones(len(image), 1, height, width)
    out = F.grid_sample(torch.cat((image, inside), 1), where, align_corners=False)
    return out[:, :-1] * out[:, -1:]


def field(noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Displacements b h w 2 (x, y) in [-1, 1] coordinates from noise b 2 h w in (-1, 1)."""
    height, width = noise.shape[-2:]
    for value in sigma.unique().tolist():
        rows = (sigma == value).nonzero()[:, 0].to(noise.device)
        down, across = (reflected(value, size).to(noise) for size in (height, width))
        whole = len(rows) == len(noise)
        smooth = down @ (noise if whole else noise[rows]) @ across.T
        noise = smooth if whole else noise.index_copy(0, rows, smooth)
    scale = alpha.to(noise)[:, None] / noise.new_tensor((width, height))
    return noise.mul_(scale[:, :, None, None]).permute(0, 2, 3, 1)


def reflected(sigma: float, size: int) -> Tensor:
    """The Gaussian along an axis of `size` pixels as a matrix size size float64, edges reflected.

    Kernels longer than the picture are reflected as often as they need (torchvision refuses).
    """
    if sigma <= 0:
        return torch.eye(size, dtype=torch.float64)
    half = int(8 * sigma + 1) // 2
    offset = torch.arange(-half, half + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel /= kernel.sum()
    period = max(2 * (size - 1), 1)
    target = (torch.arange(size)[:, None] + offset.long()) % period
    target = torch.minimum(target, period - target) if size > 1 else torch.zeros_like(target)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, target, kernel.expand(size, -1))


def hashed(seed: Tensor, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Noise b 2 h w in (-1, 1), 16 bits a value, from seeds b below 2⁵³ and the pixel's number.

    One 32-bit word gives both axes: two rounds of a mixing function of xorshifts and products
    (Wellons, 2018, "hash-prospector"), the seed mixed into each.
    """
    start, salt = words(seed.cpu()).to(device)[:, :, None].unbind(1)
    word = torch.arange(height * width, dtype=torch.int32, device=device) + start
    word = _mix(_mix(word).bitwise_xor_(salt))
    halves = torch.stack(((word >> 16) & 0xFFFF, word & 0xFFFF), dim=1)
    noise = halves.float().mul_(2 / 65536).add_(1 / 65536 - 1)
    return noise.view(-1, 2, height, width)


def words(seed: Tensor) -> Tensor:
    """Seeds b below 2⁵³ as b 2 int32: the first pixel's number, and the salt of all hashes."""
    start = _mix(_word(seed.long() & 0xFFFFFFFF))
    return torch.stack((start, _mix(_word(seed.long() >> 32) ^ start)), dim=1)


def _word(value: Tensor) -> Tensor:
    """Unsigned 32 bits in int64 → the same bits as int32, whose products wrap as they must."""
    return torch.where(value >= 2**31, value - 2**32, value).to(torch.int32)


def _mix(x: Tensor) -> Tensor:
    # Shifts of int32 repeat the sign; the masks make them logical.
    x ^= (x >> 16) & 0xFFFF
    x *= 0x21F0AAAD
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x735A2D97
    x ^= (x >> 15) & 0x1FFFF
    return x
