"""Pictures of bright discs and their masks, in a layout of ECSSD's kind."""

import numpy as np
from PIL import Image


def make(folder, count=3, layout=("img", "gt"), suffix=".jpg"):
    """Bright discs on dark ground, with masks; none is square."""
    draw = np.random.default_rng(0)
    for name in layout:
        (folder / name).mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:48, :64]
    for i in range(count):
        mask = (y - 16 - 3 * i) ** 2 + (x - 20 - 5 * i) ** 2 < 12**2
        pixels = draw.integers(0, 60, (48, 64, 3)) + 180 * mask[..., None]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / layout[0] / f"p{i}{suffix}")
        Image.fromarray(mask * np.uint8(255)).save(folder / layout[1] / f"p{i}.png")
    return folder
