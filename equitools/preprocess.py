"""Pictures as an evaluation feeds them to a frozen encoder.

Evaluation: Resize (short side, bicubic with antialiasing on 8-bit values), CenterCrop, as in Caron
et al. (2021, "DINO"). The augmented probe: RandomResizedCrop (bilinear) and a flip, torchvision's
defaults, with parameters that depend on (seed, epoch, sample key) alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from equitools import images
from equitools.augment import normalize
from equitools.errors import DataError, UsageError


@dataclass(frozen=True)
class Transform:
    """Resize the short side to `resize`, crop `size` × `size` in the middle, normalize."""

    size: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, image: np.ndarray) -> Tensor:
        """uint8 h w 3 → uint8 3 size size; bicubic or bilinear with antialiasing."""
        picture = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        mode = InterpolationMode(self.interpolation)
        small = F.resize(picture, [self.resize], interpolation=mode, antialias=True)
        return F.center_crop(small, [self.size, self.size]).contiguous()

    def crop(self, image: np.ndarray, seed: int) -> Tensor:
        """uint8 h w 3 → uint8 3 size size: a random crop of 8 to 100 % of the area, resized
        (bilinear, antialiasing) and flipped half of the time; the same for the same seed."""
        picture = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            window = RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3])
            flip = bool(torch.rand(()) < 0.5)
        mode = InterpolationMode.BILINEAR
        small = F.resized_crop(
            picture, *window, [self.size] * 2, interpolation=mode, antialias=True
        )
        return (F.horizontal_flip(small) if flip else small).contiguous()

    def describe(self) -> str:
        """In words, for a record."""
        return (
            f"Resize({self.resize}, {self.interpolation}, antialias, 8-bit),"
            f" CenterCrop({self.size}), mean {list(self.mean)}, std {list(self.std)}"
        )

    def normalized(self, pixels: Tensor) -> Tensor:
        """b 3 h w, uint8 or floats in [0, 1] → floats by the encoder's mean and deviation."""
        return normalize(pixels, self.mean, self.std)


def evaluation_transform(
    encoder: Any,
    *,
    size: int | None = None,
    crop_pct: float | None = None,
    interpolation: str = "bicubic",
) -> Transform:
    """The encoder's evaluation transform; size and crop_pct are its own unless given.

    The short side becomes round(size / crop_pct): 256 for 224 at 0.875.
    """
    if interpolation not in ("bicubic", "bilinear"):
        raise UsageError(f"interpolation is '{interpolation}'; it is bicubic or bilinear")
    own = encoder.config()["pretrained_cfg"]
    size = size or own["input_size"][-1]
    share = crop_pct or own.get("crop_pct") or 0.875
    if not 0 < share <= 1:
        raise UsageError(f"crop_pct is {share:g}; it is above 0 and at most 1")
    mean, std = tuple(own["mean"]), tuple(own["std"])
    return Transform(size, round(size / share), interpolation, mean, std)


class Pictures(Dataset):
    """Pictures of a split as uint8 3 size size: the evaluation transform, or with `augment`
    (seed, epoch) random crops. One that cannot be read is returned as the error, to be raised where
    a user sees it."""

    def __init__(
        self, index: Any, transform: Transform, augment: tuple[int, int] | None = None
    ) -> None:
        self.index, self.transform, self.augment = index, transform, augment

    def __getitem__(self, i: int) -> Tensor | DataError:
        try:
            data = images.decode(self.index.image(i), self.index.where(i))
        except DataError as error:
            return error
        if self.augment is None:
            return self.transform.pixels(data)
        return self.transform.crop(data, keyed(*self.augment, self.index.keys[i]))


def keyed(*parts: Any) -> int:
    """A seed that depends on the parts alone, whatever worker or process asks."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
