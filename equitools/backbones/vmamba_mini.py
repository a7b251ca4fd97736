"""A VMamba for 32-px pictures on a CPU: three stages of 8×8, 4×4 and 2×2 pixels.

The architecture is that of Liu et al., 2024; nothing as small is in a paper. A fourth stage would
see a single pixel, of which all paths are the same; without it crops of 16 px leave it that pixel.
"""

from __future__ import annotations

from equitools.backbones.blueprint import Blueprint


def vmamba_mini() -> Blueprint:
    """A VMamba of 0.50 M parameters for 32-px pictures: blocks 1/1/2 of 32, 64, 128 channels."""
    return Blueprint("vmamba_tiny", {"depths": [1, 1, 2], "dims": [32, 64, 128]}, image_size=32)
