"""The protocol of every head that is trained on frozen features, whatever the head is.

All learning rates share every batch, as in DINOv2 (Oquab et al., 2023), but the rate is chosen on a
part of the training data that the choosing heads have not seen; the numbers reported are those of
heads trained beside them on all of it. So the test data decide nothing. `top1` is the head after
the last epoch, `best/top1` its best epoch on the test data, as much of the literature prints it.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from equitools.core.errors import NumericalError, UsageError
from equitools.features.table import FeatureTable, Outcome, part


def cosine(epoch: int, epochs: int) -> float:
    """Half a cosine by whole epochs: 1 in the first, still above 0 in the last."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def constant(epoch: int, epochs: int) -> float:
    """No schedule."""
    return 1.0


@dataclass(frozen=True)
class HeadTraining:
    """How heads are trained.

    lrs: base learning rates for `per` samples; a batch of b has lr · b / per. seeds: of
    initialization, order and held-out part. holdout: the share of the training data on which the
    rate is chosen, where there are several. schedule: factor of the rates in (epoch, epochs).
    standardize: features to mean 0 and sd 1 over the training data. UsageError for what cannot be.
    """

    epochs: int
    lrs: Sequence[float]
    batch_size: int
    seeds: Sequence[int]
    holdout: float = 0.1
    per: int = 256
    schedule: Callable[[int, int], float] = cosine
    standardize: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise UsageError("probe.epochs and probe.batch_size must be at least 1")
        if not self.lrs or not self.seeds:
            raise UsageError("probe.lrs and probe.seeds must list at least one value")
        if not 0 < self.holdout < 1:
            raise UsageError(f"probe.holdout is {self.holdout:g}; it is a share between 0 and 1")


class Heads(Protocol):
    """H heads on the same vectors, each with its own learning rate; none sees another."""

    def step(self, features: Tensor, targets: Tensor, weights: Tensor, scale: float) -> None:
        """One step on b d vectors, b c one-hot; weights b h: which head sees which sample."""

    def accuracy(self, features: Tensor, labels: Tensor, first: int = 0) -> Tensor:
        """Percent right of the heads from `first` on: 1 h (top-1), or 2 h (top-5 too)."""

    def finite(self, row: int) -> bool:
        """Has this head not diverged?"""

    def tensors(self, row: int, mean: Tensor, sd: Tensor) -> dict[str, Tensor]:
        """This head, made to read features that are not standardized by mean and sd."""


Make = Callable[[int, int, Tensor, int], Heads]  # width, classes, H rates, seed


def train(
    train: FeatureTable,
    test: FeatureTable,
    parts: Sequence[str],
    slicing: str,
    make: Make,
    plan: HeadTraining,
) -> Outcome:
    """Accuracy of each part for every seed and as mean ± sd, the heads, and how it was done."""
    runs = [_train(train, test, parts, slicing, make, plan, seed) for seed in plan.seeds]
    outcome = Outcome({}, facts=_facts(train, plan))
    for name in parts:
        for seed, run in zip(plan.seeds, runs, strict=True):
            chosen, at = run[name], f"{name}/seed{seed}"
            outcome.heads |= {f"{at}/{key}": value for key, value in chosen.head.items()}
            outcome.facts["chosen_lr"][at] = chosen.rate
            outcome.facts["held_out"] |= {at: chosen.held_out} if chosen.held_out else {}
        by_seed = {f"seed{s}": r[name].scores for s, r in zip(plan.seeds, runs, strict=True)}
        outcome.scores |= spread(by_seed, name)
    return outcome


