"""scikit-learn's handwritten digits as a source."""

from functools import partial
from typing import Any

import numpy as np

from equitools.core.errors import EquiError
from equitools.data import images
from equitools.data.sources.source import Sample, Source, by_file, rank

DIGITS_VAL = 360


def digits(size: int) -> Source:
    """scikit-learn's 1797 handwritten digits (Alpaydin and Kaynak, 1998), enlarged from 8 px.

    The split is fixed: 1437 train, 360 val. Raises EquiError when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        what = "digits come with scikit-learn, which is not installed"
        raise EquiError(f"{what}: pip install 'equitools[digits]'") from None
    data = load_digits()
    ranks = sorted(range(len(data.target)), key=lambda i: rank(0, "digits", str(i)))
    val = set(ranks[:DIGITS_VAL])
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for i, (pixels, label) in enumerate(zip(data.images, data.target.tolist(), strict=True)):
        make = partial(_digit, pixels.astype(np.uint8), size)
        one = Sample(f"{label}/{i:04d}.png", label, make=make)
        splits["val" if i in val else "train"].append(one)
    return by_file(Source("digits", splits, [str(label) for label in range(10)]))


def _digit(pixels: np.ndarray, size: int) -> tuple[bytes, dict[str, Any]]:
    from PIL import Image

    gray = Image.fromarray((pixels.astype(np.float32) * (255 / 16) + 0.5).astype(np.uint8))
    return images.encode_png(np.asarray(gray.resize((size, size), Image.Resampling.BICUBIC))), {}
