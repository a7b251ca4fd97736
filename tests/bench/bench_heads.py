"""Two 65,536-wide heads (DINO's loss and L_Orth), and the update of all networks; one thread.

    python tests/bench/bench_heads.py [--batch 32] [--views 10] [--width 65536] [--rounds 3]

Heads: from given unit codes of 2 + 8 views to the gradients of codes and directions, fp32. The
naive contender is the published description taken by its word: all views' logits through torch's
weight norm, then a loop over 18 pairs with a log-softmax each, and another with a softmax and a
cosine each. Every measurement is a process of its own, in turns. Time: process time of a step after
a first one. Memory of the rows: how far the peak resident size of the first step is above what was
resident before it, so the gradients count and the directions (128 MiB) do not. Printed beside it:
the same from PyTorch's own record of its allocations, which neither the system's allocator nor a
library's scratch can move. "Beyond" is without the gradients of the two layers, with which every
contender must end.

Update: clipping, AdamW and the slow copy of a ViT-S with two heads, against loops over parameters
(norm, clip, AdamW without foreach, one average each), in turns in one process; wall time.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitools.nn import ema, optim
from equitools.nn.heads import DINOHead, WeightNormLinear
from equitools.nn.losses import prototypes

DIM, ONLINE, SLOW = 256, 0.1, 0.04
MEBI = 2**20


def main() -> None:
    """Print one line per contender and the rows of ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--width", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--measure", choices=["ours", "naive", "difference"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.measure == "difference":
        print(json.dumps(difference(given)))
    elif given.measure:
        print(json.dumps(measure(given)))
    else:
        compare_heads(given)
        compare_updates(given.rounds)


def compare_heads(given: argparse.Namespace) -> None:
    """Processes in turns; the rows of memory and time."""
    found: dict[str, list[dict[str, float]]] = {"naive": [], "ours": []}
    for _ in range(given.rounds):
        for name in found:
            found[name].append(child(name))
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    gradients = 2 * given.width * DIM * 4 / MEBI
    for name, seen in middle.items():
        print(
            f"{name:6} {seen['seconds']:6.2f} s;"
            f" resident {seen['peak']:4.0f} MiB, beyond {seen['peak'] - gradients:4.0f};"
            f" allocated {seen['allocated']:4.0f} MiB, beyond {seen['allocated'] - gradients:4.0f}"
        )
    print(f"largest relative difference of a gradient {child('difference')['gradient']:.1e}")
    naive, ours = middle["naive"], middle["ours"]
    what = f"two {given.width}-wide heads, {given.batch} x {given.views} views"
    memory = f"{ours['peak']:.0f} / {naive['peak']:.0f} MiB"
    peers = "18 pairs in a loop"
    saved = naive["peak"] / ours["peak"]
    row(f"{what}, peak", peers, ours["peak"], naive["peak"], "MiB", saved, 5, memory)
    faster = naive["seconds"] / ours["seconds"]
    row(f"{what}, gradients", peers, ours["seconds"], naive["seconds"], "s", faster, 0.95, memory)


def row(
    what: str, peers: str, ours: float, peer: float, unit: str, ratio: float, aim: Any, memory: str
) -> None:
    """One line of the table of results."""
    cells = [what, f"{peers}, torch {torch.__version__}", f"{ours:.3g}", f"{peer:.3g}", unit]
    print(" | ".join(["row", *cells, f"{ratio:.2f}", str(aim), memory]))


def child(name: str) -> dict[str, float]:
    """Measure in a process of its own, with the arguments of this one."""
    command = [sys.executable, *sys.argv, "--measure", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(answer.stdout)


class Heads:
    """Unit codes and directions of two heads, online and slow, all in their final place."""

    def __init__(self, batch: int, views: int, width: int) -> None:
        torch.manual_seed(0)
        self.online = [WeightNormLinear(DIM, width) for _ in range(2)]
        self.slow = [copy.deepcopy(layer).requires_grad_(False) for layer in self.online]
        self.codes = [unit(views, batch).requires_grad_() for _ in range(2)]
        self.slow_codes = [unit(2, batch) for _ in range(2)]
        self.center = torch.zeros(width)

    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        return [*self.codes, *(layer.weight_v for layer in self.online)]

    def clear(self) -> None:
        """Forget all gradients."""
        for leaf in self.leaves():
            leaf.grad = None


def unit(views: int, batch: int) -> Tensor:
    return F.normalize(torch.randn(views, batch, DIM), dim=-1)


def ours(heads: Heads) -> None:
    """DINO's loss on the first head, L_Orth on the second, backward."""
    views = len(heads.codes[0])
    partners = [tuple(i for i in range(2) if i != v) for v in range(views)]
    losses = []
    for i, kind in enumerate(("cross-entropy", "cosine")):
        slow = prototypes.TargetHead(heads.slow_codes[i], heads.slow[i], heads.center, SLOW)
        pairs = prototypes.ViewPairs(kind, partners, ONLINE, slow)
        losses.append(prototypes.mean(heads.codes[i], heads.online[i], pairs))
    sum(losses).backward()


def naive(heads: Heads) -> None:
    """The same by two loops over pairs."""
    entropy = partial(pair_loop, similarity=lambda q, s: -(q * F.log_softmax(s, -1)).sum(-1))
    cosine = partial(pair_loop, similarity=lambda q, s: F.cosine_similarity(q, s.softmax(-1), -1))
    (entropy(heads, 0) + cosine(heads, 1)).backward()


def pair_loop(heads: Heads, i: int, similarity: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean of a similarity over all pairs of a slow view and another view."""
    layer, views = heads.online[i], heads.codes[i]
    weight = torch._weight_norm(layer.weight_v, layer.weight_g, 0)
    online = (F.linear(views.flatten(0, 1), weight) / ONLINE).chunk(len(views))
    with torch.no_grad():
        slow = heads.slow[i](heads.slow_codes[i].flatten(0, 1))
        targets = F.softmax((slow - heads.center) / SLOW, dim=-1).chunk(2)
    total, pairs = torch.zeros(()), 0
    for a, target in enumerate(targets):
        for b, logits in enumerate(online):
            if a != b:
                total, pairs = total + similarity(target, logits).mean(), pairs + 1
    return total / pairs


CONTENDERS = {"ours": ours, "naive": naive}


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Peak of the first step above what was there, in MiB, and the seconds of later ones."""
    work = CONTENDERS[given.measure]
    work(Heads(2, given.views, 512))  # libraries load and start
    heads = Heads(given.batch, given.views, given.width)
    before = resident()
    work(heads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    times = []
    for _ in range(given.steps):
        heads.clear()
        began = time.process_time()
        work(heads)
        times.append(time.process_time() - began)
    heads.clear()
    seconds = statistics.median(times)
    return {"peak": peak / MEBI, "seconds": seconds, "allocated": allocated(work, heads) / MEBI}


def allocated(work: Callable[[Heads], None], heads: Heads) -> int:
    """The largest sum of bytes that one step has taken and not given back."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work(heads)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize()


def difference(given: argparse.Namespace) -> dict[str, float]:
    """The largest relative difference between the gradients of both, over the leaves."""
    heads = Heads(given.batch, given.views, given.width)
    found = []
    for work in (ours, naive):
        heads.clear()
        work(heads)
        found.append([leaf.grad for leaf in heads.leaves()])
    return {"gradient": max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))}


def compare_updates(rounds: int) -> None:
    """Clip, AdamW step and slow copy; ours and the loops in turns."""
    from equitools import backbones

    encoder = backbones.create({"name": "vit_small_patch16_224"})
    online = nn.ModuleList([encoder, DINOHead(307), DINOHead(77)])
    times: dict[str, list[float]] = {"naive": [], "ours": []}
    steps = {"naive": looped(copy.deepcopy(online)), "ours": together(online)}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    slow, fast = (statistics.median(seen[1:]) for seen in times.values())
    print(f"update of ViT-S and two heads: loops {slow:.3f} s, ours {fast:.3f} s")
    what = "clip, AdamW and slow copy, ViT-S and two heads"
    row(what, "loops over parameters", fast, slow, "s", slow / fast, "-", "-")


def with_gradients(online: nn.Module) -> list[nn.Parameter]:
    parameters = [p for p in online.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    return parameters


def together(online: nn.ModuleList) -> Callable[[], None]:
    """As equi-pretrain does it."""
    slow = ema.copy(online)
    parameters = with_gradients(online)
    groups = optim.parameter_groups(online.named_parameters(), decay_bias=False)
    optimizer = optim.create(optim.optimizer_settings(), groups)

    def step() -> None:
        optim.clip_gradients(parameters, 3.0, "tensor")
        optimizer.step()
        for follower, leader in zip(slow, online, strict=True):
            ema.update(follower, leader, 0.996)

    return step


def looped(online: nn.ModuleList) -> Callable[[], None]:
    """One parameter after the other."""
    slow = ema.copy(online)
    parameters = with_gradients(online)
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.04, foreach=False)

    def step() -> None:
        for parameter in parameters:
            coefficient = 3.0 / (parameter.grad.norm(2) + 1e-6)
            if coefficient < 1:
                parameter.grad.mul_(coefficient)
        optimizer.step()
        with torch.no_grad():
            for follower, leader in zip(slow.parameters(), online.parameters(), strict=True):
                follower.mul_(0.996).add_((1 - 0.996) * leader.detach())

    return step


if __name__ == "__main__":
    main()
