"""Made scenes as folders in the layouts of ECSSD and DAVIS-2017, for trying what needs masks.

    equi-shard scenes layout=saliency -o FOLDER
    equi-shard scenes layout=video -o FOLDER

The same folder byte for byte each time. They are no benchmark: one object, drawn, in the open.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from equitools.data.sources import scenes

PALETTE = [0, 0, 0, 200, 0, 0]


def saliency(folder: Path, *, count: int = 24, size: int = 96, seed: int = 0) -> Path:
    """`count` pictures of size × size in img/ and their masks, 0 and 255, in gt/."""
    for name in ("img", "gt"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels, facts = scenes.draw(seed, "val", number, size)
        mask = scenes.unpack_mask(facts["mask"])
        Image.fromarray(pixels).save(folder / "img" / f"{number:04d}.png")
        Image.fromarray(np.uint8(255) * mask).save(folder / "gt" / f"{number:04d}.png")
    return folder


def video(folder: Path, *, count: int = 2, frames: int = 8, size: int = 96, seed: int = 0) -> Path:
    """`count` sequences, each of one object that goes around in a circle and turns as it goes."""
    names = [f"scene-{number}" for number in range(count)]
    for number, name in enumerate(names):
        shots, masks = (folder / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
        for place in (shots, masks):
            place.mkdir(parents=True, exist_ok=True)
        radius = 0.18 * size
        for step in range(frames):
            turn = 2 * math.pi * step / frames / 2
            center = [size * (0.5 + 0.2 * math.cos(turn)), size * (0.45 - 0.15 * math.sin(turn))]
            pose = {"center": center, "angle": 30 * math.sin(turn), "radius": radius}
            pixels, facts = scenes.draw(seed, "val", number, size, **pose)
            Image.fromarray(pixels).save(shots / f"{step:05d}.jpg", quality=95)
            labels = Image.fromarray(scenes.unpack_mask(facts["mask"]).astype(np.uint8), "P")
            labels.putpalette(PALETTE)
            labels.save(masks / f"{step:05d}.png")
    sets = folder / "ImageSets" / "2017"
    sets.mkdir(parents=True, exist_ok=True)
    (sets / "val.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


LAYOUTS = {"saliency": saliency, "video": video}
