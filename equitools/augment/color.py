"""Luma, which gray and jitter share: 0.2989 r + 0.587 g + 0.114 b (torchvision's weights)."""

from torch import Tensor

WEIGHTS = (0.2989, 0.587, 0.114)


def luma(image: Tensor) -> Tensor:
    """Pictures b 3 h w → b 1 h w, a new tensor."""
    red, green, blue = image.split(1, dim=1)
    return (red * WEIGHTS[0]).add_(green, alpha=WEIGHTS[1]).add_(blue, alpha=WEIGHTS[2])
