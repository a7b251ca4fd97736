"""Means over all pairs of a target view i and another view v, without holding their outputs.

    cross-entropy   -q_i · log softmax(s_v)               (L of DINO; Caron et al., 2021)
    overlap          cos(q_i, p_v),  p = softmax(s)       (L_Orth of CLeVER; Song et al., 2024)

Both are linear in what the target network says, so a view needs only Q = Σ q_i over its n partners:

    n·lse(s) - Q·s          has the gradient  n·p - Q
    Q·p / |p|               has the gradient  p ⊙ (Q - (Q·p / |p|²) p) / |p|    (q_i: unit vectors)
    Q·p                     has the gradient  p ⊙ (Q - Q·p)                     (as printed)

The gradient is made together with the value (as Hsu et al., 2024, "Liger Kernel", do for language
models), for some samples at a time, all their views together. One block of outputs is alive, the
target's included; only the gradients of the codes and of the last layer stay until backward.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from equitools.nn.heads import DINOHead, WeightNormLinear
from equitools.nn.losses import blocks, prototypes_torch

Kind = Literal["cross-entropy", "cosine", "dot"]

# Online outputs (samples · views · prototypes) alive at a time: little beside the last layer
# itself on a CPU, few launches on a GPU.
BLOCK = {"cpu": 5 << 20, "cuda": 1 << 25}


@dataclass(frozen=True)
class TargetHead:
    """What a target head says about each global view: softmax((logits - center) / temperature).

    codes g b d: its bottleneck; layer: its prototypes; center: K.
    """

    codes: Tensor
    layer: WeightNormLinear
    center: Tensor
    temperature: float

    @torch.no_grad()
    def assignments(self) -> Tensor:
        """The probabilities g b K, all of them at once: for a look at them now and then."""
        layer = _Layer(self.layer.weight_v, self.layer.weight_g, self.temperature, torch.float32)
        return _assign(self.codes, layer, self.center, "cross-entropy")

    @torch.no_grad()
    def mean_logits(self) -> Tensor:
        """The mean logits over views and samples, K; the last layer is linear."""
        with torch.autocast(self.codes.device.type, enabled=False):
            return self.layer(self.codes.mean((0, 1)))


def target_head(head: DINOHead, features: Tensor, center: Tensor, temperature: float) -> TargetHead:
    """That of a head for features g b dim."""
    return TargetHead(head.bottleneck(features), head.last_layer, center, temperature)


@dataclass(frozen=True)
class ViewPairs:
    """What is averaged, over which pairs.

    partners: for each online view the target views that it is compared with, maybe none.
    temperature: the online side's.
    """

    kind: Kind
    partners: Sequence[tuple[int, ...]]
    temperature: float
    target: TargetHead

    def groups(self) -> dict[tuple[int, ...], list[int]]:
        """The online views of each set of partners; views without partners are left out."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for view, others in enumerate(self.partners):
            if others:
                groups.setdefault(others, []).append(view)
        return groups


@torch.compiler.disable
def mean(codes: Tensor, layer: WeightNormLinear, pairs: ViewPairs) -> Tensor:
    """The mean over pairs and samples, a scalar: nats for "cross-entropy", else in [0, 1].

    codes v b d: the bottleneck of every online view; layer: the online prototypes. Gradients reach
    these two only; there are no second derivatives.
    """
    views = codes.unbind()
    grouped = torch.stack([views[v] for members in pairs.groups().values() for v in members])
    return _Mean.apply(grouped, layer.weight_v, layer.weight_g, pairs, torch.is_grad_enabled())


class _Mean(torch.autograd.Function):
    """The mean for codes in the order of their groups; its gradients are ready when it is."""

    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, directions: Tensor, gains: Tensor, pairs: ViewPairs, wanted: bool
    ) -> Tensor:
        needs = [wanted and need for need in ctx.needs_input_grad[:3]]
        layer = _Layer(directions, gains, pairs.temperature, _precision(codes))
        number = codes.shape[1] * sum(len(o) * len(m) for o, m in pairs.groups().items())
        with torch.autocast(codes.device.type, enabled=False):
            gradients = _Gradients(codes, layer, needs[0], any(needs[1:]))
            total = _run(codes, layer, pairs, gradients)
            made = gradients.finish(number)
        ctx.save_for_backward(*[g if need else None for g, need in zip(made, needs, strict=True)])
        return total / number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        # As large as the layer and nobody else's: scaled in place unless they are asked for again.
        again = torch._C._autograd._get_current_graph_task_keep_graph()
        scale = torch.mul if again else Tensor.mul_
        return (*[None if g is None else scale(g, given) for g in ctx.saved_tensors], None, None)


def _run(codes: Tensor, layer: _Layer, pairs: ViewPairs, gradients: _Gradients) -> Tensor:
    """The sum over pairs and samples, block by block of samples."""
    target = pairs.target
    target_layer = _Layer(
        target.layer.weight_v, target.layer.weight_g, target.temperature, layer.weight.dtype
    )
    views, samples = codes.shape[:2]
    most = BLOCK.get(codes.device.type, BLOCK["cuda"]) // (views * len(layer.scale))
    sums = []
    for block in blocks(samples, max(most, 1)):
        assigned = _assign(target.codes[:, block], target_layer, target.center, pairs.kind)
        sums.append(_block(codes[:, block], assigned, layer, pairs, gradients, block))
    return torch.stack(sums).sum()


