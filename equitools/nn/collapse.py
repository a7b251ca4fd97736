"""Is the run collapsing? Numbers that tell, and the words for them.

effective rank  exp(-Σ p_k log p_k),  p = σ / Σσ  of the features' singular values
                                     (Roy & Vetterli, 2007; Garrido et al., 2023, "RankMe")
spread          √d · std of each channel of the L2-normalized features; 1 is isotropic,
                0 constant           (Chen & He, 2021)
power           log10 Σ p² of a head (Song et al., 2024, Table 1)
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitools.core import distributed
from equitools.core.records import Features, Step

PARTS = {"I": "invariant", "V": "equivariant"}


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """The effective rank of n d features, in [1, min(n, d)]; 1 for constant features."""
    values = torch.linalg.svdvals(features.double())
    total = values.sum()
    if not total > 0:
        return 1.0
    return float(torch.special.entr(values / total).sum().exp())


@torch.no_grad()
def spread(features: Tensor) -> tuple[float, float]:
    """Mean and smallest channel spread of n d features; 0 where a channel is constant."""
    unit = F.normalize(features.float(), dim=-1)
    channels = unit.std(dim=0, correction=0) * math.sqrt(features.shape[-1])
    return float(channels.mean()), float(channels.min())


def watched_features(step: Step) -> list[Features]:
    """The target (or only) network's features of a micro-batch, and nothing that they hang on."""
    records = step.target or step.online[:1]
    return [Features(record.pooled.detach(), record.split) for record in records]


@torch.no_grad()
def measure(records: Sequence[Features]) -> dict[str, float]:
    """Effective rank and spread of both parts of the features of every micro-batch of a step;
    those of other processes are gathered, so that the readings are of the whole batch.

    Keys: rank_I, spread_I, spread_min_I and, when the encoder splits, the same with _V.
    """
    readings: dict[str, float] = {}
    for letter, name in PARTS.items():
        features = torch.cat([getattr(record, name) for record in records])
        if features.shape[-1]:
            features = distributed.gather(features)
            readings[f"rank_{letter}"] = effective_rank(features)
            mean, smallest = spread(features)
            readings |= {f"spread_{letter}": mean, f"spread_min_{letter}": smallest}
    return readings


def entropy(probabilities: Tensor) -> Tensor:
    """The entropy of each row in nats, b K → b; ln K for a uniform row."""
    return torch.special.entr(probabilities).sum(-1)


def entropies(assignments: Tensor) -> dict[str, float]:
    """Signs of collapse in a target network's assignments, probabilities … K, in nats; means are
    over all processes.

    teacher_entropy near uniform_entropy (ln K) is a uniform collapse; mean_entropy, of the batch's
    mean assignment, near 0 is a collapse onto one prototype.
    """
    rows = assignments.flatten(0, -2)
    return {
        "teacher_entropy": float(distributed.mean_across(entropy(rows).mean())),
        "mean_entropy": float(entropy(distributed.mean_across(rows.mean(0)))),
        "uniform_entropy": math.log(rows.shape[-1]),
    }


@torch.no_grad()
def log_power(heads: Sequence[nn.Module]) -> float:
    """log10 of the sum of squares of all parameters of the heads (the paper's Table 1)."""
    total = sum(float(p.double().square().sum()) for head in heads for p in head.parameters())
    return math.log10(total) if total > 0 else -math.inf


@torch.no_grad()
def mean_size(features: Sequence[Tensor]) -> float:
    """The mean absolute value over several b d feature matrices (Table 1's mean |z|)."""
    return float(torch.stack([part.float().abs().mean() for part in features]).mean())


def vital_signs(
    heads: Sequence[nn.Module], records: Sequence[Features], letter: Literal["I", "V"]
) -> dict[str, float]:
    """log10 Σp² of heads (h_I) and mean |z| of the part of the representation that they read (z_I);
    h_V and z_V of the equivariant part."""
    sizes = [getattr(record, PARTS[letter]) for record in records]
    return {f"h_{letter}": log_power(heads), f"z_{letter}": mean_size(sizes)}
