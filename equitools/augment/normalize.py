"""Pictures in [0, 1] become what an encoder reads, (x - mean) / std by channel, and back."""

from collections.abc import Sequence

import torch
from torch import Tensor

Levels = Sequence[float]  # a number for each channel
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images, by channel
STD = (0.229, 0.224, 0.225)


def as_float(image: Tensor) -> Tensor:
    """uint8 in [0, 255] → float32 in [0, 1], a new tensor; floats are returned as they are."""
    return image if image.is_floating_point() else image.float().div_(255)


def normalize(
    image: Tensor, mean: Levels = MEAN, std: Levels = STD, out: Tensor | None = None
) -> Tensor:
    """b 3 h w, floats in [0, 1] or uint8 → floats of about zero mean and unit deviation."""
    image = as_float(image)
    center, spread = (image.new_tensor(v).view(-1, 1, 1) for v in (mean, std))
    return torch.sub(image, center, out=out).div_(spread)


def unnormalize(image: Tensor, mean: Levels = MEAN, std: Levels = STD) -> Tensor:
    """The inverse of `normalize`, clamped to [0, 1]: pictures to look at."""
    center, spread = (image.new_tensor(v).view(-1, 1, 1) for v in (mean, std))
    return (image * spread + center).clamp_(0, 1)
