"""VMamba's selective scan and its networks on a GPU, in bfloat16, forward and backward.

    python tests/bench/bench_scan_gpu.py [--batch 128] [--rounds 20]

The scan: the four directions of a first stage (96 x 56 x 56), channels innermost in memory, beside
the sweep in plain torch, beside torch.compile of the four flattened sequences with torch's own
associative scan, and beside the time that it takes to read and write what must be: forward x, four
delta and y, backward these once more with x's gradient and four of delta, and B and C. The speed of
memory is that of a copy of 1 GiB in the same run. Networks: VMamba-T beside ResNet-50 and ViT-S
under autocast, pictures of 224 px.

Medians of interleaved rounds between CUDA events after three first ones. Memory is the peak of the
allocator beyond what was there before a step.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from bench_scan import Scan, around, made, row, title
from torch import Tensor

from equitools.backbones.selective_scan import cross_scan, engine
from equitools.backbones.selective_scan.torch_sweep import swept

Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name, default in (("batch", 128), ("rounds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if torch.cuda.is_available() and engine("cuda", torch.bfloat16) == "Triton":
        print(torch.cuda.get_device_name())
        compare_scans(given.batch, given.rounds)
        compare_networks(given.batch, given.rounds)
    else:
        print("skip | Triton's scan beside its byte floor: no GPU here on which it runs")


def compare_scans(batch: int, rounds: int) -> None:
    """Triton beside the sweep, a compiled associative scan and the byte floor."""
    inputs = [inner(t) for t in made(batch, 96, 56, device="cuda", dtype=torch.bfloat16)]
    given = torch.randn_like(inputs[0])
    scans: dict[str, Scan] = {"Triton": cross_scan, "torch, sweep": swept}
    compiled = torch.compile(associative)
    try:
        step(compiled, inputs, given)
        scans["torch.compile, associative scan"] = compiled
    except RuntimeError as error:  # torch calls it a prototype
        print(f"skip | torch.compile of an associative scan: {str(error).splitlines()[0]}")
    works: dict[str, Work] = {
        name: lambda scan=scan: step(scan, inputs, given) for name, scan in scans.items()
    }
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seen = milliseconds({**works, "copy": lambda: target.copy_(source)}, rounds)
    speed = 2 * source.nbytes / seen["copy"]
    x, B = inputs[0], inputs[4]
    floor = (17 * x.nbytes + 6 * B.nbytes) / speed
    print(f"a copy moves {speed / 1e9:.2f} TB/s")
    peaks = {name: memory(work) for name, work in works.items()}
    for name in list(scans)[1:]:
        shown = f"{peaks['Triton']:.0f} / {peaks[name]:.0f} MiB"
        row(title(inputs), name, seen["Triton"], seen[name], "ms", "-", shown)
    shown = f"{peaks['Triton']:.0f} MiB"
    row(title(inputs), "byte floor", seen["Triton"], floor, "ms", round(1 / 1.5, 2), shown)


def compare_networks(batch: int, rounds: int) -> None:
    """VMamba-T beside two usual networks."""
    import timm

    from equitools import backbones

    assert backbones  # it registers VMamba with timm
    works, pictures = {}, torch.randn(batch, 3, 224, 224, device="cuda")
    for name in ("vmamba_tiny", "resnet50", "vit_small_patch16_224"):
        model = timm.create_model(name, num_classes=0).cuda()
        works[name] = lambda model=model: train(model, pictures)
    seen = milliseconds(works, rounds)
    peaks = {name: memory(work) for name, work in works.items()}
    for peer, aim in (("vit_small_patch16_224", 0.7), ("resnet50", "-")):
        shown = f"{peaks['vmamba_tiny']:.0f} / {peaks[peer]:.0f} MiB"
        ours, theirs = (seen[name] / batch for name in ("vmamba_tiny", peer))
        row("vmamba_tiny, a picture of 224 px, gradients", peer, ours, theirs, "ms", aim, shown)


def associative(*inputs: Tensor) -> Tensor:
    """Four flattened copies and torch's scan of pairs (Π a, state)."""
    from torch._higher_order_ops.associative_scan import associative_scan

    def joined(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    def scanned(a: Tensor, u: Tensor) -> Tensor:
        return associative_scan(joined, (a, u), dim=-1, combine_mode="pointwise")[1]

    return around(scanned, *inputs)


def inner(tensor: Tensor) -> Tensor:
    """The same leaf with its channels innermost in memory."""
    if tensor.ndim < 4 or tensor.shape[1] == 4 == tensor.ndim:
        return tensor
    moved = tensor.detach().movedim(-3, -1).contiguous().movedim(-1, -3)
    return moved.requires_grad_()


def step(scan: Scan, inputs: list[Tensor], given: Tensor) -> None:
    """y and all gradients."""
    torch.autograd.grad(scan(*inputs), inputs, given)


def train(model: torch.nn.Module, pictures: Tensor) -> None:
    """Forward and backward under autocast."""
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(pictures).square().mean()
    loss.backward()
    model.zero_grad()


def milliseconds(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """The median of each piece of work, in turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(3 + rounds):
        for name, work in works.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(seen[3:]) for name, seen in times.items()}


def memory(work: Work) -> float:
    """MiB that the allocator gave at the peak, beyond what was there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


if __name__ == "__main__":
    main()
