"""Color jitter: brightness, contrast, saturation and hue, in an order drawn for each sample.

    brightness  x ← f x
    contrast    x ← f x + (1 - f) · mean luma of the picture
    saturation  x ← f x + (1 - f) · luma
    hue         the hue angle of HSV moves by f turns, f in [-0.5, 0.5]

each clamped to [0, 1], in floats (torchvision's tensor definitions, without its 8-bit rounding).
"""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from equitools.augment import color
from equitools.augment.checks import probability
from equitools.core.errors import UsageError
from equitools.manifest import schema

NAMES = ("brightness", "contrast", "saturation", "hue", "first", "second", "third", "fourth")
IDENTITY = (1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 2.0, 3.0)
COLUMNS = slice(28, 34)
SCOPE, PLACE, MOVES = "group", 40, False
TILE = 96 << 10  # pixels
LARGE = 128 * 128  # pixels
ORDERS = np.array(list(permutations(range(4))), dtype=np.float64)


def of_group(where: str, *, jitter: dict | None = None) -> dict[str, float]:
    """jitter: p and the strengths, as `draw` has them."""
    knobs = schema.knobs(draw, jitter or {}, f"{where}.jitter")
    probability(knobs["p"], f"{where}.jitter.p")
    for name, limit in zip(NAMES[:4], (np.inf, np.inf, np.inf, 0.5), strict=True):
        if not 0 <= knobs[name] <= limit:
            path = f"{where}.jitter.{name}"
            raise UsageError(f"{path} is {knobs[name]:g}; it must be in [0, {limit:g}]")
    return knobs


def draw(
    uniforms: np.ndarray,
    *,
    p: float = 0.8,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
) -> np.ndarray:
    """n × 6 uniforms → n × 8: factors in [max(0, 1 - s), 1 + s], turns of hue in [-hue, hue], then
    the order as four numbers (0 brightness, 1 contrast, 2 saturation, 3 hue), first first."""
    spread = np.array((brightness, contrast, saturation))
    low = np.maximum(0, 1 - spread)
    factors = low + (1 + spread - low) * uniforms[:, 1:4]
    turns = (2 * uniforms[:, 4:5] - 1) * hue
    order = ORDERS[(uniforms[:, 5] * len(ORDERS)).astype(int)]
    chosen = uniforms[:, :1] < p
    return np.where(chosen, np.hstack((factors, turns, order)), np.array(IDENTITY))


def apply(image: Tensor, p: Tensor) -> Tensor:
    """Pictures b 3 h w, floats in [0, 1], each with its own factors and order (b 8)."""
    image = image.clone()
    factors, order = p[:, :4].cpu(), p[:, 4:].cpu().long()
    changed = factors != torch.tensor(IDENTITY[:4], dtype=factors.dtype)
    for slot in range(4):
        for number, change in enumerate((_brightness, _contrast, _saturation, _hue)):
            rows = ((order[:, slot] == number) & changed[:, number]).nonzero()[:, 0]
            if len(rows):
                amount = factors[rows, number].to(image)[:, None, None, None]
                _change(image, rows, amount, change)
    return image


def _change(image: Tensor, rows: Tensor, amount: Tensor, change: Callable) -> None:
    """Change some pictures in place: large ones on a CPU each by itself, which saves two copies."""
    if image.device.type == "cpu" and image[0, 0].numel() >= LARGE:
        for row, one in zip(rows.tolist(), amount, strict=True):
            change(image[row : row + 1], one)
    else:
        where = rows.to(image.device)
        image.index_copy_(0, where, change(image.index_select(0, where), amount))


def _brightness(image: Tensor, factor: Tensor) -> Tensor:
    return image.mul_(factor).clamp_(0, 1)


def _contrast(image: Tensor, factor: Tensor) -> Tensor:
    mean = color.luma(image.mean((2, 3), keepdim=True))
    return image.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def _saturation(image: Tensor, factor: Tensor) -> Tensor:
    luma = color.luma(image)
    return image.mul_(factor).add_(luma.mul_(1 - factor)).clamp_(0, 1)


def _hue(image: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue piece by piece on a CPU, so that temporaries stay in a core's cache."""
    if image.device.type != "cpu":
        return _turn(image, turns)
    pixels = image.flatten(2)[..., None]
    rows = max(1, TILE // pixels.shape[2])
    for i in range(0, len(pixels), rows):
        for j in range(0, pixels.shape[2], TILE):
            _turn(pixels[i : i + rows, :, j : j + TILE], turns[i : i + rows])
    return image


def _turn(image: Tensor, turns: Tensor) -> Tensor:
    """With the hue H in sixths of a turn and C = max - min, the channels of a color are

    max - C · clamp(2 - |H - 3|), max - C · clamp(|H - 2| - 1), max - C · clamp(|H - 4| - 1)

    with the clamps to [0, 1] and H in [0, 6): the closed form of HSV → RGB.
    """
    red, green, blue = image.split(1, dim=1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=1e-12).reciprocal_()
    # Arithmetic selection: `where` on a mask as irregular as a picture's is an order slower.
    not_green, not_red = (high - green).sign_(), (high - red).sign_()
    angle = (red - green).mul_(scale).add_(4)
    angle = torch.lerp((blue - red).mul_(scale).add_(2), angle, not_green)
    angle = torch.lerp((green - blue).mul_(scale), angle, not_red).add_(6 * turns)
    angle.sub_((angle / 6).floor_().mul_(6))
    for channel, (sign, center, shift) in enumerate(((-1, 3, 2), (1, 2, -1), (1, 4, -1))):
        ramp = (angle - center).abs_().mul_(sign).add_(shift).clamp_(0, 1)
        torch.addcmul(high, ramp, chroma, value=-1, out=image[:, channel : channel + 1])
    return image.clamp_(0, 1)


def delta(p: Tensor, q: Tensor) -> Tensor:
    """Factors of p less those of q, b 4; the order has no difference."""
    return p[:, :4] - q[:, :4]
