"""Equations that several terms share: durations, cosines, pairs, centers, L_PReg.

center    c ← m · c + (1 - m) · mean(t)                  (Caron et al., 2021)
balance   mean over heads | S(h_I) - S(h_V) |, S = Σ p²  (L_PReg; Song et al., 2024, "CLeVER")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitools import parallel
from equitools.errors import UsageError
from equitools.heads import WeightNormLinear
from equitools.records import Features, Step

Norm = Literal["squared", "root"]
ScaleFree = Literal["keep", "drop"]


def elapsed(duration: float | str, step: Step) -> float:
    """How much of a duration is behind us, in [0, 1]; 1 for a duration of nothing.

    duration: a number of epochs, or a share of the run such as "10%". Raises UsageError for
    another text.
    """
    if isinstance(duration, str):
        return _passed(step.done, _share(duration))
    return _passed(step.epoch, duration)


def _passed(now: float, duration: float) -> float:
    return 1.0 if duration <= 0 else min(now / duration, 1.0)


def _share(text: str) -> float:
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
    except ValueError:
        pass
    raise UsageError(f"'{text}' is no duration; it is epochs (10) or a share of the run (10%)")


def half_cosine(start: float, end: float, done: float) -> float:
    """Half a cosine from `start` at done 0 to `end` at done 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each pair of rows, b d and b d → b; in float32."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


def predicted_cosine(predicted: Sequence[Tensor], projected: Sequence[Tensor]) -> Tensor:
    """The mean over ordered pairs of views of cos(p_i, sg z_j), i ≠ j, for each sample; → b.

    Chen & He, 2021: the gradient reaches the predicted side only.
    """
    pairs = [
        cosine(p, z.detach())
        for i, p in enumerate(predicted)
        for j, z in enumerate(projected)
        if i != j
    ]
    return torch.stack(pairs).mean(0)


def global_views(step: Step) -> list[int]:
    """The indices of the views that a slow encoder sees, in the order of `step.target`."""
    return [i for i, view in enumerate(step.views) if view.group == "global"]


def two_views(step: Step, name: str) -> tuple[Features, Features]:
    """What the encoder says of the two global views; UsageError naming the objective otherwise."""
    found = [step.online[i] for i in global_views(step)]
    if len(found) != 2:
        raise UsageError(f"{name} compares two global views, not {len(found)}")
    return found[0], found[1]


def partners(step: Step) -> list[tuple[int, ...]]:
    """For every view the slow views that it is compared with, as positions in `step.target`.

    A view meets all slow views but its own. Raises UsageError when the slow views are not one for
    every global view, or when no two views can meet.
    """
    owners, found = global_views(step), len(step.target or [])
    if len(owners) != found:
        raise UsageError(f"{found} slow views for {len(owners)} global views")
    met = [
        tuple(i for i, owner in enumerate(owners) if owner != view)
        for view in range(len(step.views))
    ]
    if not any(met):
        raise UsageError("no two views to compare; say views.global.count=2")
    return met


class Center(nn.Module):
    """The running mean of a slow head's logits over batches, views and processes; zero at first.

    `observe` is called with every forward pass and `move` once a step, so that accumulated
    passes count as one large batch.
    """

    value: Tensor

    def __init__(self, out_dim: int, momentum: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(out_dim))
        self.momentum = momentum
        self.seen: list[Tensor] = []

    @torch.no_grad()
    def observe(self, mean: Tensor) -> None:
        """Note a forward pass's mean logits, K, for the next move."""
        self.seen.append(mean)

    @torch.no_grad()
    def move(self) -> None:
        """Move toward the mean of what was observed since the last move, over all processes."""
        if self.seen:
            mean = parallel.mean_across(torch.stack(self.seen).mean(0))
            self.value.lerp_(mean, 1 - self.momentum)
        self.seen = []


def entropy(probabilities: Tensor) -> Tensor:
    """The entropy of each row in nats, b K → b; ln K for a uniform row."""
    return torch.special.entr(probabilities).sum(-1)


