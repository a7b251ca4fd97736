"""Strided convolutions of maps one pixel wide, by the column of taps that meets the pixel.

The other columns meet padding only, so the result is the same. torch (2.15, on CPUs, in bf16)
leaves their weight gradient as the memory happened to be, not finite or wrong; here it is zero.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class NarrowConv2d(nn.Conv2d):
    """nn.Conv2d, with the same parameters and values, that takes one column of a one-pixel map."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.shape[-1] > 1:
            return super()._conv_forward(input, weight, bias)
        middle = self.kernel_size[1] // 2
        stride, padding, dilation = self.stride[0], self.padding[0], self.dilation[0]
        column = weight[..., middle : middle + 1]
        return F.conv2d(
            input, column, bias, (stride, 1), (int(padding), 0), (dilation, 1), self.groups
        )


def mend(trunk: nn.Module) -> None:
    """Let a network's strided, centered convolutions know maps of one pixel; no name changes."""
    for module in trunk.modules():
        if type(module) is nn.Conv2d and _strided_and_centered(module):
            module.__class__ = NarrowConv2d


def _strided_and_centered(layer: nn.Conv2d) -> bool:
    width = layer.kernel_size[1]
    centered = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    centered = centered and layer.padding[1] == layer.dilation[1] * (width // 2)
    return centered and layer.stride[1] > 1 and width > 1 and width % 2 == 1
