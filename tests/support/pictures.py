"""Small pictures and folders of them, for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photo(mode: str = "RGB", size: tuple[int, int] = (24, 16), seed: int = 0) -> Image.Image:
    """A small picture with a gradient and noise."""
    rng = np.random.default_rng(seed)
    pixels = np.linspace(0, 200, size[0])[None, :, None] + rng.integers(0, 50, (size[1], 1, 3))
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encoded(kind: str = "JPEG", mode: str = "RGB", seed: int = 0, **options: Any) -> bytes:
    file = io.BytesIO()
    photo(mode, seed=seed).save(file, kind, **options)
    return file.getvalue()


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """An ImageFolder with `counts` JPEGs in each split/class."""
    for seed, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            data = encoded(seed=100 * seed + i)
            (root / name / f"im.{i}.JPEG").write_bytes(data)
    return root
