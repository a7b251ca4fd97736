"""Pictures as an evaluation feeds them to a frozen encoder.

Evaluation: Resize (short side, bicubic with antialiasing on 8-bit values), CenterCrop, as in Caron
et al. (2021, "DINO"). Pixel i of a side that goes from n to r pixels is, with the filter f,

    out(i) = Σ_x w(x) in(x) / Σ_x w(x),  w(x) = f((x + ½ - (i + ½) n/r) / max(n/r, 1)),

so that the crop can be had without the rest of the resized picture. The augmented probe:
RandomResizedCrop (bilinear) and a flip, torchvision's defaults, with parameters that depend on
(seed, epoch, sample key) alone.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from equitools.augment.normalize import normalize
from equitools.augment.operations.crop import part
from equitools.backbones.encoder import Encoder
from equitools.core.errors import DataError, UsageError
from equitools.data import images
from equitools.data.shards.index import ShardIndex
from equitools.data.workers import quiet_worker

FILTERS = {
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
}
LONG = 8  # beyond this aspect ratio most of a resized picture lies outside its crop


@dataclass(frozen=True)
class Transform:
    """Resize the short side to `resize`, crop `size` × `size` in the middle, normalize.

    `resize` is at least `size`, interpolation is bicubic or bilinear; else UsageError.
    """

    size: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.interpolation not in FILTERS:
            raise UsageError(f"interpolation is '{self.interpolation}'; it is bicubic or bilinear")
        if self.resize < self.size:
            raise UsageError(f"a crop of {self.size} does not fit a short side of {self.resize}")

    def pixels(self, image: np.ndarray) -> Tensor:
        """uint8 h w 3 → uint8 3 size size, with antialiasing.

        Within 0.05 gray levels of Pillow's Resize and CenterCrop on average: aten rounds the
        filter's weights otherwise. Memory is that of the crop's surroundings, for any shape.
        """
        height, width = image.shape[:2]
        tall, wide = self._resized(height, width)
        top, left = round((tall - self.size) / 2), round((wide - self.size) / 2)
        corner = (top, left, top + self.size, left + self.size)
        crop = _cut_long if max(tall, wide) > LONG * self.resize else _cut
        return crop(image, tall, wide, corner, self.interpolation).contiguous()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width with a short side of `resize`; the long side is rounded down."""
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize

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
    encoder: Encoder,
    *,
    size: int | None = None,
    crop_pct: float | None = None,
    interpolation: str = "bicubic",
) -> Transform:
    """The encoder's evaluation transform; size and crop_pct are its own unless given.

    The short side becomes round(size / crop_pct): 256 for 224 at 0.875.
    """
    own = encoder.config()["pretrained_cfg"]
    size = size or own["input_size"][-1]
    share = crop_pct or own.get("crop_pct") or 0.875
    if not 0 < share <= 1:
        raise UsageError(f"crop_pct is {share:g}; it is above 0 and at most 1")
    mean, std = tuple(own["mean"]), tuple(own["std"])
    return Transform(size, round(size / share), interpolation, mean, std)


def _cut(
    image: np.ndarray, tall: int, wide: int, corner: tuple[int, int, int, int], mode: str
) -> Tensor:
    """The corner (top, left, bottom, right) of an image h w 3 resized to tall × wide, compiled or
    else by aten, with the same values.

    aten starts at pixel 0 but ends where it is told, so that nothing right of the crop and below
    it is computed. Pixels as a decoder gives them (channels last) are its fast layout.
    """
    height, width = image.shape[:2]
    top, left, bottom, right = corner
    linear = mode == "bilinear"
    crop = part(image, tall, wide, top, left, bottom - top, linear=linear)
    if crop is not None:
        return torch.from_numpy(crop).permute(2, 0, 1)
    picture = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    resize = FILTERS[mode]
    return resize(picture, [bottom, right], False, tall / height, wide / width)[0, :, top:, left:]


def _cut_long(
    image: np.ndarray, tall: int, wide: int, corner: tuple[int, int, int, int], mode: str
) -> Tensor:
    """The same by Pillow, which is slower but computes nothing left of the crop and above it.

    First along the rows, then along the columns, as every resize does: Pillow would choose the
    order by the size of the crop, and 8-bit values between the passes make it matter.
    """
    height, width = image.shape[:2]
    top, left, bottom, right = corner
    rows, columns = height / tall, width / wide
    kernel = Image.Resampling[mode.upper()]
    box = (left * columns, 0, right * columns, height)
    strip = Image.fromarray(image).resize((right - left, height), kernel, box)
    box = (0, top * rows, right - left, bottom * rows)
    crop = strip.resize((right - left, bottom - top), kernel, box)
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


class Pictures(Dataset):
    """Pictures of a split as uint8 3 size size: the evaluation transform, or with `augment`
    (seed, epoch) random crops. One that cannot be read is returned as the error, to be raised where
    a user sees it."""

    def __init__(
        self, index: ShardIndex, transform: Transform, augment: tuple[int, int] | None = None
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


def load(
    index: ShardIndex,
    batches: Iterable[Sequence[int]],
    transform: Transform,
    augment: tuple[int, int] | None = None,
    *,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> Iterator[Tensor]:
    """The pictures of each batch of positions of a split, uint8 b 3 size size, on the device;
    DataError naming a picture that cannot be read."""
    loader: DataLoader = DataLoader(
        Pictures(index, transform, augment),
        batch_sampler=map(list, batches),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=quiet_worker,
        pin_memory=torch.device(device).type == "cuda",
    )
    for pixels in loader:
        if isinstance(pixels, Exception):
            raise pixels
        yield pixels.to(device, non_blocking=True)


def _collate(items: list[Any]) -> Any:
    """Stack pictures, or hand on the first error among them."""
    return next((item for item in items if isinstance(item, Exception)), None) or torch.stack(items)


def keyed(*parts: Any) -> int:
    """A seed that depends on the parts alone, whatever worker or process asks."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
