"""Rotation about the center by an angle in degrees, counter-clockwise as one looks at the picture.

Nearest neighbour and black corners, as RandomRotation leaves them. The index arithmetic is PIL's
(16.16 fixed point), hence the result is PIL's to the bit, the same on every device, and exact at
right angles.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

NAMES = ("degrees",)
IDENTITY = (0.0,)
COLUMNS = slice(25, 26)
SCOPE, PLACE, MOVES = "views", 20, True


def draw(uniforms: np.ndarray, *, degrees: float = 90.0) -> np.ndarray:
    """n × 1 uniforms → n × 1 angles, uniform in [-degrees, degrees]."""
    return (2 * uniforms[:, :1] - 1) * degrees


def _cosine_sine(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, without the dust that π leaves at right angles."""
    radians = torch.deg2rad(degrees.double() % 360)
    return radians.cos().round(decimals=15), radians.sin().round(decimals=15)


def apply(image: Tensor, p: Tensor) -> Tensor:
    """Pictures b c h w of any type, each rotated by its angle (b 1); sides below 16 384 pixels."""
    height, width = image.shape[-2:]
    x_from, y_from = coefficients(p, height, width).unbind(1)
    x = _positions(x_from.to(image.device), height, width).clamp_(-1, width)
    y = _positions(y_from.to(image.device), height, width).clamp_(-1, height)
    # A black frame of one pixel is what the outside looks up: cheaper than a mask.
    framed = F.pad(image, (1, 1, 1, 1)).flatten(2)
    index = (y + 1).mul_(width + 2).add_(x).add_(1).long().flatten(1)[:, None]
    return framed.gather(2, index.expand(-1, image.shape[1], -1)).view_as(image)


def coefficients(p: Tensor, height: int, width: int) -> Tensor:
    """Where pixels come from: x and then y in the source from (x, y, 1), b 2 3 int32, 16.16."""
    cosine, sine = _cosine_sine(p[:, 0].cpu())
    middle = width / 2, height / 2
    x_from = _fixed_point(cosine, -sine, *middle, width / 2)
    return torch.stack((x_from, _fixed_point(sine, cosine, *middle, height / 2)), dim=1)


def _fixed_point(a: Tensor, b: Tensor, x0: float, y0: float, center: float) -> Tensor:
    """Coefficients n 3 of (x, y, 1) with 16 fractional bits: a (x - x0) + b (y - y0) + center.

    The half pixel goes into the constant, as a pixel's center is what is looked up.
    """
    constant = center - a * x0 - b * y0 + a * 0.5 + b * 0.5
    return torch.floor(torch.stack((a, b, constant), 1) * 65536 + 0.5).to(torch.int32)


def _positions(coefficients: Tensor, height: int, width: int) -> Tensor:
    """Source positions b h w along one axis, whole pixels, negative or too large when outside."""
    x = torch.arange(width, dtype=torch.int32, device=coefficients.device)
    y = torch.arange(height, dtype=torch.int32, device=coefficients.device)
    a, b, constant = (c[:, None] for c in coefficients.unbind(1))
    return ((b * y + constant)[:, :, None] + (a * x)[:, None, :]) >> 16


def matrix(p: Tensor, aspect: float = 1.0) -> Tensor:
    """b 1 → b 3 3, for pictures whose width is `aspect` times their height."""
    cosine, sine = (value.to(p) for value in _cosine_sine(p[:, 0]))
    result = torch.zeros(len(p), 3, 3, dtype=p.dtype, device=p.device)
    result[:, 0, 0] = result[:, 1, 1] = cosine
    result[:, 0, 1], result[:, 1, 0] = sine / aspect, -sine * aspect
    result[:, 2, 2] = 1
    return result


def delta(p: Tensor, q: Tensor) -> Tensor:
    """The angle from q to p in degrees, in [-180, 180), b 1."""
    return (p - q + 180) % 360 - 180
