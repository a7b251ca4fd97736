"""Mini pretraining, images a minute: the product beside the same recipe in fp32 on PIL views.

    python tests/bench/bench_mini.py [FOLDER of class folders] [--steps 30] [--rounds 3]

Recipe: DINO and CLeVER on resnet-mini, 2×64 + 4×32 px, 64 images a step, CAug. Ours: encoded
shards, crops in one worker, the rest where the model is, channels-last, bf16 where the processor
has the instructions. Peer: Pillow decodes, torchvision makes the same views in one worker, planar
fp32. Both train the same terms with the same loop on all cores; wall time from the first step's
start to the last one's end, rounds interleaved; memory is what the training process holds at the
peak of some steps beyond the model. Without FOLDER it makes JPEGs of 112 px.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from bench_augment import reference
from held import peak
from PIL import Image

from equitools import augment, manifest
from equitools.core.records import View
from equitools.data.shards.index import open_split
from equitools.nn import ema, optim
from equitools.training import learner, loader, recipe

VIEWS = {"global": {"size": 64, "sigma": [0.1, 0.7]}, "local": {"size": 32, "count": 4}}
HEAD = {"out_dim": 1024, "hidden_dim": 512, "bottleneck_dim": 64}
RECIPE = {
    "objective": {"name": "dino", **HEAD},
    "equivariance": {"clever": {"out_dim": 1024}},
    "backbone": {"name": "resnet_mini", "split": 0.8},
    "views": {**VIEWS, "rotation": 90},
    "batch_size": 64,
}


def has_bf16() -> bool:
    """Does this processor multiply bf16 in hardware?"""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


class PilViews(torch.utils.data.Dataset):
    """One image's views by torchvision on Pillow pictures, normalized floats."""

    def __init__(self, index: Any, plan: Any) -> None:
        self.index, self.pipelines = index, reference(plan)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        picture = Image.open(io.BytesIO(self.index.image(i))).convert("RGB")
        return [pipeline(picture) for pipeline in self.pipelines]


def pil_views(index: Any, plan: Any, batch: int) -> Iterator[list[View]]:
    """Endless batches of views for the peer."""
    data = PilViews(index, plan)
    sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=1 << 20)
    stream = torch.utils.data.DataLoader(
        data, batch_size=batch, sampler=sampler, num_workers=1, prefetch_factor=4
    )
    eye = torch.eye(3).expand(batch, 3, 3)
    for views in stream:
        pairs = zip(views, plan.views, strict=True)
        yield [View(image, {}, eye, group=planned.group) for image, planned in pairs]


def our_views(index: Any, plan: Any, batch: int) -> Iterator[list[View]]:
    """Endless batches of views of the product."""
    data = loader.StepBatches(index, plan, seed=0, batch=batch, ranks=1, rank=0, accumulate=1)
    for drawn in loader.batches(data, start=0, end=1 << 20, workers=1, pin=False):
        yield plan.finish(drawn)


class Contender:
    """A model, its optimizer and a way to start a stream of views; `train` takes steps."""

    def __init__(
        self, settings: dict[str, Any], start: Callable[[], Iterator[list[View]]], ours: bool
    ) -> None:
        torch.manual_seed(0)
        self.model, self.start = learner.build(settings), start
        self.bf16 = ours and has_bf16()
        if not ours:
            self.model.to(memory_format=torch.contiguous_format)
        self.slow = ema.copy(self.model.encoder)
        groups = optim.parameter_groups(self.model.named_parameters(), decay_bias=False)
        self.optimizer = optim.create(settings["optimizer"], groups)
        self.batch = settings["batch_size"]

    def train(self, steps: int) -> float:
        """Images a minute over so many steps, after one that is not counted.

        The stream is new each time: a worker must not fill its queue while the other one trains.
        """
        stream = self.start()
        self.step(next(stream))
        begun = time.perf_counter()
        for _ in range(steps):
            self.step(next(stream))
        return 60 * steps * self.batch / (time.perf_counter() - begun)

    def step(self, views: list[View]) -> None:
        """One step as equi-pretrain takes it."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                whole = [view for view in views if view.group == "global"]
                target = learner.encode(self.slow, whole)
            loss, _, record = self.model(views, target, 0.5, 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optim.clip_gradients(self.model.parameters(), 3.0, "tensor")
        self.optimizer.step()
        ema.update(self.slow, self.model.encoder, 0.99)
        for term in self.model.all_terms():
            term.after(record)


def make_folder(place: Path, count: int = 256) -> Path:
    """JPEGs of 112 px in two class folders."""
    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        folder = place / "train" / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        coarse.resize((112, 112), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    return place


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as place:
        folder = (given.folder or make_folder(Path(place) / "made")).resolve()
        stage = [sys.executable, "-m", "equitools.stages.shard", str(folder)]
        nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        subprocess.run([*stage, "-o", f"{place}/shards"], check=True, **nothing)
        document = manifest.load_file(Path(place) / "shards" / "manifest.yaml")[0]
        compare(open_split(document, "train"), given.steps, given.rounds)


def compare(index: Any, steps: int, rounds: int) -> None:
    settings = recipe.resolve(RECIPE)
    plan = augment.plan(settings["views"])
    batch = settings["batch_size"]
    contenders: dict[str, Callable[[int], float]] = {
        "ours": Contender(settings, lambda: our_views(index, plan, batch), True).train,
        "peer": Contender(settings, lambda: pil_views(index, plan, batch), False).train,
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, train in contenders.items():
            rate = train(steps)
            if turn:  # the first round fills caches and starts workers
                rates[name].append(rate)
    ours, peer = (statistics.median(rates[name]) for name in ("ours", "peer"))
    held = {name: peak(lambda train=train: train(3)) for name, train in contenders.items()}
    memory = f"{held['ours']:.0f} / {held['peer']:.0f} MiB"
    print(f"ours {ours:,.0f} images/min, peer {peer:,.0f}; bf16 {has_bf16()}, {rates}")
    print(
        "row | mini pretraining, DINO + CLeVER, resnet-mini 2×64+4×32, all cores |"
        f" same recipe, fp32 and torchvision {torchvision.__version__} PIL views |"
        f" {ours:.0f} | {peer:.0f} | images/min | {ours / peer:.2f} | 2 | {memory}"
    )


if __name__ == "__main__":
    main()