def entropies(assignments: Tensor) -> dict[str, float]:
    """Signs of collapse in a slow network's assignments, probabilities … K, in nats; the means are
    over all processes.

    teacher_entropy near uniform_entropy (ln K) is a uniform collapse; mean_entropy, of the batch's
    mean assignment, near 0 is a collapse onto one prototype.
    """
    rows = assignments.flatten(0, -2)
    return {
        "teacher_entropy": float(parallel.mean_across(entropy(rows).mean())),
        "mean_entropy": float(entropy(parallel.mean_across(rows.mean(0)))),
        "uniform_entropy": math.log(rows.shape[-1]),
    }


def magnitude(
    head: nn.Module, *, norm: Norm = "squared", scale_free: ScaleFree = "keep", gains: bool = True
) -> Tensor:
    """S(h): the sum of squares of all parameters of a head, or its root; a scalar.

    norm: "squared" (what trained the published models) or "root" (as printed). scale_free:
    "drop" leaves out weight-normed directions, whose lengths do not change the function.
    gains: count the gains of weight-normed layers.
    """
    skipped: set[int] = set()
    for module in head.modules():
        if isinstance(module, WeightNormLinear):
            skipped |= {id(module.weight_v)} if scale_free == "drop" else set()
            skipped |= set() if gains else {id(module.weight_g)}
    squares = [p.float().square().sum() for p in head.parameters() if id(p) not in skipped]
    power = torch.stack(squares).sum()
    return power.sqrt() if norm == "root" else power


def balance(
    invariant: Sequence[nn.Module],
    equivariant: Sequence[nn.Module],
    *,
    norm: Norm = "squared",
    scale_free: ScaleFree = "keep",
) -> Tensor:
    """L_PReg: heads are paired by position, |S(h_I) - S(h_V)| is averaged over the pairs.

    When a pair's output widths differ, its gains (ones, one for each output) are left out: they
    would add a constant that training cannot move. Song et al., 2024; the released code pairs
    DDCL's projectors and predictors separately and uses squares.
    """
    gaps = []
    for first, second in zip(invariant, equivariant, strict=True):
        gains = getattr(first, "out_dim", None) == getattr(second, "out_dim", None)
        sizes = [
            magnitude(head, norm=norm, scale_free=scale_free, gains=gains)
            for head in (first, second)
        ]
        gaps.append((sizes[0] - sizes[1]).abs())
    return torch.stack(gaps).mean()


@torch.no_grad()
def log_power(heads: Sequence[nn.Module]) -> float:
    """log10 of the sum of squares of all parameters of the heads (the paper's Table 1)."""
    total = sum(float(p.double().square().sum()) for head in heads for p in head.parameters())
    return math.log10(total) if total > 0 else -math.inf


@torch.no_grad()
def mean_size(features: Sequence[Tensor]) -> float:
    """The mean absolute value over several b d feature matrices (Table 1's mean |z|)."""
    return float(torch.stack([part.float().abs().mean() for part in features]).mean())


def vital_signs(objective: Any, step: Step) -> dict[str, float]:
    """Signs of collapse of an objective without prototypes: log10 Σp² of its heads (h_I), and
    mean |z| of the representation (z_I)."""
    return {
        "h_I": log_power(objective.heads()),
        "z_I": mean_size([features.invariant for features in step.online]),
    }


# What a term may ask of an objective's heads (`needs` of the one, `pairs` of the other).
HEADS = {
    "distribution": "a head over prototypes",
    "projector": "a projector and a predictor",
}


def goes_with(term: Any, objective: Any) -> bool:
    """Has the objective the heads that the term asks for, if it asks? Classes or objects."""
    return getattr(term, "needs", None) in (None, getattr(objective, "pairs", None))


def check_pair(term: Any, name: str, dim: int, objective: Any) -> None:
    """Refuse a term whose objective has no heads of the kind that it pairs with, or no EF part."""
    if not goes_with(term, objective):
        other = type(objective).__name__.lower()
        raise UsageError(
            f"{name} does not go with {other}: it needs an objective with"
            f" {HEADS[term.needs]} (equi-pretrain --list shows the pairs)"
        )
    if dim < 1:
        raise UsageError(f"{name} needs an encoder that splits its output; say backbone.split=0.8")
