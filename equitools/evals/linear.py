"""Linear probe on frozen features: many learning rates in one pass, the choice made on train data.

One linear layer, weights N(0, 0.01), bias 0, SGD with momentum, cosine per epoch to 0, no warm-up,
lr · batch / 256 (Caron et al., 2021, "DINO"; Song et al., 2025, "CLeVER"). All heads share every
batch, as in DINOv2 (Oquab et al., 2023), but the rate is chosen on a part of the training data that
the choosing heads have not seen; the numbers reported are those of heads trained beside them on all
of it. So the test data decide nothing. `last` is the head after the last epoch, `best` the best
epoch on the test data, as much of the literature prints it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from equitools.errors import NumericalError, UsageError
from equitools.features import Outcome, Table, part

RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]


def evaluate(
    train: Table,
    test: Table,
    parts: Sequence[str],
    slicing: str,
    *,
    epochs: int = 100,
    lrs: list[float] = RATES,
    batch_size: int = 256,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    holdout: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    standardize: bool = False,
) -> Outcome:
    """Linear-probe accuracy of each part of the features, for every seed and as mean ± sd.

    epochs: passes over the training data. lrs: base learning rates per 256 images. seeds: of
    initialisation, order and held-out part. holdout: share of the training data on which the rate
    is chosen. standardize: features to mean 0 and sd 1 over the training data first.
    Features are those of `train`, or of its `stream` (new ones each epoch) where it has one.
    """
    _check(epochs, lrs, batch_size, seeds, holdout)
    runs = [
        _train(train, test, parts, slicing, seed, epochs=epochs, lrs=lrs, batch=batch_size,
               holdout=holdout, momentum=momentum, decay=weight_decay, standardize=standardize)
        for seed in seeds
    ]  # fmt: skip
    outcome = Outcome({}, facts=_facts(train, epochs, lrs, batch_size, momentum, weight_decay))
    outcome.facts["selection"] = (
        f"lr by top-1 on {holdout:g} of train, seeded; 'top1' is the last epoch of a head trained"
        " on all of train; 'best/top1' is its best epoch on the test split"
    )
    outcome.facts["seeds"] = list(seeds)
    outcome.facts["chosen_lr"] = {}
    for name in parts:
        for seed, run in zip(seeds, runs, strict=True):
            found = run[name]
            outcome.scores |= {f"{name}/seed{seed}/{k}": v for k, v in found.scores.items()}
            outcome.heads |= {f"{name}/seed{seed}/{k}": v for k, v in found.head.items()}
            outcome.facts["chosen_lr"][f"{name}/seed{seed}"] = found.rate
        outcome.scores |= spread({f"seed{s}": r[name].scores for s, r in zip(seeds, runs)}, name)  # noqa: B905
    return outcome


def spread(runs: dict[str, dict[str, float]], prefix: str) -> dict[str, float]:
    """Mean and sample standard deviation (0 for one run) of every score that the runs share."""
    scores = {}
    for key in next(iter(runs.values())):
        values = [run[key] for run in runs.values()]
        scores[f"{prefix}/mean/{key}"] = statistics.fmean(values)
        scores[f"{prefix}/sd/{key}"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return scores


@dataclass
class Found:
    """What one seed says about one part: percents, the chosen base rate, the head's tensors."""

    scores: dict[str, float]
    rate: float
    head: dict[str, Tensor]


