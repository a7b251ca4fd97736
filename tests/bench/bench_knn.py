"""Exact nearest neighbors beside DINO's published chunked search and faiss, fp32, one thread.

    python tests/bench/bench_knn.py [--rounds 5] [--bank 160000] [--full]

500 queries (one of the hundred chunks in which DINO takes ImageNet's 50,000) and a bank of 160,000
random unit vectors of 384 numbers and 1000 classes; --full adds a bank as large as ImageNet, 4 GiB
in all. CPU time, medians of interleaved rounds.

DINO's is its evaluation as Caron et al. (2021) publish it: a chunk times the whole bank, topk, and
for each k a vote of one-hot vectors weighted by exp(s/T); ours beside it is search and vote too.
faiss is IndexFlatIP's search, without adding; ours beside it is the search. Memory is what is held
at the peak beyond bank, index and queries.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The OpenBLAS in faiss's wheel (0.3.15) takes its slowest kernels on processors that are newer than
# it: it is told of the nearest that it knows, which makes faiss four times as fast.
if "avx512f" in Path("/proc/cpuinfo").read_text():
    os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")

import torch
from held import peak
from torch import Tensor
from torch.nn.functional import normalize

from equitools.features.neighbors import neighbors, votes

try:
    import faiss
except ImportError:
    faiss = None

QUERIES, WIDTH, CLASSES, T = 500, 384, 1000, 0.07
FULL = 1_281_167
DINO, FAISS = "DINO chunked search", "faiss IndexFlatIP"


def by_dino(queries: Tensor, columns: Tensor, labels: Tensor, truth: Tensor, k: int) -> float:
    """Right answers of a chunk b d, by a bank d n."""
    near, index = torch.mm(queries, columns).topk(k, largest=True, sorted=True)
    voter = labels.view(1, -1).expand(len(queries), -1).gather(1, index)
    ballots = torch.zeros(len(queries) * k, CLASSES).scatter_(1, voter.view(-1, 1), 1)
    weights = near.clone().div_(T).exp_().view(len(queries), -1, 1)
    score = (ballots.view(len(queries), -1, CLASSES) * weights).sum(1)
    order = score.sort(1, descending=True).indices
    return float((order[:, :1] == truth.view(-1, 1)).sum())


def by_us(queries: Tensor, bank: Tensor, labels: Tensor, truth: Tensor, k: int) -> float:
    """The same, by the functions that equi-probe uses."""
    near, index = neighbors(queries, bank, k)
    return votes(near, labels[index], truth, CLASSES, T)["top1"]


def by_faiss(bank: Tensor) -> Callable[[Tensor, int], Any]:
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(bank.numpy())
    return lambda queries, k: index.search(queries.numpy(), k)


def contenders(samples: int, k: int, full: bool) -> dict[str, Callable[[], Any]]:
    generator = torch.Generator().manual_seed(0)
    bank = normalize(torch.randn(samples, WIDTH, generator=generator), dim=1)
    queries = normalize(torch.randn(QUERIES, WIDTH, generator=generator), dim=1)
    labels, truth = (torch.randint(CLASSES, (n,), generator=generator) for n in (samples, QUERIES))
    found: dict[str, Callable[[], Any]] = {"ours, search": lambda: neighbors(queries, bank, k)}
    if not full:
        columns = bank.T.contiguous()
        found["ours, search and vote"] = lambda: by_us(queries, bank, labels, truth, k)
        found[DINO] = lambda: by_dino(queries, columns, labels, truth, k)
    if faiss is not None:
        search = by_faiss(bank)
        found[FAISS] = lambda: search(queries, k)
    return found


def measure(samples: int, k: int, rounds: int, full: bool) -> None:
    """Print a line per contender and the rows of one size."""
    work = contenders(samples, k, full)
    memory = {name: peak(one) for name, one in work.items()}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, one in work.items():
            start = time.process_time()
            one()
            seconds[name].append(time.process_time() - start)
    work.clear()
    speed = {name: QUERIES / statistics.median(values) for name, values in seconds.items()}
    size = f"{QUERIES} × {samples:,} × {WIDTH}, k = {k}"
    for name, value in speed.items():
        operations = 2 * samples * WIDTH * value / 1e9
        print(f"{size}: {name} {value:.0f} queries/s, {operations:.1f} Gflop/s")
    pairs = [(DINO, "ours, search and vote", f"torch {torch.__version__} {DINO}", "1.2")]
    pairs += [(FAISS, "ours, search", f"faiss {getattr(faiss, '__version__', '')} flat", "0.9")]
    for theirs, ours, peer, aim in pairs:
        if theirs in speed:
            a, b = speed[ours], speed[theirs]
            held = f"{memory[ours]:.0f} / {memory[theirs]:.0f} MiB"
            print(
                f"row | nearest neighbors, exact fp32, {size} | {peer} | {a:.0f} | {b:.0f}"
                f" | queries/s | {a / b:.2f} | {aim} | {held}"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bank", type=int, default=160_000)
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for k in (20, 200):
        measure(given.bank, k, given.rounds, full=False)
        if given.full:
            measure(FULL, k, given.rounds, full=True)
    if faiss is None:
        print(f"skip | nearest neighbors beside {FAISS} | faiss-cpu is not installed")


if __name__ == "__main__":
    main()
