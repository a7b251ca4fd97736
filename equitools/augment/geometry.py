"""Planar geometry as 3×3 matrices in [-1, 1] coordinates, for pictures and feature maps alike.

A matrix M takes source points to view points, (x, y, 1) columns, x right and y down, the centers
of the corner pixels half a pixel inside ±1. `warp` reads the source at M⁻¹ of each view pixel.
Right-angle rotations and flips are permutations of pixels and are carried out as such.
"""

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F


def identity(count: int) -> Tensor:
    """The matrix of doing nothing, count 3 3 float64."""
    return torch.eye(3, dtype=torch.float64).expand(count, 3, 3)


def compose(*matrices: Tensor) -> Tensor:
    """First the first matrix, then the next …: b 3 3 each → b 3 3."""
    return reduce(lambda total, matrix: matrix @ total, matrices)


def invert(matrix: Tensor) -> Tensor:
    """The matrix that undoes an affine one, b 3 3; computed in float64."""
    return torch.linalg.inv(matrix.double()).to(matrix.dtype)


def move(points: Tensor, matrix: Tensor) -> Tensor:
    """Points b n 2 (x, y) carried by affine matrices b 3 3."""
    return points @ matrix[:, :2, :2].mT + matrix[:, None, :2, 2]


def centers(height: int, width: int, like: Tensor) -> Tensor:
    """The centers of a picture's pixels, h w 2 (x, y), of the type of a tensor."""
    y = (torch.arange(height, dtype=like.dtype, device=like.device) * 2 + 1) / height - 1
    x = (torch.arange(width, dtype=like.dtype, device=like.device) * 2 + 1) / width - 1
    return torch.stack(torch.broadcast_tensors(x, y[:, None]), dim=-1)


def grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """Where each of the view's pixels comes from, b h w 2 in source coordinates."""
    points = centers(height, width, matrix).reshape(1, -1, 2)
    return move(points, invert(matrix)).reshape(-1, height, width, 2)


def warp(
    image: Tensor, matrix: Tensor, size: tuple[int, int] | None = None, mode: str = "bilinear"
) -> Tensor:
    """Apply matrices b 3 3 to pictures or feature maps b c h w (floats); zeros from outside.

    size: height and width of the result, those of the input unless given. mode: bilinear, nearest
    or bicubic. Samples whose matrix is a flip or a right-angle rotation, and whose result has the
    permuted shape, are permuted exactly; the others are interpolated. Differentiable in `image`.
    """
    height, width = image.shape[-2:] if size is None else size
    matrix = matrix.expand(len(image), 3, 3)
    known = elements(matrix.detach().cpu().double())
    out = image.new_empty(len(image), image.shape[1], height, width)
    for element in set(known):
        rows = [i for i, e in enumerate(known) if e == element]
        part = image if len(rows) == len(image) else image[rows]
        moved = permute(part, element) if element is not None else None
        if moved is None or tuple(moved.shape[-2:]) != (height, width):
            where = grid(matrix[rows].to(image), height, width)
            moved = F.grid_sample(part, where, mode=mode, align_corners=False)
        if len(rows) == len(image):
            return moved
        out = out.index_copy(0, torch.tensor(rows, device=image.device), moved)
    return out


def elements(matrix: Tensor, tolerance: float = 1e-6) -> list[tuple[bool, int] | None]:
    """b 3 3 matrices as (flip left–right, then k quarter turns counter-clockwise), or None."""
    turns = quarter_turns(matrix.dtype).to(matrix.device)
    flip = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    flip[0, 0] = -1
    known = torch.cat((turns, turns @ flip))
    close = ((matrix[:, None] - known).abs() <= tolerance).flatten(2).all(-1)
    return [
        (row.index(True) >= 4, row.index(True) % 4) if any(row) else None for row in close.tolist()
    ]


def quarter_turns(dtype: torch.dtype) -> Tensor:
    """The matrices of 0 to 3 quarter turns counter-clockwise, 4 3 3."""
    matrices = torch.zeros(4, 3, 3, dtype=dtype)
    matrices[:, 2, 2] = 1
    for turns, (cosine, sine) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
        matrices[turns, :2, :2] = torch.tensor([[cosine, sine], [-sine, cosine]], dtype=dtype)
    return matrices


def permute(image: Tensor, element: tuple[bool, int]) -> Tensor:
    """Flip left–right if asked, then k quarter turns counter-clockwise: … h w, no interpolation."""
    flip, turns = element
    return torch.rot90(image.flip(-1) if flip else image, turns, (-2, -1))


def act(maps: Tensor, group: list[tuple[bool, int]], size: tuple[int, int]) -> Tensor:
    """ρ_g on feature maps: b d h w → b d H W, a flip and turns for each sample, then a resize.

    Flips and turns permute the cells exactly; maps of another size than H W are interpolated
    (bicubic, edges held), for scaling the whole picture is the identity in [-1, 1] coordinates.
    """
    parts, order = [maps.new_zeros(0, maps.shape[1], *size)], []
    for element in dict.fromkeys(group):
        rows = [row for row, other in enumerate(group) if other == element]
        moved = permute(maps[rows], element)
        if tuple(moved.shape[-2:]) != tuple(size):
            moved = F.interpolate(moved, tuple(size), mode="bicubic", align_corners=False)
        parts.append(moved)
        order += rows
    places = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat(parts)[torch.tensor(places, dtype=torch.long, device=maps.device)]
