"""Weighted nearest neighbors on frozen features: no training, hence no training noise.

For a test vector x and its k nearest training vectors x_i (all L2-normalized), class c gets

    score_c = Σ_{i : y_i = c} exp(x · x_i / T)

(Wu et al., 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination";
Caron et al., 2021, "DINO"). T = 0.07 and k = 20 are the values usually printed.

The search is exact. Similarities are made block by block of the bank; a block's entry can only be
a neighbor if it is above the floor, the k-th largest seen before, and few are: about k ln(n/k) of n
in random order. Maxima over groups find them, so that nearly every entry is read once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from equitools.core.errors import DataError, NumericalError, UsageError

# Queries and bank vectors of a block: what a core's cache holds, and what fills a GPU.
BLOCKS = {"cpu": (512, 2048), "cuda": (2048, 8192)}
GROUP = 16  # similarities of which only the largest is compared with the floor
LOW = torch.iinfo(torch.int64).min


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float | Sequence[float] = 0.07,
) -> dict[str, float]:
    """Accuracy in percent, keyed `k20/top1`, and `k20/top5` with five classes or more.

    train_features n d, test_features m d: any scale, else finite (NumericalError); labels n and m,
    integers from 0. With several temperatures the keys are `k20/T0.07/top1`. A k above n is capped
    at n and named by what it became. Top-5 counts the label among the min(5, number of classes
    voted for) best; classes without a vote score 0 and never count, whatever the order of ties.
    """
    temperatures = [temperature] if isinstance(temperature, float | int) else list(temperature)
    if wrong := [t for t in temperatures if t <= 0]:
        raise UsageError(f"probe.temperature is {wrong[0]}; it must be above 0")
    ks = capped(ks, len(train_features))
    if not len(test_features):
        raise DataError("nearest neighbors need at least one test sample")
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    bank = _unit(train_features, "training")
    near, index = neighbors(_unit(test_features.to(bank.device), "test"), bank, max(ks))
    voters = train_labels.to(bank.device)[index]
    hits: dict[str, float] = {}
    for k in ks:
        for t in temperatures:
            key = f"k{k}" if len(temperatures) == 1 else f"k{k}/T{t:g}"
            for name, count in votes(near[:, :k], voters[:, :k], test_labels, classes, t).items():
                hits[f"{key}/{name}"] = count
    return {key: 100.0 * count / len(test_features) for key, count in hits.items()}


def neighbors(
    queries: Tensor, bank: Tensor, k: int, *, rows: int | None = None, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k largest dot products m k of queries m d with a bank n d (finite, fp32, k at most n),
    largest first, and the bank's indices m k; of equal ones the lower index is nearer.

    rows and block: queries and bank vectors at a time. Beside its result it holds one block of
    similarities and, in any order of a bank without many equal vectors, little more.
    """
    usual = BLOCKS["cuda" if bank.is_cuda else "cpu"]
    block = max(block or usual[1], k)
    rows = max(1, min(rows or usual[0], usual[0] * usual[1] * 8 // block))
    nearest = [_search(part, bank, k, block) for part in queries.split(rows)]
    return torch.cat([near for near, _ in nearest]), torch.cat([index for _, index in nearest])


def votes(
    near: Tensor, voters: Tensor, labels: Tensor, classes: int, t: float, chunk: int = 4096
) -> dict[str, float]:
    """How many of the labels m win the vote of the neighbors' classes m k by similarities m k."""
    hits: dict[str, float] = {}
    pieces = zip(near.split(chunk), voters.split(chunk), labels.split(chunk), strict=True)
    for similarity, voter, label in pieces:
        # Relative to the nearest: the same ranks, no overflow, and never all zero.
        weights = ((similarity - similarity[:, :1]) / t).exp()
        score = weights.new_zeros(len(weights), classes).scatter_add_(1, voter, weights)
        for name, count in _hits(score, label).items():
            hits[name] = hits.get(name, 0.0) + count
    return hits


def _unit(features: Tensor, what: str) -> Tensor:
    """Features n d as fp32 of length 1; NumericalError where they are not finite."""
    unit = normalize(features.float(), dim=1)
    if not unit.isfinite().all():
        wrong = int((~unit.isfinite()).any(1).sum())
        raise NumericalError(
            f"{wrong} of {len(unit)} {what} features are not finite; the encoder has diverged"
        )
    return unit


def _search(queries: Tensor, bank: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    """`neighbors` of as many queries as one block takes."""
    rows, samples = len(queries), len(bank)
    space = queries.new_empty(rows * min(block, samples))
    best = torch.empty(rows, 0, dtype=torch.int64, device=bank.device)
    waiting: list[tuple[Tensor, Tensor]] = []
    for start in range(0, samples, block):
        vectors = bank[start : start + block]
        similarity = space[: rows * len(vectors)].view(rows, len(vectors))
        torch.mm(queries, vectors.T, out=similarity)
        if start == 0:
            floor = similarity.topk(k).values[:, -1:]
            floor = floor.nextafter(floor.new_tensor(-torch.inf))  # itself is above it
        waiting.append(_above(similarity, floor, start))
        last = start + len(vectors) == samples
        # Merging costs about as much as waiting with a lower floor for 2k more of each query.
        if last or sum(len(row) for row, _ in waiting) > 2 * rows * max(k, GROUP):
            best, waiting = _merge(best, waiting, k), []
            floor = _values(best.amin(1, keepdim=True))
    best = best.sort(dim=1, descending=True).values
    return _values(best), _index(best)


def _above(similarity: Tensor, floor: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Row and key of every entry of a block r b above the floor r 1 of its row; bank index `start`
    is column 0. A group is GROUP columns, b / GROUP apart: that is how maxima are fast."""
    rows, width = similarity.shape
    members = GROUP if width % GROUP == 0 else 1
    groups = similarity.view(rows, members, width // members)
    row, group = (groups.amax(1) > floor).nonzero().unbind(1)
    values = groups[row, :, group]
    hit, member = (values > floor[row]).nonzero().unbind(1)
    index = start + member * (width // members) + group[hit]
    return row[hit], _keys(values[hit, member], index)


def _merge(best: Tensor, waiting: list[tuple[Tensor, Tensor]], k: int) -> Tensor:
    """The k largest keys of each row of best r c and of (row, key) lists, in no order."""
    row, keys = (torch.cat(lists) for lists in zip(*waiting, strict=True))
    row, order = row.sort(stable=True)
    count = torch.bincount(row, minlength=len(best))
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    table = best.new_full((len(best), int(count.max())), LOW)
    table[row, place] = keys[order]
    return torch.cat((best, table), dim=1).topk(k, sorted=False).values


def _keys(values: Tensor, index: Tensor) -> Tensor:
    """fp32 values and indices below 2³² as integers in the order of (value, lower index)."""
    bits = _ordered((values + 0.0).view(torch.int32))  # + 0.0: there is one zero
    return (bits.long() << 32) | (0xFFFFFFFF - index)


def _values(keys: Tensor) -> Tensor:
    return _ordered((keys >> 32).int()).view(torch.float32)


def _index(keys: Tensor) -> Tensor:
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def _ordered(bits: Tensor) -> Tensor:
    """Floats' bits to integers of the same order, and back: negative floats count downward."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def capped(ks: Sequence[int], samples: int) -> list[int]:
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
    correct = (order == labels[:, None].to(order)) & (best > 0)
    hits = {"top1": float(correct[:, 0].sum())}
    if score.shape[1] >= 5:
        hits["top5"] = float(correct.any(1).sum())
    return hits
