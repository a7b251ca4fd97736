"""Weighted nearest neighbors on frozen features: no training, hence no training noise.

For a test vector x and its k nearest training vectors x_i (all L2-normalized), class c gets

    score_c = Σ_{i : y_i = c} exp(x · x_i / T)

(Wu et al., 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination";
Caron et al., 2021, "DINO"). T = 0.07 and k = 20 are the values usually printed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from equitools.errors import DataError, UsageError
from equitools.features import Outcome, Table, part


def evaluate(
    train: Table,
    test: Table,
    parts: Sequence[str],
    slicing: str,
    *,
    k: list[int] = [10, 20, 100, 200],  # noqa: B006
    temperature: list[float] = [0.07],  # noqa: B006
) -> Outcome:
    """Weighted k-nearest-neighbor accuracy of each part of the features, for every k and T.

    k: numbers of neighbors, capped at the number of training samples. temperature: of the votes.
    """
    scores: dict[str, float] = {}
    for name in parts:
        vectors = [part(table, name, slicing) for table in (train, test)]
        found = knn(vectors[0], train.labels, vectors[1], test.labels, ks=k,
                    temperature=temperature)  # fmt: skip
        scores |= {f"{name}/{key}": value for key, value in found.items()}
    facts = {
        "head": "none; L2-normalized features, votes exp(s/T) of the k nearest, fp32",
        "k": _capped(k, len(train.labels)),
        "temperature": list(temperature),
        "selection": "none",
    }
    return Outcome(scores, facts=facts)


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float | Sequence[float] = 0.07,
    chunk: int = 1024,
) -> dict[str, float]:
    """Accuracy in percent, keyed `k20/top1`, and `k20/top5` with five classes or more.

    train_features n d, test_features m d: any scale; labels n and m, integers from 0.
    With several temperatures the keys are `k20/T0.07/top1`. A k above n is capped at n and named
    by what it became. Top-5 counts the label among the min(5, number of classes voted for) best;
    classes without a vote score 0 and never count, whatever the order of ties.
    """
    temperatures = [temperature] if isinstance(temperature, float | int) else list(temperature)
    ks = _capped(ks, len(train_features))
    if not len(test_features):
        raise DataError("nearest neighbors need at least one test sample")
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    bank = normalize(train_features.float(), dim=1)
    votes = one_hot(train_labels.long(), classes).float().to(bank.device)
    queries = test_features.to(bank.device)
    hits: dict[str, float] = {}
    for start in range(0, len(test_features), chunk):
        rows = slice(start, start + chunk)
        near, index = (normalize(queries[rows].float(), dim=1) @ bank.T).topk(max(ks))
        for k in ks:
            for t in temperatures:
                if t <= 0:
                    raise UsageError(f"probe.temperature is {t}; it must be above 0")
                # Relative to the nearest: the same ranks, no overflow, and never all zero.
                weights = ((near[:, :k] - near[:, :1]) / t).exp()
                score = torch.einsum("bk,bkc->bc", weights, votes[index[:, :k]])
                key = f"k{k}" if len(temperatures) == 1 else f"k{k}/T{t:g}"
                for name, count in _hits(score, test_labels[rows]).items():
                    hits[f"{key}/{name}"] = hits.get(f"{key}/{name}", 0.0) + count
    return {key: 100.0 * count / len(test_features) for key, count in hits.items()}


def _capped(ks: Sequence[int], samples: int) -> list[int]:
    """Distinct numbers of neighbors, none above the number of training samples."""
    if not samples:
        raise DataError("nearest neighbors need at least one training sample")
    wrong = [k for k in ks if not isinstance(k, int) or k < 1]
    if wrong or not ks:
        raise UsageError(f"probe.k is {list(ks)}; it lists whole numbers of at least 1")
    return list(dict.fromkeys(min(k, samples) for k in ks))


def _hits(score: Tensor, labels: Tensor) -> dict[str, float]:
    """How many labels b are the best class of score b c, and how many are among the best five."""
    best, order = score.topk(min(5, score.shape[1]))
    found = (order == labels[:, None].to(order)) & (best > 0)
    hits = {"top1": float(found[:, 0].sum())}
    if score.shape[1] >= 5:
        hits["top5"] = float(found.any(1).sum())
    return hits
