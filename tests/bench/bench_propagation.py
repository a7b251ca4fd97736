"""One frame's labels from eight others: tiles of queries, against all affinities at once.

    python tests/bench/bench_propagation.py [--depth 384] [--labels 3] [--rounds 3]

480p frames in patches of 16 px (30 × 52 cells) and of 8 px (60 × 104), unit features of a ViT-S,
one thread. The peer does what the published code of DINO does: a product of all cells with all
cells of the eight frames, the exponential of all, the window as a matrix made once, the fifth
largest of every column, and a product with the labels. Every measurement is a process of its own,
in turns, after a small frame. Time: process time of a frame. Memory: how far the peak resident
size is above what was resident with the features there.
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
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from equitools.evals.segmentation.label_propagation import Memory

CONTEXT, REACH, TOPK, TEMPERATURE = 7, 12, 5, 0.1
GRIDS = {16: ((30, 52), 3), 8: ((60, 104), 6)}  # patch: cells, and the ratio that is aimed at
MEBI = 2**20


def main() -> None:
    """Print the rows, or measure one contender."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=384)
    parser.add_argument("--labels", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=sorted(CONTENDERS))
    parser.add_argument("--patch", type=int, choices=sorted(GRIDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.measure:
        print(json.dumps(measure(given)))
        return
    for patch in GRIDS:
        compare(patch, given)


def compare(patch: int, given: argparse.Namespace) -> None:
    """Processes in turns, and the row of a patch size."""
    found: dict[str, list[dict[str, Any]]] = {"full": [], "ours": []}
    for _ in range(given.rounds):
        for name in found:
            found[name].append(child(name, patch))
    full, ours = (
        {key: statistics.median(run[key] for run in runs) for key in ("seconds", "peak")}
        for runs in found.values()
    )
    labels = [torch.tensor(runs[0]["labels"]) for runs in found.values()]
    print(f"patch {patch}: largest difference {float((labels[0] - labels[1]).abs().max()):.1e}")
    (height, width), aim = GRIDS[patch]
    what = f"labels of a frame of {height} x {width} cells, {CONTEXT + 1} before"
    memory = f"{ours['peak']:.0f} / {full['peak']:.0f} MiB"
    ratio = full["seconds"] / ours["seconds"]
    cells = [what, f"all affinities, torch {torch.__version__}", f"{ours['seconds']:.3g}"]
    cells += [f"{full['seconds']:.3g}", "s", f"{ratio:.2f}", str(aim), memory]
    print(" | ".join(["row", *cells]), flush=True)


def child(name: str, patch: int) -> dict[str, Any]:
    """Measure in a process of its own, with the arguments of this one."""
    command = [sys.executable, *sys.argv, "--measure", name, "--patch", str(patch)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(answer.stdout)


Work = Callable[[], Tensor]


def ours(cells: list[Tensor], labels: list[Tensor]) -> Work:
    """Tiles of queries, as equi-transfer does it."""
    memory = Memory(cells[0].movedim(0, -1), len(labels[0]), CONTEXT, REACH)
    for number, known in enumerate(labels):
        memory.keep(number, cells[number].movedim(0, -1), known)
    queries = cells[-1].movedim(0, -1).contiguous()
    return lambda: memory.carry(queries, TOPK, TEMPERATURE)


def full(cells: list[Tensor], labels: list[Tensor]) -> Work:
    """All affinities at once."""
    height, width = cells[0].shape[1:]
    rows, columns = (
        (torch.arange(side)[:, None] - torch.arange(side)).abs() <= REACH
        for side in (height, width)
    )
    seen = (rows[:, None, :, None] & columns[None, :, None, :]).float()
    seen = seen.reshape(height * width, -1)
    keys = torch.stack([one.flatten(1) for one in cells[:-1]])
    known = torch.stack([one.flatten(1) for one in labels]).movedim(1, 0).flatten(1)
    queries = cells[-1].flatten(1).T.contiguous()

    def work() -> Tensor:
        affinity = torch.exp(torch.bmm(queries.expand(len(keys), -1, -1), keys) / TEMPERATURE)
        affinity *= seen
        affinity = affinity.transpose(2, 1).reshape(-1, len(queries))
        fifth = affinity.topk(TOPK, dim=0).values.amin(0)
        affinity[affinity < fifth] = 0
        affinity = affinity / affinity.sum(0, keepdim=True)
        return (known @ affinity).view(len(known), height, width)

    return work


CONTENDERS = {"ours": ours, "full": full}


def drawn(grid: tuple[int, int], given: argparse.Namespace) -> tuple[list[Tensor], list[Tensor]]:
    """Unit features d h w of nine frames, alike as those of a video are, and soft labels."""
    torch.manual_seed(0)
    scene = torch.randn(given.depth, *grid)
    cells = [
        F.normalize(scene + torch.randn(given.depth, *grid), dim=0) for _ in range(CONTEXT + 2)
    ]
    return cells, [torch.randn(given.labels, *grid).softmax(0) for _ in range(CONTEXT + 1)]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a frame, peak in MiB above what was there, and the labels."""
    contender = CONTENDERS[given.measure]
    contender(*drawn((13, 14), given))()  # libraries load and start
    cells, labels = drawn(GRIDS[given.patch][0], given)
    before = resident()
    work = contender(cells, labels)
    began = time.process_time()
    found = work()
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"seconds": seconds, "peak": peak / MEBI, "labels": found.flatten().tolist()}


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
