"""Linear probe on frozen features: many learning rates in one pass, the choice made on train data.

One linear layer, weights N(0, 0.01), bias 0, SGD with momentum, cosine per epoch to 0, no warm-up,
lr · batch / 256 (Caron et al., 2021, "DINO"; Song et al., 2025, "CLeVER"). How the rate is chosen
and what is reported stands in `probing`.
"""

from collections.abc import Sequence
from functools import partial

from equitools.evals.classifiers import protocol
from equitools.evals.classifiers.linear import HeadBank
from equitools.evals.classifiers.protocol import HeadTraining
from equitools.features.table import FeatureTable, Outcome

RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]


def evaluate(
    train: FeatureTable,
    test: FeatureTable,
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
    heads = partial(HeadBank, momentum=momentum, weight_decay=weight_decay)

    plan = HeadTraining(epochs, lrs, batch_size, seeds, holdout=holdout, standardize=standardize)
    outcome = protocol.train(train, test, parts, slicing, heads, plan)
    outcome.facts = {
        "head": "one linear layer, weight N(0, 0.01), bias 0",
        "optimizer": f"SGD momentum {momentum:g}, weight decay {weight_decay:g},"
        " cosine per epoch to 0",
        **outcome.facts,
    }
    return outcome