def spread(runs: dict[str, dict[str, float]], prefix: str) -> dict[str, float]:
    """The scores of every run by its name, and their mean and sample standard deviation (0 for one
    run)."""
    scores = {
        f"{prefix}/{run}/{key}": v for run, by_key in runs.items() for key, v in by_key.items()
    }
    for key in next(iter(runs.values())):
        values = [run[key] for run in runs.values()]
        scores[f"{prefix}/mean/{key}"] = statistics.fmean(values)
        scores[f"{prefix}/sd/{key}"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return scores


def right(best: Tensor, labels: Tensor) -> Tensor:
    """How many labels b are first, or among the five, of ranked classes b h k: 1 h or 2 h."""
    hit = best == labels[:, None, None]
    five = [hit.any(-1).sum(0)] if best.shape[-1] >= 5 else []
    return torch.stack([hit[..., 0].sum(0), *five]).double().cpu()


def percents(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Percent right of logits n c: top1, top5 with five classes or more, and macro, the mean over
    the classes that have samples of their own top-1."""
    labels = labels.to(logits.device).long()
    ranked = logits.topk(5 if logits.shape[1] >= 5 else 1).indices == labels[:, None]
    first = ranked[:, 0].double()
    by_class = torch.stack([first[labels == label].mean() for label in labels.unique()])
    scores = {"top1": float(first.mean()), "macro": float(by_class.mean())}
    if logits.shape[1] >= 5:
        scores["top5"] = float(ranked.any(1).double().mean())
    return {key: 100 * value for key, value in scores.items()}


@dataclass
class _Chosen:
    """What one seed says about one part: percents, the chosen base rate, the head's tensors, and
    the held-out top-1 of every rate."""

    scores: dict[str, float]
    rate: float
    head: dict[str, Tensor]
    held_out: list[float]


def _train(
    train: FeatureTable,
    test: FeatureTable,
    parts: Sequence[str],
    slicing: str,
    make: Make,
    plan: HeadTraining,
    seed: int,
) -> dict[str, _Chosen]:
    """All parts and rates of one seed in one pass over the features."""
    generator = torch.Generator().manual_seed(seed)
    device = train.features.device
    count, classes = len(train.labels), train.classes
    held = torch.zeros(count, dtype=torch.bool)
    held[torch.randperm(count, generator=generator)[: max(1, round(plan.holdout * count))]] = True
    batch = min(plan.batch_size, count)
    # The first heads choose the rate and never see the held-out part; one rate needs no choice.
    choosing = len(plan.lrs) if len(plan.lrs) > 1 else 0
    rates = torch.tensor([*plan.lrs[:choosing], *plan.lrs], device=device) * batch / plan.per
    data = {name: _Part(train, test, name, slicing, plan.standardize) for name in parts}
    heads = {name: make(d.test.shape[1], classes, rates, seed) for name, d in data.items()}
    best: dict[str, Tensor] = {}
    for epoch in range(plan.epochs):
        order = torch.randperm(count, generator=generator)
        for rows, features in _batches(train, order, batch, seed, epoch):
            targets = one_hot(train.labels[rows].long(), classes).float().to(device)
            weights = torch.ones(len(rows), len(rates))
            weights[:, :choosing] = (~held[rows]).float()[:, None]
            for name in parts:
                x = data[name].scaled(features[:, data[name].channels])
                heads[name].step(x, targets, weights.to(device), plan.schedule(epoch, plan.epochs))
            if train.progress is not None:
                train.progress(len(rows))
        for name in parts:
            now = heads[name].accuracy(data[name].test, data[name].labels, choosing)
            best[name] = torch.maximum(best.get(name, now), now)
    return {name: _choose(heads[name], data[name], held, plan, best[name]) for name in parts}


class _Part:
    """The channels of one part, its test features and labels, and the scaling of its features."""

    def __init__(
        self, train: FeatureTable, test: FeatureTable, name: str, slicing: str, standardize: bool
    ):
        self.train, self.labels = train, test.labels.to(train.features.device)
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
    train: FeatureTable, order: Tensor, batch: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, features) of each batch of an epoch: from the table, or new from its stream."""
    blocks = order.split(batch)
    if train.stream is None:
        yield from ((rows, train.features[rows.to(train.features.device)]) for rows in blocks)
        return
    yield from zip(blocks, train.stream(blocks, seed, epoch), strict=True)


def _choose(heads: Heads, data: _Part, held: Tensor, plan: HeadTraining, best: Tensor) -> _Chosen:
    """The rate whose held-out accuracy is highest (the smallest of equals), and its scores."""
    device, train = data.test.device, data.train
    rates, chosen, held_out = len(plan.lrs), 0, []
    if rates > 1:
        unseen = data.scaled(train.features[held.to(device)][:, data.channels])
        accuracy = heads.accuracy(unseen, train.labels[held].to(device))[0][:rates]
        chosen, held_out = int(accuracy.argmax()), accuracy.tolist()
    row = chosen + (rates if rates > 1 else 0)
    if not heads.finite(row):
        raise NumericalError(
            f"the head diverges at every learning rate of {list(plan.lrs)}; give smaller lrs"
        )
    last = heads.accuracy(data.test, data.labels, row)
    scores = {"top1": float(last[0][0]), "best/top1": float(best[0][chosen])}
    if len(last) > 1:
        scores |= {"top5": float(last[1][0]), "best/top5": float(best[1][chosen])}
    # Scaling is folded into the first layer, so that the head reads raw features.
    return _Chosen(scores, plan.lrs[chosen], heads.tensors(row, data.mean, data.sd), held_out)


def _facts(train: FeatureTable, plan: HeadTraining) -> dict[str, Any]:
    batch = min(plan.batch_size, len(train.labels))
    several = f"lr by top-1 on {plan.holdout:g} of train, seeded" if len(plan.lrs) > 1 else "one lr"
    return {
        "effective_lrs": [lr * batch / plan.per for lr in plan.lrs],
        "epochs": plan.epochs,
        "batch_size": batch,
        "cached": train.stream is None,
        "selection": f"{several}; 'top1' is the last epoch of a head trained on all of train;"
        " 'best/top1' is its best epoch on the test split",
        "seeds": list(plan.seeds),
        "chosen_lr": {},
        "held_out": {},
    }