def _assign(codes: Tensor, layer: _Layer, center: Tensor, kind: Kind) -> Tensor:
    """The target's assignments g r K of codes g r d; unit vectors for a cosine."""
    shift = center / layer.temperature
    return _rows(codes.device).assign(layer.products(codes), layer.scale, shift, kind == "cosine")


def _block(
    codes: Tensor,
    targets: Tensor,
    layer: _Layer,
    pairs: ViewPairs,
    gradients: _Gradients,
    block: slice,
) -> Tensor:
    """The sum over the pairs of some samples, n r d against g r K; notes the gradients."""
    outputs, rows = layer.products(codes), _rows(codes.device)
    factors, total, first = [], codes.new_zeros(()), 0
    for others, members in pairs.groups().items():
        views = outputs[first : first + len(members)]
        first += len(members)
        target = reduce(torch.add, [targets[i] for i in others])
        if pairs.kind == "cross-entropy":
            values, weights = rows.cross_entropy(
                views, layer.scale, target, len(others), gradients.needed
            )
        else:
            unit = pairs.kind == "cosine"
            values, weights = rows.overlap(views, layer.scale, target, unit, gradients.needed)
        total += values.sum()
        factors.append(weights)
    if gradients.needed:
        gradients.add(block, codes, outputs, torch.cat(factors))
    return total


@cache
def _rows(device: torch.device) -> ModuleType:
    """Kernels where Triton runs; it compiles its launchers with the system's C compiler."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if device.type == "cuda" and compiler and importlib.util.find_spec("triton"):
        return importlib.import_module("equitools.nn.losses.prototypes_triton")
    return prototypes_torch


def _precision(codes: Tensor) -> torch.dtype:
    """What products are made in: bfloat16 under its autocast, else the codes' own."""
    # Not float16: these gradients are made before a loss scale could save them from underflow.
    device = codes.device.type
    low = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if low else codes.dtype


class _Layer:
    """A weight-normed layer over a temperature: logits = scale · (codes @ weight.T)."""

    def __init__(
        self, directions: Tensor, gains: Tensor, temperature: float, dtype: torch.dtype
    ) -> None:
        self.directions = directions.detach()
        self.temperature = temperature
        self.length = self.directions.norm(dim=1)
        self.scale = gains.detach().squeeze(1) / self.length / temperature
        self.weight = self.directions.to(dtype)

    def products(self, codes: Tensor) -> Tensor:
        """Logits before the scale, n r d → n r K."""
        flat = codes.flatten(0, 1).to(self.weight.dtype) @ self.weight.T
        return flat.unflatten(0, codes.shape[:2])

    def to_parameters(self, gradient: Tensor, rows: slice, number: int) -> Tensor:
        """Turn a gradient of rows of `scale · weight` into that of the directions, in place.

        Returns that of the gains: what lies along a direction moves its gain and nothing else.
        """
        directions, length = self.directions[rows], self.length[rows]
        along = (gradient * directions).sum(1)
        gradient.addcmul_(directions, (-along / length.square()).unsqueeze(1))
        gradient.mul_((self.scale[rows] / number).unsqueeze(1))
        return along / (length * self.temperature * number)


class _Gradients:
    """Gradients of codes n b d and of their layer, added up block by block; None if not needed."""

    def __init__(self, codes: Tensor, layer: _Layer, of_codes: bool, of_layer: bool) -> None:
        self.layer = layer
        self.codes = torch.zeros_like(codes) if of_codes else None
        self.weight = torch.zeros_like(layer.directions) if of_layer else None
        self.needed = of_codes or of_layer

    def add(self, block: slice, codes: Tensor, outputs: Tensor, factors: Tensor) -> None:
        """Note factors n r · outputs n r K: the gradient of the logits of codes n r d."""
        flat, factors = outputs.flatten(0, 1), factors.unsqueeze(-1)
        if self.weight is not None:
            weighted = (factors * codes).flatten(0, 1).to(flat.dtype)
            if flat.dtype == self.weight.dtype:
                self.weight.addmm_(flat.T, weighted)
            else:
                self.weight += flat.T @ weighted
        if self.codes is not None:
            back = flat.mul_(self.layer.scale) @ self.layer.weight
            self.codes[:, block] = factors * back.view(codes.shape)

    def finish(self, number: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of the codes, the directions and the gains, divided by a number of terms."""
        codes = None if self.codes is None else self.codes.div_(number)
        if self.weight is None:
            return codes, None, None
        gains = torch.empty_like(self.layer.scale)
        for rows in blocks(len(gains), 4096):  # what a CPU's cache holds
            gains[rows] = self.layer.to_parameters(self.weight[rows], rows, number)
        return codes, self.weight, gains.unsqueeze(1)
