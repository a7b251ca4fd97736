"""Two views of each picture that a group relates, and what takes maps of one to maps of the other.

g₁ and g₂ are uniform and independent, and depend on a seed and on the picture's key alone, so that
all encoders see the same views; ρ_g with g = g₂ g₁⁻¹ acts on maps. Quarter turns and flips permute
pixels and cells exactly. Scaling resizes the whole picture to another grid, nothing cropped or
padded, as SER trains it, and resizes the map; a zoom scales the content inside the frame.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from equitools.augment import geometry, grid, rng

Size = tuple[int, int]
Element = tuple[bool, int]  # flipped left-right, then so many quarter turns


class Pair(NamedTuple):
    """first, second: views b 3 h w of the same pictures. element: b, which g relates them (0 is the
    identity). act: ρ_g, from maps of the first view to maps of a size as the second view has them.
    valid: the cells b h w of maps of a size that count, or None where all do."""

    first: Tensor
    second: Tensor
    element: Tensor
    act: Callable[[Tensor, Size], Tensor]
    valid: Callable[[Size], Tensor] | None = None


def rotations(pixels: Tensor, names: Sequence[str], seed: int) -> Pair:
    """Views of square pictures b 3 h h at 0 to 3 quarter turns; element: turns between them."""
    turns = (4 * _uniforms(names, seed, "rotation")[..., 0]).astype(int)
    between = (turns[:, 1] - turns[:, 0]) % 4
    return _exact(pixels, turns, between, lambda k: (False, k))


def flips(pixels: Tensor, names: Sequence[str], seed: int) -> Pair:
    """Views of pictures b 3 h w, each flipped left-right or not; element: 1 if they differ."""
    flipped = _uniforms(names, seed, "flip")[..., 0] < 0.5
    between = flipped[:, 0] != flipped[:, 1]
    return _exact(pixels, flipped, between, lambda k: (bool(k), 0))


def scalings(
    pixels: Tensor,
    number: int,
    seed: int,
    *,
    cell: int,
    area: Sequence[float],
    aspect: Sequence[float],
) -> Pair:
    """Views b 3 (cell·H) (cell·W) of a block of square pictures, resized (bicubic) as a whole.

    The two grids H W are drawn for the whole block, the `number`-th. area: their cells as a share
    of the picture's, aspect: W / H, as ranges. element: 1 if the grids differ.
    """
    cells = [pixels.shape[-1] / cell] * 2
    first, second = (
        (cell * shape.height, cell * shape.width)
        for shape in grid.shapes(seed, number, cells, area=area, aspect=aspect)
    )
    picture = pixels.float() / 255
    element = torch.full((len(pixels),), int(first != second), device=pixels.device)
    return Pair(_resized(picture, first), _resized(picture, second), element, _resized)


def zooms(
    pixels: Tensor,
    names: Sequence[str],
    seed: int,
    *,
    area: Sequence[float],
    aspect: Sequence[float],
) -> Pair:
    """Views b 3 h w with the content scaled (bilinear) about the middle, black outside.

    area, aspect: ranges of the content's area and width / height, as shares of what they were. A
    cell counts if it lies inside the picture in both views; ρ_g is bilinear. element: 1.
    """
    u = torch.from_numpy(_uniforms(names, seed, "zoom")[..., :2]).to(pixels.device)
    scaled = area[0] + (area[1] - area[0]) * u[..., 0]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    wide = torch.exp(low + (high - low) * u[..., 1])
    factors = torch.stack(((scaled * wide).sqrt(), (scaled / wide).sqrt()), dim=-1)
    frames = torch.diag_embed(F.pad(factors, (0, 1), value=1.0))
    between = frames[:, 1] @ geometry.invert(frames[:, 0])
    picture = pixels.float() / 255
    first, second = (geometry.warp(picture, frames[:, view]) for view in (0, 1))
    # What lies at p in the second view lies at p / s₂ in the picture and at p s₁ / s₂ in the first.
    reach = torch.minimum(factors[:, 1], factors[:, 1] / factors[:, 0])

    def valid(size: Size) -> Tensor:
        high, wide = (_outer_edge(side).to(reach) for side in size)
        rows, columns = high <= reach[:, 1:] + 1e-6, wide <= reach[:, :1] + 1e-6
        return rows[:, :, None] & columns[:, None, :]

    element = torch.ones(len(pixels), dtype=torch.long, device=pixels.device)
    return Pair(first, second, element, lambda m, size: geometry.warp(m, between, size), valid)


def _uniforms(names: Sequence[str], seed: int, group: str) -> np.ndarray:
    """b × 2 × … uniforms: two rows for each picture."""
    return np.stack([rng.uniforms(seed, "movement", group, name, rows=2) for name in names])


def _exact(
    pixels: Tensor, drawn: np.ndarray, between: np.ndarray, element: Callable[[int], Element]
) -> Pair:
    """The pair of views that are drawn b 2, and what lies between them b; element: (flip, turns)
    of a number."""
    size = (pixels.shape[-2], pixels.shape[-1])
    first, second, relative = ([element(int(k)) for k in row] for row in (*drawn.T, between))
    one, other = (geometry.act(pixels, elements, size) for elements in (first, second))
    number = torch.from_numpy(between.astype(np.int64)).to(pixels.device)
    return Pair(one, other, number, lambda maps, shape: geometry.act(maps, relative, shape))


def _resized(image: Tensor, size: Size) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode="bicubic", align_corners=False)


def _outer_edge(cells: int) -> Tensor:
    """The edge of each of n cells that is farther from the middle, in [0, 1]."""
    center = (torch.arange(cells, dtype=torch.float64) * 2 + 1) / cells - 1
    return center.abs() + 1 / cells