class Heads:
    """H linear heads on one part, trained together: weight (D, H, C), so that all heads are one
    matrix product, and bias (H, C).

    rates: H learning rates. Gradients are written out (soft-max cross-entropy has p - y),
    so heads never mix and one that diverges harms no other.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        rates: Tensor,
        generator: torch.Generator,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        first = torch.randn(width, 1, classes, generator=generator) * 0.01
        # Every rate starts from the same weights: only the rate differs.
        self.weight = first.to(rates.device).repeat(1, len(rates), 1)
        self.bias = torch.zeros(len(rates), classes, device=rates.device)
        self.rates, self.momentum, self.weight_decay = rates, momentum, weight_decay
        self.speed = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]

    def logits(self, features: Tensor) -> Tensor:
        """Features b d → logits b h c."""
        product = features @ self.weight.flatten(1)
        return product.unflatten(1, self.bias.shape) + self.bias

    def step(self, features: Tensor, targets: Tensor, weights: Tensor, scale: float) -> None:
        """One SGD step. targets b c one-hot; weights b h say which head sees which sample;
        scale multiplies the rates (the schedule)."""
        share = weights / weights.sum(0).clamp(min=1)
        error = (self.logits(features).softmax(-1) - targets[:, None]) * share[..., None]
        rates = (self.rates * scale)[:, None]
        # speed ← momentum · speed + gradient in one matrix product, in place.
        self.speed[0].flatten(1).addmm_(features.T, error.flatten(1), beta=self.momentum)
        self.speed[1].mul_(self.momentum).add_(error.sum(0))
        for value, speed in zip((self.weight, self.bias), self.speed, strict=True):
            if self.weight_decay:
                speed.add_(value, alpha=self.weight_decay)
            value.addcmul_(speed, rates, value=-1)

    def accuracy(self, features: Tensor, labels: Tensor, chunk: int = 4096) -> Tensor:
        """Percent right of each head, in doubles: 1 h (top-1), or 2 h (and top-5) with five
        classes or more. A head whose weights are not finite has 0."""
        deep = self.bias.shape[1] >= 5
        counts = torch.zeros(2 if deep else 1, len(self.bias), dtype=torch.float64)
        for x, y in zip(features.split(chunk), labels.split(chunk), strict=True):
            best = self.logits(x).nan_to_num(-1e30).topk(5 if deep else 1).indices
            right = best == y[:, None, None]
            counts[0] += right[..., 0].sum(0).cpu()
            if deep:
                counts[1] += right.any(-1).sum(0).cpu()
        sane = self.weight.isfinite().all(2).all(0).cpu()
        return 100 * counts * sane / len(labels)


def cosine(epoch: int, epochs: int) -> float:
    """Half a cosine by whole epochs: 1 in the first, still above 0 in the last."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def _train(
    train: Table, test: Table, parts: Sequence[str], slicing: str, seed: int, *, epochs: int,
    lrs: list[float], batch: int, holdout: float, momentum: float, decay: float, standardize: bool,
) -> dict[str, Found]:  # fmt: skip
    """All parts and rates of one seed in one pass over the features."""
    generator = torch.Generator().manual_seed(seed)
    device = train.features.device
    count, classes = len(train.labels), train.classes
    held = torch.zeros(count, dtype=torch.bool)
    held[torch.randperm(count, generator=generator)[: max(1, round(holdout * count))]] = True
    batch = min(batch, count)
    rates = torch.tensor([*lrs, *lrs], device=device) * batch / 256
    data = {name: _Part(train, test, name, slicing, standardize) for name in parts}
    heads = {
        name: Heads(d.test.shape[1], classes, rates, torch.Generator().manual_seed(seed),
                    momentum=momentum, weight_decay=decay)
        for name, d in data.items()
    }  # fmt: skip
    best: dict[str, Tensor] = {}
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator)
        for rows, features in _batches(train, order, batch, seed, epoch):
            targets = one_hot(train.labels[rows].long(), classes).float().to(device)
            # The first half of the heads chooses the rate and never sees the held-out part.
            chooses = (~held[rows]).float()[:, None].expand(-1, len(lrs))
            weights = torch.cat([chooses, torch.ones_like(chooses)], dim=1).to(device)
            for name in parts:
                x = data[name].scaled(features[:, data[name].channels])
                heads[name].step(x, targets, weights, cosine(epoch, epochs))
            if train.progress is not None:
                train.progress(len(rows))
        for name in parts:
            now = heads[name].accuracy(data[name].test, test.labels.to(device))
            best[name] = torch.maximum(best.get(name, now), now)
    return {
        name: _choose(heads[name], data[name], train, test, held, lrs, best[name]) for name in parts
    }


class _Part:
    """The channels of one part and, where asked, the scaling of its features."""

    def __init__(self, train: Table, test: Table, name: str, slicing: str, standardize: bool):
        self.channels = part(train, name, slicing, index=True)
        self.mean, self.sd = torch.tensor(0.0), torch.tensor(1.0)
        fixed = train.features[:, self.channels]
        if standardize:
            self.mean, self.sd = fixed.mean(0), fixed.std(0).clamp(min=1e-6)
        self.mean, self.sd = self.mean.to(fixed.device), self.sd.to(fixed.device)
        self.test = self.scaled(test.features[:, self.channels])

    def scaled(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.sd


def _batches(
    train: Table, order: Tensor, batch: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, features) of each batch of an epoch: from the table, or new from its stream."""
    blocks = order.split(batch)
    if train.stream is None:
        yield from ((rows, train.features[rows.to(train.features.device)]) for rows in blocks)
        return
    yield from zip(blocks, train.stream(blocks, seed, epoch), strict=True)


def _choose(
    heads: Heads, data: _Part, train: Table, test: Table, held: Tensor, lrs: list[float], best: Any
) -> Found:
    """The rate whose held-out accuracy is highest (the smallest of equals), and its scores."""
    half = len(lrs)
    device = train.features.device
    kept = data.scaled(train.features[held.to(device)][:, data.channels])
    chosen = int(heads.accuracy(kept, train.labels[held].to(device))[0][:half].argmax())
    row = half + chosen
    if not heads.weight[:, row].isfinite().all():
        raise NumericalError(
            f"the linear head diverges at every learning rate of {lrs}; give smaller lrs"
        )
    last = heads.accuracy(data.test, test.labels.to(device))
    scores = {"top1": float(last[0][row]), "best/top1": float(best[0][row])}
    if len(last) > 1:
        scores |= {"top5": float(last[1][row]), "best/top5": float(best[1][row])}
    # Scaling is folded into the layer, so that the head reads raw features.
    weight = (heads.weight[:, row] / data.sd.reshape(-1, 1)).T
    bias = heads.bias[row] - (weight * data.mean).sum(1)
    return Found(scores, lrs[chosen], {"weight": weight.contiguous(), "bias": bias.clone()})


def _facts(
    train: Table, epochs: int, lrs: list[float], batch: int, momentum: float, decay: float
) -> dict[str, Any]:
    batch = min(batch, len(train.labels))
    return {
        "head": "one linear layer, weight N(0, 0.01), bias 0",
        "optimizer": f"SGD momentum {momentum:g}, weight decay {decay:g}, cosine per epoch to 0",
        "effective_lrs": [lr * batch / 256 for lr in lrs],
        "epochs": epochs,
        "batch_size": batch,
        "cached": train.stream is None,
    }


def _check(epochs: int, lrs: list[float], batch: int, seeds: list[int], holdout: float) -> None:
    if epochs < 1 or batch < 1:
        raise UsageError("probe.epochs and probe.batch_size must be at least 1")
    if not lrs or not seeds:
        raise UsageError("probe.lrs and probe.seeds must list at least one value")
    if not 0 < holdout < 1:
        raise UsageError(f"probe.holdout is {holdout:g}; it is a share between 0 and 1")
