"""TokenCut's eigenvector by Lanczos beside LAPACK's dense solver, on the same graphs, one thread.

    python tests/bench/bench_tokencut.py [--rounds 5] [FOLDER of JPEGs]

Graphs of the patches of pictures (of a folder, else made: a thing on a ground) at 28 × 28, 32 × 32
and 30 × 40 patches; a patch is described by mean and spread of its colors and its place. From W on,
without building it: scipy.linalg.eigh(D - W, D, subset_by_index=[1, 1]) as TokenCut (Wang et al.,
2022) has it, and ours. Both must cut alike. CPU time, medians over pictures and interleaved rounds;
memory is what is held at the peak beyond W. Then whole pictures, with a network and the solver.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy
import torch
from held import peak
from PIL import Image, ImageOps

from equitools import backbones
from equitools.evals.segmentation import tokencut
from equitools.evals.segmentation.bilateral_solver import solve
from equitools.features.keys import KeyReader
from equitools.training.throughput import photo

GRIDS = ((28, 28), (32, 32), (30, 40))
PICTURES = 8
CELL = 12  # pixels of a patch's side


def pictures(folder: Path | None) -> list[Image.Image]:
    """Photos of a folder, else made ones: an ellipse of one before another."""
    if folder is not None:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        return [Image.open(path).convert("RGB") for path in paths[:PICTURES]]
    found = []
    for seed in range(PICTURES):
        ground, thing = (Image.open(io.BytesIO(photo(seed + i))) for i in (0, PICTURES))
        y, x = np.mgrid[: ground.height, : ground.width]
        inside = ((x / ground.width - 0.45) / 0.25) ** 2 + ((y / ground.height - 0.55) / 0.3) ** 2
        shape = Image.fromarray((inside < 1) * np.uint8(255))
        found.append(Image.composite(ImageOps.invert(thing), ground.point(lambda v: v // 2), shape))
    return found


def graph(picture: Image.Image, tall: int, wide: int) -> np.ndarray:
    """W of a picture's patches."""
    small = np.asarray(picture.resize((wide * CELL, tall * CELL)), np.float32) / 255
    cells = small.reshape(tall, CELL, wide, CELL, 3).transpose(0, 2, 1, 3, 4)
    cells = cells.reshape(tall * wide, CELL * CELL, 3)
    place = np.stack(np.divmod(np.arange(tall * wide), wide), axis=1)
    vectors = np.concatenate([cells.mean(1), cells.std(1), place], axis=1)
    return tokencut.graph(
        torch.from_numpy((vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)), 0.2
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def eigenvector(shape: tuple[int, int], given: list[Image.Image], rounds: int) -> None:
    """The row of one size of graph."""
    graphs = [graph(picture, *shape) for picture in given]
    seconds: dict[str, list[float]] = {"ours": [], "dense": []}
    same, sure = 0, 0
    for turn in range(rounds):
        for weights in graphs:
            ours, (y, found) = timed(lambda w=weights: tokencut.second_vector(w))
            theirs, z = timed(lambda w=weights: tokencut.dense(w))
            seconds["ours"].append(ours)
            seconds["dense"].append(theirs)
            if not turn:
                cuts = [tokencut.piece(vector.reshape(shape))[0] for vector in (y, z)]
                same += bool((cuts[0] == cuts[1]).all())
                sure += found
    a, b = (1 / statistics.median(seconds[name]) for name in ("ours", "dense"))
    held = [peak(lambda f=f: f(graphs[0])) for f in (tokencut.second_vector, tokencut.dense)]
    size = shape[0] * shape[1]
    print(f"{size} patches: {same} of {len(graphs)} cut alike, {sure} by Lanczos")
    print(
        f"row | TokenCut's eigenvector, {size} patches, {same} of {len(graphs)} cut alike"
        f" | scipy {scipy.__version__} eigh, dense | {a:.1f} | {b:.1f} | pictures/s | {a / b:.1f}"
        f" | 15 | {held[0]:.1f} / {held[1]:.1f} MiB"
    )


def whole(given: list[Image.Image]) -> None:
    """Whole pictures: a network's keys, the cut, and the bilateral solver."""
    torch.manual_seed(0)
    encoder = backbones.create({"name": "vit_small_patch16_224"})
    keys = KeyReader(None, 2500, "cpu").keys(encoder)
    images = [np.asarray(picture) for picture in given]

    def masks() -> None:
        for image in images:
            mask = tokencut.cut(keys(image), 0.2).mask
            soft = Image.fromarray(mask.astype(np.uint8)).resize(image.shape[1::-1])
            solve(image, np.asarray(soft, np.float64))

    masks()
    seconds, _ = timed(masks)
    side = "×".join(map(str, images[0].shape[1::-1]))
    print(
        f"row | saliency, {side} px, ViT-S/16, cut and bilateral solver | -"
        f" | {len(images) / seconds:.2f} | - | pictures/s | - | - | {peak(masks):.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    torch.set_num_threads(1)
    given = pictures(words.folder)
    for shape in GRIDS:
        eigenvector(shape, given, words.rounds)
    whole(given)


if __name__ == "__main__":
    main()
