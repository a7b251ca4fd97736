"""Augmentation all on the CPU beside torchvision's on PIL images, the same views of the same files.

    python tests/bench/bench_augment.py [FOLDER] [--images 24] [--rounds 5]

FOLDER holds JPEGs, at any depth; without it photo-like ones are made (375 × 500). One thread, CPU
time, medians of interleaved rounds; memory is what a batch of all images holds at its peak.
Everything is timed from encoded bytes in memory to normalized floats in the training process:
decoding, cropping, all operations, stacking.

The peer is the multi-crop that Caron et al. (2021, "DINO") describe with the colors of Grill et al.
(2020, "BYOL"): one torchvision pipeline on PIL images for each view. BAug is that; CAug+ has a
rotation and an elastic deformation besides (Song et al., 2024, "CLeVER"). `torch` is the path that
is taken where the extension was not built. The mini recipe makes 2 views of 32 px and 4 of 16 px of
32-px PNGs. Elastic alone starts from uint8 crops.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from held import peak
from PIL import Image, ImageFilter
from torchvision import transforms as T

from equitools import augment
from equitools.augment import engines, native, operations
from equitools.data import images
from equitools.training.throughput import photo

BICUBIC = T.InterpolationMode.BICUBIC
FULL: dict = {"global": {}, "local": {}}
MINI: dict = {"global": {"size": 32}, "local": {"size": 16, "count": 4}}
PLUS: dict = {"rotation": 90, "elastic": {"alpha": 100, "sigma": 5, "p": 0.5}}
PEER = (
    f"DINO's published pipeline, torchvision {version('torchvision')}, Pillow {version('pillow')}"
)


def main() -> None:
    """Print a line per contender and the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    photos, small = jpegs(given.folder, given.images), pngs(8 * given.images)
    whole = "all on the CPU, encoded in, normalized floats out"
    pipelines(f"BAug 2x224+8x96, {whole}", FULL, photos, given.rounds, {"C": "4", "torch": "2.5"})
    pipelines(
        f"CAug+ 2x224+8x96, {whole}", FULL | PLUS, photos, given.rounds, {"C": "10", "torch": "-"}
    )
    pipelines(
        f"BAug 2x32+4x16 of 32 px, {whole}", MINI, small, given.rounds, {"C": "-", "torch": "-"}
    )
    elastic_alone(given.rounds)


def jpegs(folder: Path | None, count: int) -> list[bytes]:
    """Files of a folder, spread over it, or made photos."""
    if folder is not None:
        paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDINGS]
        return [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]
    return [photo(seed) for seed in range(count)]


ENDINGS = (".jpg", ".jpeg")


def pngs(count: int) -> list[bytes]:
    """Noise of 32 px, encoded."""
    generator = np.random.default_rng(0)
    return [
        images.encode_png(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        for _ in range(count)
    ]


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))


def reference(plan: augment.Views) -> list[Callable]:
    """One torchvision pipeline for each view of the plan."""
    pipelines = []
    for view in plan.views:
        group = plan.settings[view.group]
        blur, solarize = (
            value[view.index] if isinstance(value, list) else value
            for value in (group["blur"], group["solarize"])
        )
        jitter = {k: v for k, v in group["jitter"].items() if k != "p"}
        steps = [T.RandomResizedCrop(view.size, group["crop"], interpolation=BICUBIC)]
        steps += [T.RandomHorizontalFlip(group["flip"])]
        if "rotation" in plan.settings:
            steps += [T.RandomRotation(plan.settings["rotation"])]
        if "elastic" in plan.settings:
            steps += [T.RandomApply([T.ElasticTransform(100.0)], 0.5)]
        steps += [T.RandomApply([T.ColorJitter(**jitter)], group["jitter"]["p"])]
        steps += [T.RandomGrayscale(group["gray"]), T.RandomApply([T.Lambda(blurred)], blur)]
        steps += [T.RandomSolarize(128, solarize), T.ToTensor()]
        pipelines.append(T.Compose([*steps, T.Normalize(augment.MEAN, augment.STD)]))
    return pipelines


def pipelines(
    what: str, views: dict, files: list[bytes], rounds: int, aims: dict[str, str]
) -> None:
    """Rows of one recipe: compiled and torch, beside the peer."""
    plan, theirs = augment.plan(views), reference(augment.plan(views))

    def ours() -> object:
        drawn = [plan.sample(images.decode(x, "a file"), str(i), 0, 0) for i, x in enumerate(files)]
        return plan.finish(augment.collate(drawn))

    def peer() -> object:
        made = [[step(opened) for step in theirs] for opened in map(pil, files)]
        return [torch.stack(view) for view in zip(*made, strict=True)]

    work: dict[str, Callable[[], object]] = {"torch": without_extension(ours), "peer": peer}
    if augment.engine() == "C":
        work["C"] = ours
    rate, held = rates(work, len(files), rounds), {key: peak(run) for key, run in work.items()}
    print(what + ": " + ", ".join(f"{key} {value:.1f}/s" for key, value in rate.items()))
    for key, aim in aims.items():
        name = what + (", without the extension" if key == "torch" else "")
        row(name, PEER, rate, held, key, "images/s", aim)


def pil(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def elastic_alone(rounds: int, count: int = 16, size: int = 224) -> None:
    crops = torch.randint(0, 256, (1, count, size, size, 3), dtype=torch.uint8)
    crops = crops.permute(0, 1, 4, 2, 3)
    seeds = torch.arange(count, dtype=torch.float64)
    p = torch.stack((torch.full_like(seeds, 100), torch.full_like(seeds, 5), seeds), dim=1)
    one = {"elastic": operations.elastic}
    theirs = T.ElasticTransform(100.0)

    def ours() -> object:
        return engines.carry_out(crops, {"elastic": p}, one, (0, 0, 0), (1, 1, 1))

    def peer() -> object:
        return [theirs(image) for image in crops[0]]

    work: dict[str, Callable[[], object]] = {"torch": without_extension(ours), "peer": peer}
    if augment.engine() == "C":
        work["C"] = ours
    rate, held = rates(work, count, rounds), {key: peak(run) for key, run in work.items()}
    what, name = "elastic alone, 224 px", f"torchvision {version('torchvision')} ElasticTransform"
    print(what + ": " + ", ".join(f"{key} {value:.1f}/s" for key, value in rate.items()))
    row(what, name, rate, held, "C", "crops/s", "20")
    row(what + ", without the extension", name, rate, held, "torch", "crops/s", "-")


def without_extension(work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with mock.patch.object(native, "library", return_value=None):
            return work()

    return run


def rates(work: dict[str, Callable[[], object]], count: int, rounds: int) -> dict[str, float]:
    """How many a second of CPU time, median of interleaved rounds after one that is not counted."""
    times: dict[str, list[float]] = {key: [] for key in work}
    for number in range(rounds + 1):
        for key, run in work.items():
            start = time.process_time()
            run()
            if number:
                times[key].append(time.process_time() - start)
    return {key: count / statistics.median(value) for key, value in times.items()}


def row(
    what: str,
    peer: str,
    rate: dict[str, float],
    held: dict[str, float],
    key: str,
    unit: str,
    aim: str,
) -> None:
    if key not in rate:
        print(f"skip | {what} | the extension was not built")
        return
    ratio = rate[key] / rate["peer"]
    print(
        f"row | {what} | {peer} | {rate[key]:.1f} | {rate['peer']:.1f} | {unit} | {ratio:.1f}"
        f" | {aim} | {held[key]:.0f} / {held['peer']:.0f} MiB"
    )


if __name__ == "__main__":
    main()
