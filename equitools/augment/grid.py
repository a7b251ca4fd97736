"""Half turns and flips of single pictures, then one grid and quarter turns for a whole batch.

    A ~ U(area) · (size / patch)²,  log a ~ U(log aspect),  W = round √(A a),  H = round √(A / a)
    view = rot90^k( resize( hflip^f( rot180^d( picture ) ), patch·H × patch·W ) )

d and f are drawn for each sample; H, W and k once for each step and view, whatever process or
micro-batch the sample is in. Nothing is cropped or padded ("Soft Equivariance Regularization",
views of the second sub-batch, with the names of the grid's sides the usual way around).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from equitools.augment import geometry, rng

# Of a view as the encoder is shown it: its grid is that after the turns.
NAMES = ("half_turn", "flip", "quarter_turns", "grid_height", "grid_width")
Range = Sequence[float]
OF_SAMPLES = slice(38, 40)  # a view's uniforms that `moves` reads, behind those of the operations


class Shape(NamedTuple):
    """What a step draws for a view: cells of the grid before the turns, and the turns (0 to 3)."""

    height: int
    width: int
    turns: int


def shapes(
    seed: int, step: int, cells: Sequence[float], *, area: Range, aspect: Range, first: int = 0
) -> list[Shape]:
    """The shape of each view of a step. cells: size / patch of each view; first: how many views
    with grids of their own come before these."""
    rows = rng.uniforms(seed, "step", step, rows=first + len(cells))[first:]
    return [_shape(row.tolist(), side, area, aspect) for row, side in zip(rows, cells, strict=True)]


def _shape(u: list[float], side: float, area: Range, aspect: Range) -> Shape:
    cells = side * side * (area[0] + (area[1] - area[0]) * u[0])
    ratio = math.exp(math.log(aspect[0]) * (1 - u[1]) + math.log(aspect[1]) * u[1])
    height, width = round(math.sqrt(cells / ratio)), round(math.sqrt(cells * ratio))
    return Shape(max(1, height), max(1, width), int(4 * u[2]))


def moves(uniforms: np.ndarray) -> np.ndarray:
    """n × 2 uniforms → n × 2: half turn and flip, 1 or 0, each as likely as not."""
    return (uniforms[:, :2] < 0.5).astype(np.float64)


def parameters(drawn: np.ndarray, shape: Shape) -> Tensor:
    """The n × 5 numbers of NAMES for n × 2 moves."""
    height, width = turned(shape)
    rest = np.tile(np.array((shape.turns, height, width), np.float64), (len(drawn), 1))
    return torch.from_numpy(np.concatenate((drawn, rest), axis=1))


def turned(shape: Shape) -> tuple[int, int]:
    """Height and width of the grid after the turns."""
    return (shape.width, shape.height) if shape.turns % 2 else (shape.height, shape.width)


def apply(image: Tensor, p: Tensor, shape: Shape, patch: int) -> Tensor:
    """Pictures b c h w (floats) as the encoder is shown them; p: b 5 on the CPU."""
    half, flipped = ((p[:, i] != 0).to(image.device)[:, None, None, None] for i in (0, 1))
    image = torch.where(half, image.flip(-2, -1), image)
    image = torch.where(flipped, image.flip(-1), image)
    sides = patch * shape.height, patch * shape.width
    if len(image) and sides != tuple(image.shape[-2:]):
        image = F.interpolate(image, sides, mode="bicubic", align_corners=False)
    elif not len(image):
        image = image.new_zeros(*image.shape[:2], *sides)
    return torch.rot90(image, shape.turns, (-2, -1)).contiguous()


def matrix(p: Tensor) -> Tensor:
    """b 5 → b 3 3, one of the eight symmetries of the square: resizing the whole changes none."""
    half, flipped, turns = p[:, 0], p[:, 1], p[:, 2].long()
    before = torch.ones(len(p), 3, dtype=p.dtype, device=p.device)
    before[:, 0], before[:, 1] = (1 - 2 * half) * (1 - 2 * flipped), 1 - 2 * half
    return geometry.quarter_turns(p.dtype)[turns.cpu()].to(p.device) @ torch.diag_embed(before)


def delta(p: Tensor, q: Tensor) -> Tensor:
    """b 5: where half turns and flips differ (0, 1), turns from q to p (0 to 3), sizes p / q."""
    differs = (p[:, :2] - q[:, :2]).abs()
    turns = (p[:, 2:3] - q[:, 2:3]) % 4
    return torch.cat((differs, turns, p[:, 3:] / q[:, 3:]), dim=1)
