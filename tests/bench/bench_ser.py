"""SER: memory and time of its contrast, and what a training step costs beside its base.

    python tests/bench/bench_ser.py [--images 24] [--rounds 3] [--threads 1] [--device cpu]
        [--base mocov3] [--backbone vit-mini] [--batch 64] [--portions 0.03125 0.5]

Contrast: from given unit tokens of two views (196 cells of 512, negatives of both views) to their
gradients, both directions, fp32. The naive contender is the definition in torch's own operations:
a matrix of all queries and candidates, the same image's cells masked, log-sum-exp. Every
measurement is a process of its own, in turns. Time: process time of a second step. Memory: how far
the peak resident size of the first step is above what was resident before it. "Computed" is the
largest sum of bytes alive at a time when the same code runs on tensors without content; it is
printed for this size, beside which the measurement stands, and for ten times the images, where the
naive contender is too large to be run.

Step: forward and backward of the whole learner, on views of random pictures made by the pipeline,
the base alone (timm's class token, no portion) and with SER, in turns in one process; process time,
on a GPU wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from bench_heads import MEBI, resident, row
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from equitools import augment, manifest
from equitools.nn import ema
from equitools.nn.losses import dense_info_nce
from equitools.training import learner, portions, recipe

CELLS, WIDTH, TAU = 196, 512, 0.3
FOLDERS = ("objective", "equivariance", "backbone", "views", "schedule")


def main() -> None:
    """Print what was measured and the rows of ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--base", default="mocov3")
    parser.add_argument("--backbone", default="vit-mini")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--portions", type=float, nargs="+", default=[0.03125, 0.5])
    parser.add_argument("--measure", choices=["ours", "naive", "difference"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.measure == "difference":
        print(json.dumps(difference(given.images)))
    elif given.measure:
        print(json.dumps(measure(CONTENDERS[given.measure], given.images)))
    else:
        compare_contrasts(given)
        compare_steps(given)


def compare_contrasts(given: argparse.Namespace) -> None:
    """Processes in turns; the rows of memory and time."""
    found: dict[str, list[dict[str, float]]] = {"naive": [], "ours": []}
    for _ in range(given.rounds):
        for name in found:
            found[name].append(child(name))
    naive, ours = (
        {key: statistics.median(run[key] for run in found[name]) for key in ("peak", "seconds")}
        for name in ("naive", "ours")
    )
    print(f"largest relative difference of a gradient {child('difference')['gradient']:.1e}")
    what, peer = f"dense contrast, 2x{given.images} images x {CELLS} cells", "whole matrix"
    memory = f"{ours['peak']:.0f} / {naive['peak']:.0f} MiB"
    ratio = naive["peak"] / ours["peak"]
    row(f"{what}, peak", peer, ours["peak"], naive["peak"], "MiB", ratio, "-", memory)
    ratio = naive["seconds"] / ours["seconds"]
    row(f"{what}, gradients", peer, ours["seconds"], naive["seconds"], "s", ratio, "-", memory)
    for images in (given.images, 10 * given.images):
        large, small = (computed(CONTENDERS[name], images) / MEBI for name in ("naive", "ours"))
        what = f"dense contrast, 2x{images} images x {CELLS} cells, peak, computed"
        row(what, peer, small, large, "MiB", large / small, "-", f"{small:.0f} / {large:.0f} MiB")


def child(name: str) -> dict[str, float]:
    """Measure in a process of its own, with the arguments of this one."""
    command = [sys.executable, *sys.argv, "--measure", name]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)


def tokens(images: int) -> list[Tensor]:
    """Unit tokens of two views, in their final place."""
    torch.manual_seed(0)
    made = [F.normalize(torch.randn(images, CELLS, WIDTH), dim=-1) for _ in range(2)]
    return [one.requires_grad_() for one in made]


def ours(first: Tensor, second: Tensor) -> None:
    """Both directions block by block, backward."""
    for queries, keys in ((first, second), (second, first)):
        loss = dense_info_nce.mean(queries, keys, temperature=TAU, negatives="both")
        (loss / 2).backward()


def naive(first: Tensor, second: Tensor) -> None:
    """Both directions by a matrix of all queries and candidates, backward."""
    for queries, keys in ((first, second), (second, first)):
        (whole_matrix(queries, keys) / 2).backward()


def whole_matrix(queries: Tensor, keys: Tensor) -> Tensor:
    """The mean over queries b t d by torch's own operations."""
    images, cells, _ = queries.shape
    owner = torch.arange(images).repeat_interleave(cells)
    q, k = queries.flatten(0, 1), keys.flatten(0, 1)
    positive = (q * k).sum(-1) / TAU
    logits = q @ torch.cat([k, q]).T / TAU
    logits = logits.masked_fill(owner[:, None] == owner.repeat(2), -torch.inf)
    return (torch.logaddexp(positive, logits.logsumexp(1)) - positive).mean()


CONTENDERS: dict[str, Callable[[Tensor, Tensor], None]] = {"ours": ours, "naive": naive}


def measure(work: Callable[[Tensor, Tensor], None], images: int) -> dict[str, float]:
    """Peak of the first step above what was there, in MiB, and the seconds of a later one."""
    work(*tokens(2))  # libraries load and start
    views = tokens(images)
    before = resident()
    work(*views)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    begun = time.process_time()
    work(*views)
    return {"peak": peak / MEBI, "seconds": time.process_time() - begun}


def difference(images: int) -> dict[str, float]:
    """The largest relative difference between the gradients of both, over the views."""
    found = []
    for work in CONTENDERS.values():
        views = tokens(images)
        work(*views)
        found.append([view.grad for view in views])
    return {"gradient": max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))}


