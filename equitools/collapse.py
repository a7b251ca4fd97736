"""Is the run collapsing? Numbers that tell, and the words for them.

effective rank  exp(-Σ p_k log p_k),  p = σ / Σσ  of the features' singular values
                                     (Roy & Vetterli, 2007; Garrido et al., 2023, "RankMe")
spread          √d · std of each channel of the L2-normalized features; 1 is isotropic,
                0 constant           (Chen & He, 2021)
power           log10 Σ p² of a head (Song et al., 2024, Table 1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from equitools import parallel
from equitools.records import Features, Step

PARTS = {"I": "invariant", "V": "equivariant"}
SENTENCES = {"I": "the invariant part", "V": "the equivariant part"}
CONSTANT = 1e-3  # spread of a representation that says nothing
VANISHED = 1e-6  # mean |z| of a representation that is no longer there
DECADES = 6.0  # how far a head's log10 Σp² falls before it counts as decayed


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


def said(step: Step) -> list[Features]:
    """What the slow (or only) encoder says of a micro-batch, and nothing that keeps more alive."""
    records = step.target or step.online[:1]
    return [Features(record.pooled.detach(), record.split) for record in records]


@torch.no_grad()
def measure(records: Sequence[Features]) -> dict[str, float]:
    """Effective rank and spread of both parts of what `said` found in every micro-batch of a step;
    that of other processes is gathered, so that the readings are of the whole batch.

    Keys: rank_I, spread_I, spread_min_I and, when the encoder splits, the same with _V.
    """
    found: dict[str, float] = {}
    for letter, name in PARTS.items():
        features = torch.cat([getattr(record, name) for record in records])
        if features.shape[-1]:
            features = parallel.gather(features)
            found[f"rank_{letter}"] = effective_rank(features)
            found[f"spread_{letter}"], found[f"spread_min_{letter}"] = spread(features)
    return found


def describe(readings: Mapping[str, float], losses: Mapping[str, float]) -> list[str]:
    """What the readings say in words; an empty list while nothing is wrong.

    readings: `measure` and the terms' diagnostics, each name bare ("h_V") or after the name of
    its term ("dino/teacher_entropy"). losses: the terms' losses by name ("dino").
    """
    words = []
    for key, value in readings.items():
        owner, _, name = key.rpartition("/")
        if name == "uniform_entropy":
            words += _assignments(readings, losses, owner, value)
        elif name.startswith("spread_") and "min" not in name and value < CONSTANT:
            words.append(f"{SENTENCES[name[-1]]} is constant: channel spread {value:.1g}")
        elif name in ("z_I", "z_V") and value < VANISHED:
            words.append(f"{SENTENCES[name[-1]]} has vanished: mean |z| = {value:.1g}")
        elif name in ("h_I", "h_V") and value < -DECADES:
            head = "EF" if name == "h_V" else "IR"
            words.append(f"the {head} head has decayed: Σp² = 1e{value:.1f}")
    return words


def _assignments(
    readings: Mapping[str, float], losses: Mapping[str, float], owner: str, uniform: float
) -> list[str]:
    """Words for a slow network whose assignments have become uniform, or all the same."""
    prefix = f"{owner}/" if owner else ""
    entropy = readings[f"{prefix}teacher_entropy"]
    choices = round(math.exp(uniform))
    loss = losses.get(owner, math.inf)
    if entropy > (1 - 1e-4) * uniform:
        if abs(loss - uniform) < 1e-4:
            return [f"uniform collapse: loss {loss:.4f} = ln {choices}"]
        return [f"uniform collapse: teacher entropy {entropy:.4f}, ln {choices} = {uniform:.4f}"]
    if readings[f"{prefix}mean_entropy"] < 1e-3 * uniform:
        return [f"collapse onto one of {choices} prototypes: every picture has the same assignment"]
    return []
