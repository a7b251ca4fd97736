"""Random resized crop: a window of random area and shape, resized to the view.

    area ~ U(scale) · H · W,  log(w / h) ~ U(log ratio),  the place uniform among those that fit;
after ten windows that do not fit, the largest central one (Szegedy et al., 2015; torchvision's
RandomResizedCrop). Bicubic with antialiasing on 8-bit values, taken where the image is decoded.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from equitools.augment import native
from equitools.augment.checks import interval

NAMES = ("top", "left", "height", "width")
IDENTITY = (0.0, 0.0, 1.0, 1.0)
COLUMNS = slice(0, 24)
SCOPE, PLACE, MOVES = "group", 0, True
ATTEMPTS = 10
Range = Sequence[float]
Window = tuple[int, int, int, int]  # top, left, height, width
RATIO = (3 / 4, 4 / 3)
DEFAULTS = {"local": [0.05, 0.4]}  # of DINO
PLAIN = False  # without the instructions that some processors lack, for comparison


def of_group(
    where: str, *, crop: tuple[float, float] = (0.4, 1.0), ratio: tuple[float, float] = RATIO
) -> dict[str, Range]:
    """crop: share of the image's area. ratio: width over height of the window."""
    scale = interval(crop, f"{where}.crop", most=1)
    return {"scale": scale, "ratio": interval(ratio, f"{where}.ratio")}


def draw(
    uniforms: np.ndarray,
    height: int,
    width: int,
    *,
    scale: Range = (0.08, 1.0),
    ratio: Range = RATIO,
) -> np.ndarray:
    """Windows in fractions of an image of height × width pixels, from uniforms n × 24.

    Returns n × 4 (top, left, height, width), whole pixels once multiplied by the image's size.
    """
    count = len(uniforms)
    pixels = place(uniforms, height, width, scale=[scale] * count, ratio=[ratio] * count)
    return pixels / (height, width, height, width)


def place(
    uniforms: np.ndarray, height: int, width: int, *, scale: Sequence[Range], ratio: Sequence[Range]
) -> np.ndarray:
    """The windows of `draw` in pixels, n × 4 int32; scale and ratio: of each."""
    rows = zip(uniforms.tolist(), scale, ratio, strict=True)
    windows = [_window(row, height, width, *ranges) for row, *ranges in rows]
    return np.array(windows, np.int32).reshape(-1, 4)


def _window(u: list[float], height: int, width: int, scale: Range, ratio: Range) -> Window:
    """One window in pixels. Plain Python: a sample has a handful, and arrays would cost more."""
    # The crops of a probe's training (features/transform.py) have this law too, but torchvision
    # draws them from torch's generator: published numbers depend on it.
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


def take(image: np.ndarray, windows: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Windows n × 4 (pixels) of an image h w 3 uint8, each resized to its size × size.

    Returns them one after another as bytes, rows of RGB. Within 13 grey levels of PIL's BICUBIC,
    0.04 on average: weights are rounded differently. The compiled filter is torch's to the bit.
    Raises TypeError for other arrays and ValueError for windows that are not inside.
    """
    if image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise TypeError(f"a picture is h w 3 uint8, not {image.shape} {image.dtype}")
    image = np.ascontiguousarray(image)
    height, width = image.shape[:2]
    wanted = np.empty((len(windows), 5), np.int32)
    wanted[:, :4], wanted[:, 4] = windows, sizes
    out = np.empty(3 * sum(size * size for size in sizes), np.uint8)
    library = native.library()
    if library is None:
        _interpolate(image, wanted, out)
        return out
    pointers = image.ctypes.data, wanted.ctypes.data, out.ctypes.data
    failed = library.crop(pointers[0], height, width, pointers[1], len(wanted), PLAIN, pointers[2])
    _raise(failed, f"cannot crop a picture of {height}×{width}")
    return out


def part(
    image: np.ndarray, tall: int, wide: int, top: int, left: int, size: int, *, linear: bool
) -> np.ndarray | None:
    """The square from (top, left) of an image h w 3 uint8 resized to tall × wide, size size 3, by
    the compiled bicubic or linear filter: nothing else of it is computed. torch's values to the
    bit. None where it was not built. Raises ValueError for a square that is not inside."""
    library = native.library()
    if library is None:
        return None
    image = np.ascontiguousarray(image)
    out = np.empty((size, size, 3), np.uint8)
    numbers = (*image.shape[:2], tall, wide, top, left, size, int(linear), PLAIN)
    failed = library.resize_part(image.ctypes.data, *numbers, out.ctypes.data)
    _raise(failed, f"cannot cut {size} px of {tall}×{wide}")
    return out


def _raise(failed: int, what: str) -> None:
    if failed:
        raise (MemoryError, ValueError)[failed - 1](what)


def _interpolate(image: np.ndarray, wanted: np.ndarray, out: np.ndarray) -> None:
    whole = torch.from_numpy(image if image.flags.writeable else image.copy())
    start = 0
    for top, left, height, width, size in wanted.tolist():
        # Pixels as they come from a decoder are torch's fast layout, seen as channels last.
        part = whole[top : top + height, left : left + width].permute(2, 0, 1)[None]
        resized = F.interpolate(part, (size, size), mode="bicubic", antialias=True)
        end = start + resized.numel()
        out[start:end] = resized[0].permute(1, 2, 0).flatten().numpy()
        start = end


def apply(image: Tensor, p: Tensor, size: int | None = None) -> Tensor:
    """Windows b 4 of images b 3 h w uint8, resized to `size` (the images' height unless given)."""
    size = image.shape[-2] if size is None else size
    windows = in_pixels(p.cpu().double(), torch.tensor(image.shape[-2:])).numpy()
    pixels = image.permute(0, 2, 3, 1).contiguous().numpy(force=True)
    taken = [take(one, window[None], [size]) for one, window in zip(pixels, windows, strict=True)]
    rows = torch.from_numpy(np.concatenate(taken)).view(-1, size, size, 3)
    return rows.permute(0, 3, 1, 2).to(image.device)


def in_pixels(p: Tensor, sides: Tensor) -> Tensor:
    """Windows … 4 in fractions of pictures of sides … 2 (height, width) → whole pixels, … 4."""
    start, end = (p[..., :2] * sides).round(), ((p[..., :2] + p[..., 2:]) * sides).round()
    return torch.cat((start, end - start), dim=-1)


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
