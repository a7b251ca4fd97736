"""Small networks for 32-px pictures on a CPU; nothing as small is in a paper.

A function here that returns a Blueprint (which timm architecture, built with which arguments, for
which picture size) is a name in a recipe.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Blueprint:
    """What a backbone of our own is made of; plain timm builds the same network from it.

    architecture  a name that `timm.create_model` knows
    args          what it is built with; plain JSON values
    image_size    the side of the pictures that it is meant for, in pixels; None is timm's own
    """

    architecture: str
    args: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None


def resnet_mini() -> Blueprint:
    """A ResNet of 1.2 M parameters for 32-px pictures: 3×3 stem, four basic blocks, 256-d."""
    # He et al., 2016, with the deep stem of He et al., 2019; the stem halves twice (32 → 8 px), so
    # that a picture costs under a millisecond.
    args = {"stem_type": "deep", "stem_width": 16, "channels": [32, 64, 128, 256]}
    return Blueprint("resnet10t", args, image_size=32)


def vit_mini() -> Blueprint:
    """A ViT of 0.46 M parameters for 32-px pictures: patch 4, width 96, 4 blocks, 3 heads."""
    # Dosovitskiy et al., 2021.
    args = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
    return Blueprint("vit_tiny_patch16_224", args, image_size=32)


def vmamba_mini() -> Blueprint:
    """A VMamba of 0.50 M parameters for 32-px pictures: blocks 1/1/2 of 32, 64, 128 channels."""
    # Liu et al., 2024. Stages see 8×8, 4×4 and 2×2 pixels; a fourth would see a single pixel, of
    # which all paths are the same. Without it crops of 16 px leave the third that pixel.
    return Blueprint("vmamba_tiny", {"depths": [1, 1, 2], "dims": [32, 64, 128]}, image_size=32)
