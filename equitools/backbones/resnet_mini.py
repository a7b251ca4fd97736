"""A residual network for 32-px pictures on a CPU: a 3×3 stem and four basic blocks, 256-d output.

The architecture is that of He et al., 2016, with the deep stem of He et al., 2019; nothing as
small is in a paper. The stem halves twice (32 → 8 px), so that a picture costs under a millisecond.
"""

from __future__ import annotations

from equitools.backbones.blueprint import Blueprint


def resnet_mini() -> Blueprint:
    """A ResNet of 1.2 M parameters for 32-px pictures: 3×3 stem, four basic blocks, 256-d."""
    args = {"stem_type": "deep", "stem_width": 16, "channels": [32, 64, 128, 256]}
    return Blueprint("resnet10t", args, image_size=32)
