"""How many cores feed a GPU: pictures a core makes ready against pictures a GPU takes.

    cores = images/s of the device / images/s of one core

The core is measured for about a second, through the real decoder and crops. The device is measured
by a few training steps when there is a GPU; else it is arithmetic: the operations of one step,
counted, at a rate that training reaches.
"""

import io
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from equitools import augment
from equitools.backbones import Encoder
from equitools.core.errors import EquiError
from equitools.core.records import View
from equitools.data import images
from equitools.data.shards.index import ShardIndex, locate
from equitools.nn import ema
from equitools.training import learner, portions

# What a large GPU sustains when a ViT is trained in bf16: 45 % of the 790 TFLOP/s of an H200.
SUSTAINED = 350e12
SECONDS = 1.0
STEPS = 5


def describe(settings: dict[str, Any], document: dict[str, Any]) -> str:
    """The lines `feeding` of a plan, for people."""
    plan = augment.plan(settings["views"])
    data, where = pictures(document)
    core = one_core(plan, data)
    lines = [f"feeding       {core:,.0f} images/s from one core here, measured on {where}"]
    lines += [f"              what follows the crops is done by {_engines(plan)}"]
    if torch.cuda.is_available():
        taken = measured(settings, plan)
        lines += [
            f"              {taken:,.0f} images/s into {torch.cuda.get_device_name()}, measured"
        ]
    else:
        cost = operations(settings, plan)
        taken = SUSTAINED / cost
        lines += [
            f"              {taken:,.0f} images/s into a GPU that sustains {SUSTAINED / 1e12:.0f}"
            f" TFLOP/s, at {cost / 1e9:.1f} GFLOP an image (counted; no GPU here to measure)"
        ]
    needed = max(1, math.ceil(taken / core))
    return "\n".join([*lines, f"              → {needed} cores for each GPU"])


def _engines(plan: augment.Views) -> str:
    """In words, what carries the operations out: where a worker would, and on the device."""
    if plan.settings["apply"] == "worker":
        return f"{augment.engine('cpu')} in the loader's processes"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"{augment.engine(device)} where the model is"


def pictures(document: dict[str, Any], count: int = 64) -> tuple[list[bytes], str]:
    """Encoded pictures to measure with, of these shards or made, and what they are in words."""
    entry = (document.get("files") or {}).get("shards.train")
    if entry is None:
        made = [photo(seed) for seed in range(8)]
        return made, f"made JPEGs of 500×375 px and {sum(map(len, made)) / 8e3:.0f} kB"
    index = ShardIndex(locate(entry, "shards.train")[:1])
    pictures = [index.image(i) for i in range(min(count, len(index)))]
    if not pictures:
        raise EquiError("the first shard of shards.train holds no sample to measure with")
    return pictures, f"{len(pictures)} pictures of these shards"


def photo(seed: int) -> bytes:
    """A made JPEG of 500×375 px, about as costly as ImageNet's: smooth color under fine noise."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + generator.normal(0, 12, smooth.shape).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def one_core(plan: augment.Views, data: list[bytes]) -> float:
    """Images that one thread decodes, crops and collates in a second of processor time.

    With `apply: worker` they are finished too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _make(plan, data[:2])  # the first call sets libraries up
        begun, made = time.process_time(), 0
        while time.process_time() - begun < SECONDS:
            made += _make(plan, data[:32])
        return made / (time.process_time() - begun)
    finally:
        torch.set_num_threads(threads)


def _make(plan: augment.Views, data: list[bytes]) -> int:
    pixels = [images.decode(one, "a picture to measure with") for one in data]
    inside = portions.inside(
        0, len(data), members=round((plan.portion or 0) * len(data)), batch=len(data)
    )
    drawn = [plan.sample(image, str(i), 0, 0, inside[i]) for i, image in enumerate(pixels)]
    augment.collate(drawn)
    return len(data)


def operations(settings: dict[str, Any], plan: augment.Views, samples: int = 2) -> float:
    """Floating-point operations of one training step for each sample: forward and backward."""
    model = learner.build(settings)

    def counted(samples: int, inside: int) -> float:
        with FlopCounterMode(display=False) as counter:
            _step(model, _target(model), blank(plan, samples, inside))
        return float(counter.get_total_flops())

    if plan.portion is None:
        return counted(samples, 0) / samples
    return for_each(counted, plan.portion, samples)[1]


def measured(settings: dict[str, Any], plan: augment.Views) -> float:
    """Images per second of training on the GPU, on blank views already there."""
    model = learner.build(settings).cuda()
    processes = settings["processes"] or torch.cuda.device_count()
    samples = settings["batch_size"] // (processes * settings["accumulate"])
    views, target = (
        blank(plan, samples, round((plan.portion or 0) * samples), "cuda"),
        _target(model),
    )
    bf16 = settings["precision"] != "fp32" and torch.cuda.is_bf16_supported()
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        _step(model, target, views)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(STEPS):
            _step(model, target, views)
        torch.cuda.synchronize()
    return STEPS * samples / (time.perf_counter() - begun)


def _target(model: learner.Learner) -> Encoder | None:
    return ema.copy(model.encoder) if model.needs_target else None


def for_each(
    cost: Callable[[int, int], float], portion: float | None, samples: int = 2
) -> tuple[float, float]:
    """What a step costs whatever the batch, and for each sample.

    cost: of a batch of so many samples, of which so many are in the portion. A sample inside and
    one outside are told apart by one more of each; the mean is weighted by the portion.
    """
    share = portion or 0.0
    inside, outside = (samples if share else 0), (samples if share < 1 else 0)
    start = cost(outside + inside, inside)
    one_out = cost(outside + 1 + inside, inside) - start if share < 1 else 0.0
    one_in = cost(outside + inside + 1, inside + 1) - start if share else 0.0
    each = share * one_in + (1 - share) * one_out
    return start - inside * one_in - outside * one_out, each


def blank(plan: augment.Views, samples: int, inside: int, device: str = "cpu") -> list[View]:
    """Noise in the shape of a plan's views, the first samples of which are in the portion, whose
    grids have their mean size."""
    rows = torch.arange(samples, device=device).split([inside, samples - inside])

    def view(planned: augment.ViewPlan, part: augment.ViewBatch) -> View:
        own = None if part.inside is None else rows[not part.inside]
        count = samples if own is None else len(own)
        image = torch.randn(count, 3, *[_side(plan, planned)] * 2, device=device)
        matrix = torch.eye(3, device=device).expand(count, 3, 3)
        return View(image, {}, matrix, rows=own, group=planned.group, replaces=planned.replaces)

    part_of = {number: part for part in plan.batches.values() for number in part.members}
    return [view(plan.views[number], part_of[number]) for number in sorted(part_of)]


def _side(plan: augment.Views, planned: augment.ViewPlan) -> int:
    if planned.replaces is None:
        return planned.size
    patch = plan.settings[planned.group]["patch"]
    return round(planned.size / patch) * patch


def _step(model: learner.Learner, target: Encoder | None, views: list[View]) -> None:
    features = None if target is None else model.target_features(target, views)
    loss, _, _ = model(views, features, 0.0, 0.0)
    model.zero_grad(set_to_none=True)
    loss.backward()
