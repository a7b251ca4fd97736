"""What a run looks at while it trains: losses, collapse and neighbors."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from torch import nn

from equitools.backbones.encoder import Encoder
from equitools.core import distributed
from equitools.core.errors import NumericalError
from equitools.core.records import Features, Step
from equitools.data.shards.index import open_split
from equitools.features.extract import extract
from equitools.features.neighbors import knn
from equitools.features.transform import evaluation_transform
from equitools.nn import collapse

SENTENCES = {"I": "the invariant part", "V": "the equivariant part"}
CONSTANT = 1e-3  # spread of a representation that says nothing
VANISHED = 1e-6  # mean |z| of a representation that is no longer there
DECADES = 6.0  # how far a head's log10 Σp² falls before it counts as decayed


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


def stop_if_broken(
    loss: torch.Tensor, parts: dict[str, torch.Tensor], step: int, saved: int
) -> None:
    """Raise NumericalError naming the terms that are not finite, in whichever process they are.

    saved: the step of the last saved state, 0 for none.
    """
    broken = not bool(torch.isfinite(loss))
    if distributed.any_across(broken, loss.device):
        bad = [name for name, value in parts.items() if not bool(torch.isfinite(value))]
        where = ", ".join(bad) or ("the sum of terms" if broken else "another process's loss")
        kept = f"the state of step {saved} is kept" if saved else "nothing was saved before it"
        raise NumericalError(
            f"step {step + 1}: {where} is not finite; {kept}."
            " A lower optimizer.lr, or precision=fp32, is what usually helps"
        )


def look(
    settings: dict[str, Any], model: Any, record: Step, said: list[Features],
    losses: dict[str, float],
) -> tuple[dict[str, float], list[str]]:  # fmt: skip
    """The collapse watch of one step: its readings, and in words what is wrong, if anything is.

    record: its last micro-batch, which the terms look at; said: what the encoder says of them all.
    """
    signs: dict[str, float] = {}
    for owner, term in [(settings["objective"]["name"], model.objective), *model.terms.items()]:
        if hasattr(term, "diagnostics"):
            signs |= {f"{owner}/{key}": value for key, value in term.diagnostics(record).items()}
    readings = collapse.measure(said) | _mean(distributed.everyones(signs))
    return readings, describe(readings, losses)


def _mean(said: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each reading over the processes that have it: a portion may be elsewhere."""
    keys = dict.fromkeys(key for one in said for key in one)
    return {key: fmean(one[key] for one in said if key in one) for key in keys}


def note(noted: dict[str, str], words: list[str], step: int) -> list[str]:
    """Keep what the watch says for the first time, with its step; returns what is new.

    Sentences are the same when they differ in their numbers only, which stand after the colon.
    """
    fresh = {word.split(":")[0]: f"step {step}: {word}" for word in words}
    fresh = {kind: said for kind, said in fresh.items() if kind not in noted}
    noted |= fresh
    return list(fresh.values())


def crossed(every: float, length: Any, step: int) -> bool:
    """Does this step end another `every` epochs, or the run?"""
    if every <= 0:
        return False
    now, before = length.epoch(step + 1), length.epoch(step)
    return int(now / every) > int(before / every) or step + 1 == length.steps


def nearest_neighbors(
    settings: dict[str, Any], document: dict[str, Any], index: Any, encoder: Encoder
) -> dict[str, float]:
    """20-nearest-neighbor accuracy, in percent, and effective rank, on a val split if there is one.

    At most 25,000 training and 5,000 val samples, so that ImageNet does not stop for it.
    """
    if "shards.val" not in document["files"] or (index.labels < 0).any():
        return {}
    frozen = copy.deepcopy(encoder)  # extraction freezes what it reads
    transform = evaluation_transform(frozen)
    train, val = (
        extract(frozen, split, transform=transform, device=settings["device"], limit=limit)
        for split, limit in ((index, 25_000), (open_split(document, "val"), 5_000))
    )
    found = knn(train.features, train.labels, val.features, val.labels, ks=[20])
    return found | {"effective_rank": collapse.effective_rank(val.features)}
