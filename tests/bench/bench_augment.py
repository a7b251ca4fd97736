"""Augmentation beside torchvision's on PIL images, the same views of the same pictures, in one run.

    python tests/bench/bench_augment.py [images] [rounds]

Both start from decoded pictures and end with normalized floats; one thread, CPU time, the median of
interleaved rounds. `crops` is what a worker does when the rest runs on the device.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as T

from equitools import augment

BICUBIC = T.InterpolationMode.BICUBIC
SETTINGS: dict[str, tuple[dict, tuple[int, int]]] = {
    "mini 2x32+4x16": ({"global": {"size": 32}, "local": {"size": 16, "count": 4}}, (96, 96)),
    "full 2x224+8x96": ({"global": {}, "local": {}}, (375, 500)),
}
EXTRA: dict[str, dict] = {
    "baug": {},
    "caug": {"rotation": 90},
    "caug+": {"rotation": 90, "elastic": {"alpha": 100, "sigma": 5, "p": 0.5}},
}


def pil_blur(image: Image.Image) -> Image.Image:
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
        steps += [T.RandomRotation(plan.settings["rotation"])] if plan.settings["rotation"] else []
        if plan.settings["elastic"] and view.size > 20:  # torchvision cannot pad smaller ones
            steps += [T.RandomApply([T.ElasticTransform(100.0)], 0.5)]
        steps += [T.RandomApply([T.ColorJitter(**jitter)], group["jitter"]["p"])]
        steps += [T.RandomGrayscale(group["gray"]), T.RandomApply([T.Lambda(pil_blur)], blur)]
        steps += [T.RandomSolarize(128, solarize), T.ToTensor()]
        pipelines.append(T.Compose([*steps, T.Normalize(augment.MEAN, augment.STD)]))
    return pipelines


def pictures(count: int, height: int, width: int) -> list[np.ndarray]:
    """Smooth colored noise, about as compressible as photos."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (count, height // 8, width // 8, 3), dtype=np.uint8)
    return [
        np.array(Image.fromarray(s).resize((width, height), Image.Resampling.BICUBIC))
        for s in small
    ]


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(name: str, extra: str, count: int, rounds: int) -> None:
    views, (height, width) = SETTINGS[name]
    plan = augment.plan({**views, **EXTRA[extra]})
    images = pictures(count, height, width)
    pils, theirs = [Image.fromarray(image) for image in images], reference(plan)

    def crops() -> dict:
        return augment.collate([plan.sample(x, str(i), 0, 0) for i, x in enumerate(images)])

    work: dict[str, Callable[[], object]] = {
        "torchvision": lambda: [pipeline(image) for image in pils for pipeline in theirs],
        "crops": crops,
        "ours": lambda: plan.finish(crops()),
    }
    times: dict[str, list[float]] = {key: [] for key in work}
    for _ in range(rounds):
        for key, run in work.items():
            times[key].append(seconds(run))
    rate = {key: count / statistics.median(value) for key, value in times.items()}
    text = ", ".join(f"{key} {value:.1f}/s" for key, value in rate.items())
    gain = {key: rate[key] / rate["torchvision"] for key in ("ours", "crops")}
    print(f"{name:16} {extra:6} {text}; x{gain['ours']:.1f}, crops alone x{gain['crops']:.1f}")


def main() -> None:
    torch.set_num_threads(1)
    count, rounds = (int(a) for a in (sys.argv[1:] + ["16", "3"][len(sys.argv) - 1 :])[:2])
    for name in SETTINGS:
        for extra in EXTRA:
            measure(name, extra, 4 * count if "mini" in name else count, rounds)


if __name__ == "__main__":
    main()
