"""A ViT for 32-px pictures on a CPU: 4-px patches, 4 blocks of width 96 with 3 heads.

The architecture is that of Dosovitskiy et al., 2021; nothing as small is in a paper.
"""

from __future__ import annotations

from equitools.backbones.blueprint import Blueprint


def vit_mini() -> Blueprint:
    """A ViT of 0.46 M parameters for 32-px pictures: patch 4, width 96, 4 blocks, 3 heads."""
    args = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
    return Blueprint("vit_tiny_patch16_224", args, image_size=32)
