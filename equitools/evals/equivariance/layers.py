"""Which layer still knows how a picture was turned or flipped?

A three-layer classifier reads [mean cell of f(g₁x), mean cell of f(g₂x)] of one layer and tells
g₂ g₁⁻¹: one of four quarter turns, or flipped or not ("Soft Equivariance Regularization", Table 5;
the head of Garrido, Najman & LeCun, 2023, "SIE", Adam at 0.001). Chance is 25 and 50 percent. The
mean over a ViT's patch tokens is read at every layer, never the class token, which early layers of
SER do not have; it loses positions, so what is left to tell is the direction of edges.
Turns are exact: interpolated ones could be told by their corners. Each picture makes one pair, and
pictures of the train split never judge.
"""

from functools import partial

import torch
from torch import Tensor

from equitools.core.errors import DataError, UsageError
from equitools.evals.classifiers import protocol
from equitools.evals.classifiers.mlp import Classifiers
from equitools.evals.classifiers.protocol import HeadTraining, constant
from equitools.evals.equivariance import transformed_pairs
from equitools.features.maps import FrozenMaps
from equitools.features.table import FeatureTable, Outcome

LIMITS = {"val": "test_pairs", "train": "train_pairs"}
MAKERS = {"rotation": transformed_pairs.rotations, "flip": transformed_pairs.flips}
CLASSES = {"rotation": 4, "flip": 2}


def evaluate(
    source: FrozenMaps,
    *,
    tasks: list[str] = ["rotation", "flip"],  # noqa: B006
    train_pairs: int = 100_000,
    test_pairs: int = 10_000,
    epochs: int = 20,
    lr: float = 0.001,
    batch_size: int = 256,
    hidden: int = 1024,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
) -> Outcome:
    """Accuracy in percent of every task and layer, `<task>/layer<n>/…`, for every seed and as mean
    ± sd, with chance and the share of the test pairs' most frequent answer beside it.

    tasks: rotation, flip. train_pairs, test_pairs: pictures of the train and val split at most.
    epochs, lr, batch_size, hidden, seeds: of the classifiers; the rate is constant.
    """
    if unknown := [task for task in tasks if task not in MAKERS] or (not tasks and ["none"]):
        raise UsageError(f"no task '{unknown[0]}'; tasks are rotation, flip")
    if hidden < 1:
        raise UsageError(f"hidden is {hidden}; it is at least 1")
    heads = partial(Classifiers, hidden=hidden)

    train, test = (
        pairs(source, split, tasks, limit)
        for split, limit in (("train", train_pairs), ("val", test_pairs))
    )
    counts = [len(split[tasks[0]][source.layers[0]].labels) for split in (train, test)]
    batch = min(batch_size, counts[0])
    plan = HeadTraining(epochs, [lr], batch, seeds, per=batch, schedule=constant)
    scores: dict[str, float] = {}
    for task in tasks:
        for layer in source.layers:
            tables = train[task][layer], test[task][layer]
            outcome = protocol.train(*tables, ["all"], "official", heads, plan)
            at = f"{task}/layer{layer}"
            scores |= {key.replace("all", at, 1): value for key, value in outcome.scores.items()}
            scores[f"{at}/chance"] = 100 / CLASSES[task]
            scores[f"{at}/majority"] = 100 * float(tables[1].labels.bincount().max()) / counts[1]
    return Outcome(
        scores,
        facts={
            "input": "mean cell of both views, concatenated; patch tokens of a ViT, never the class"
            " token; fp32",
            "head": f"three linear layers with ReLU, hidden {hidden}, torch's initialization",
            "optimizer": f"Adam, constant rate {lr:g}",
            "epochs": epochs,
            "batch_size": batch,
            "seeds": list(seeds),
            "selection": "none: 'top1' is the last epoch, 'best/top1' the best one on the test"
            " pairs",
            "elements": "two for each picture, uniform, independent, seeded by its key; exact",
            "train_pairs": counts[0],
            "test_pairs": counts[1],
        },
    )


def pairs(
    source: FrozenMaps, split: str, tasks: list[str], limit: int
) -> dict[str, dict[int, FeatureTable]]:
    """{task: {layer: a table}} with a row [f(g₁x), f(g₂x)] for each picture of a split."""
    rows: dict[tuple[str, int], list[Tensor]] = {}
    labels: dict[str, list[Tensor]] = {task: [] for task in tasks}
    names: list[str] = []
    for pixels, keys in source.pictures(split, limit, source.batch_size):
        names += keys
        for task in tasks:
            pair = MAKERS[task](pixels, keys, source.seed)
            labels[task].append(pair.element.cpu())
            first, second = source.maps(pair.first), source.maps(pair.second)
            for layer in source.layers:
                both = torch.cat([maps[layer].mean((2, 3)) for maps in (first, second)], dim=1)
                rows.setdefault((task, layer), []).append(both)
    if not names:
        raise DataError(f"the {split} split has no pictures")
    tables: dict[str, dict[int, FeatureTable]] = {task: {} for task in tasks}
    for (task, layer), parts in rows.items():
        features = torch.cat(parts)
        tables[task][layer] = FeatureTable(
            features, torch.cat(labels[task]), names, CLASSES[task], width=features.shape[1]
        )
    return tables
