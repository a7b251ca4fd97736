"""VMamba's selective scan in four directions, forward and backward, beside plain loops; one thread.

    python tests/bench/bench_scan.py [--batch 8] [--side 56] [--channels 96] [--rounds 5]

All contenders start from the same tensors in the order of the picture and end with the gradients of
all seven. "unbind" is the plain loop at its best: what does not depend on the state is made at
once, the sequence is unbound once, a step is one addcmul. "Published" is the same with the steps
taken as the reference of the Mamba release takes them, `a[..., t]`: autograd then writes a sequence
for every position, so it is measured once, with one sample.

Time: medians of process time over interleaved rounds after a first one. Memory: the largest sum of
bytes beyond the inputs that PyTorch's allocator had handed out during a step; what must be there at
the end, y and the gradients, is printed as well. The last row is all of vmamba_tiny, forward and
backward at 224 px, with our scan and with the loop in its place.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from torch.nn import functional as F

from equitools.backbones.selective_scan import cross_scan
from equitools.backbones.selective_scan.torch_sweep import swept

MEBI = 2**20
Scan = Callable[..., Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name, default in (("batch", 8), ("side", 56), ("channels", 96), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    compare_scans(given)
    compare_models(given.rounds)


def compare_scans(given: argparse.Namespace) -> None:
    """The rows of the sweep, eager and compiled, beside the loops."""
    compiled = torch.compile(swept, fullgraph=True)
    contenders = {"eager": swept, "compiled": compiled, "loop": unbound}
    check({**contenders, "published": published})
    inputs = made(given.batch, given.channels, given.side)
    seen = medians(contenders, inputs, given.rounds)
    memory = {}
    for name, scan in contenders.items():
        clear(inputs)
        memory[name] = peak(lambda scan=scan: step(scan, inputs))
    print(f"y and gradients {sum(t.nbytes for t in (inputs[0], *inputs)) / MEBI:.0f} MiB")
    for name, aim in (("eager", 2), ("compiled", 3)):
        shown = f"{memory[name]:.0f} / {memory['loop']:.0f} MiB"
        what = f"{title(inputs)}, {name}"
        row(what, "unbind and a loop", seen[name], seen["loop"], "s", aim, shown)
    inputs = made(1, given.channels, given.side)
    ours = medians({"eager": swept}, inputs, given.rounds)["eager"]
    row(title(inputs), "published loop", ours, step(published, inputs), "s", 100, "-")


def compare_models(rounds: int) -> None:
    """vmamba_tiny with our scan, and with the loop in its place."""
    import timm

    from equitools import backbones
    from equitools.backbones import vss_block

    assert backbones
    torch.manual_seed(0)
    model, pictures = timm.create_model("vmamba_tiny", num_classes=0), torch.randn(2, 3, 224, 224)

    def run(scan: Scan) -> float:
        with mock.patch.object(vss_block, "cross_scan", scan):
            began = time.process_time()
            model(pictures).square().mean().backward()
            model.zero_grad()
            return time.process_time() - began

    times: dict[str, list[float]] = {"ours": [], "loop": []}
    for _ in range(1 + rounds):
        for name, scan in (("ours", cross_scan), ("loop", unbound)):
            times[name].append(run(scan))
    ours, theirs = (statistics.median(times[name][1:]) for name in ("ours", "loop"))
    peaks = [peak(lambda scan=scan: run(scan)) for scan in (cross_scan, unbound)]
    shown = "{:.0f} / {:.0f} MiB".format(*peaks)
    what = "vmamba_tiny, 2 pictures of 224 px, gradients"
    row(what, "unbind and a loop", ours, theirs, "s", "-", shown)


def made(batch: int, channels: int, side: int, **kind: Any) -> list[Tensor]:
    """x, delta, bias, A, B, C and D with steps from 0.001 to 0.1, leaves."""
    torch.manual_seed(0)
    maps = (batch, 4, side, side)
    steps = torch.exp(torch.empty(4, channels).uniform_(-6.9, -2.3))
    found = [
        torch.randn(batch, channels, side, side),
        0.1 * torch.randn(batch, 4, channels, side, side),
        steps.expm1().log(),
        -torch.ones(4, channels),
        torch.randn(maps),
        torch.randn(maps),
        torch.ones(4, channels),
    ]
    low = [0, 1, 4, 5]  # x, delta, B and C have the type asked for
    wide = {**kind, "dtype": torch.float32}
    moved = [t.to(**(kind if i in low else wide)) for i, t in enumerate(found)]
    return [t.requires_grad_() for t in moved]


def unbound(*inputs: Tensor) -> Tensor:
    """The plain loop; the sequence is unbound, so that autograd stacks it once."""
    return looped(lambda a, u: zip(a.unbind(-1), u.unbind(-1), strict=True), *inputs)


def published(*inputs: Tensor) -> Tensor:
    """The plain loop with a slice of the whole sequence at every step."""
    return looped(lambda a, u: ((a[..., t], u[..., t]) for t in range(a.shape[-1])), *inputs)


def looped(
    taken: Callable[[Tensor, Tensor], Any],
    x: Tensor,
    delta: Tensor,
    bias: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
) -> Tensor:
    """Four flattened copies, a loop over positions, and their outputs put back and added."""

    def scanned(a: Tensor, u: Tensor) -> Tensor:
        state, states = torch.zeros_like(u[..., 0]), []
        for a_t, u_t in taken(a, u):
            state = torch.addcmul(u_t, a_t, state)
            states.append(state)
        return torch.stack(states, -1)

    return around(scanned, x, delta, bias, A, B, C, D)


def around(
    scanned: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    delta: Tensor,
    bias: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
) -> Tensor:
    """A scan with a way to get the states b 4 d L of s_t = a_t s_{t-1} + u_t, in float32."""
    inputs = flattened(x.unsqueeze(1).expand(-1, 4, -1, -1, -1)).float()
    steps = F.softplus(flattened(delta).float() + bias.unsqueeze(-1))
    b, c = (flattened(t.unsqueeze(2)).float() for t in (B, C))
    states = scanned(torch.exp(steps * A.unsqueeze(-1)), steps * b * inputs)
    y = c * states + D.unsqueeze(-1) * inputs
    rows, columns = y[:, 0] + y[:, 2].flip(-1), y[:, 1] + y[:, 3].flip(-1)
    h, w = x.shape[2:]
    return (rows.unflatten(-1, (h, w)) + columns.unflatten(-1, (w, h)).mT).to(x.dtype)


def flattened(maps: Tensor) -> Tensor:
    """b 4 d h w → b 4 d L, each direction in the order of its path."""
    rows, columns = maps[:, ::2].flatten(-2), maps[:, 1::2].mT.flatten(-2)
    paths = [rows[:, 0], columns[:, 0], rows[:, 1].flip(-1), columns[:, 1].flip(-1)]
    return torch.stack(paths, 1)


def title(inputs: list[Tensor]) -> str:
    return "four scans of {} x {} x {} x {}, gradients".format(*inputs[0].shape)


def check(scans: dict[str, Scan]) -> None:
    """Print how far the contenders are from the first."""
    found = []
    for scan in scans.values():
        leaves = made(2, 16, 12)
        y = scan(*leaves)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    for name, other in zip(scans, found, strict=True):
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(other, found[0], strict=True))
        print(f"{name:9} differs from {next(iter(scans))} by {worst:.0e} at most")


def step(scan: Scan, inputs: list[Tensor]) -> float:
    """Process time of y and all gradients, seconds."""
    clear(inputs)
    began = time.process_time()
    y = scan(*inputs)
    y.backward(torch.ones_like(y))
    return time.process_time() - began


def clear(inputs: list[Tensor]) -> None:
    """Forget all gradients."""
    for leaf in inputs:
        leaf.grad = None


def medians(scans: dict[str, Scan], inputs: list[Tensor], rounds: int) -> dict[str, float]:
    """Times in turns, without the first of each."""
    times: dict[str, list[float]] = {name: [] for name in scans}
    for _ in range(1 + rounds):
        for name, scan in scans.items():
            times[name].append(step(scan, inputs))
    return {name: statistics.median(seen[1:]) for name, seen in times.items()}


def peak(work: Callable[[], object]) -> float:
    """The largest sum of MiB that a piece of work had taken and not given back."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events)) / MEBI


def row(what: str, peers: str, ours: float, peer: float, unit: str, aim: Any, memory: str) -> None:
    """One line of the table of results; less is better."""
    cells = [what, f"{peers}, torch {torch.__version__}", f"{ours:.3g}", f"{peer:.3g}", unit]
    print(" | ".join(["row", *cells, f"{peer / ours:.2f}", str(aim), memory]), flush=True)


if __name__ == "__main__":
    main()