class Alive(TorchDispatchMode):
    """Adds up the bytes of the tensors that are alive, and keeps the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.now, self.peak = WeakIdKeyDictionary(), 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known[storage] = True
                weakref.finalize(storage, self.add, -storage.nbytes())
                self.add(storage.nbytes())
        return made

    def add(self, count: int) -> None:
        self.now += count
        self.peak = max(self.peak, self.now)


def computed(work: Callable[[Tensor, Tensor], None], images: int) -> int:
    """The largest sum of bytes that one step takes and has not given back."""
    with FakeTensorMode():
        views = tokens(images)
        with Alive() as seen:
            work(*views)
    return seen.peak


def compare_steps(given: argparse.Namespace) -> None:
    """Steps of the base alone and with SER on portions of several sizes, in turns."""
    words = [given.base, given.backbone]
    contenders = {"base": Contender(fold(words), given)}
    for portion in given.portions:
        settings = {"views": {"grid": {"portion": portion}}}
        contenders[f"r={portion:g}"] = Contender(fold([*words, "ser"], settings), given)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(given.rounds + 1):
        for name, contender in contenders.items():
            seconds = contender.step()
            if turn:
                times[name].append(seconds)
    base = statistics.median(times.pop("base"))
    for i, (name, seen) in enumerate(times.items()):
        ours = statistics.median(seen)
        what = f"step of {given.base} + SER, {given.backbone}, {given.batch} images, {name}"
        print(f"{what}: {100 * (ours / base - 1):+.0f} % over {given.base} alone")
        row(what, f"{given.base} alone", ours, base, "s", base / ours, "-" if i else 0.87, "-")


def fold(words: list[str], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """The resolved recipe of some layers."""
    whole: dict[str, Any] = {}
    for word in words:
        whole = manifest.fold(whole, manifest.layer(word, FOLDERS)["recipe"])
    return whole | {"more": more or {}}


class Contender:
    """A learner, its slow encoder and one batch of views; `step` takes the time of a step."""

    def __init__(self, folded: dict[str, Any], given: argparse.Namespace) -> None:
        more = {**folded.pop("more"), "batch_size": given.batch}
        settings = recipe.resolve(recipe.apply_defaults(manifest.fold(folded, more)))
        torch.manual_seed(0)
        self.device = given.device
        self.model = learner.build(settings).to(given.device)
        self.slow = ema.copy(self.model.encoder) if self.model.needs_target else None
        self.views = views(settings, given.batch, given.device)

    def step(self) -> float:
        """Seconds from the views to the gradients."""
        self.model.zero_grad(set_to_none=True)
        begun = self.now()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            target = (
                None if self.slow is None else self.model.target_features(self.slow, self.views)
            )
            loss, _, _ = self.model(self.views, target, 0.5, 1.0)
        loss.backward()
        return self.now() - begun

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def views(settings: dict[str, Any], batch: int, device: str) -> list[Any]:
    """The views of a batch of random pictures."""
    plan = augment.plan(settings["views"])
    members = portions.members(plan.portion, batch)
    inside = portions.inside(0, batch, members=members, batch=batch)
    pictures = torch.randint(256, (batch, 256, 256, 3), dtype=torch.uint8).numpy()
    drawn = [plan.sample(pictures[i], str(i), 0, 0, inside[i]) for i in range(batch)]
    return plan.finish(augment.collate(drawn), device)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
