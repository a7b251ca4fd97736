"""MLP probe on frozen features: what a non-linear reader of the representation can tell.

Three layers of width 1024 (Garrido, Najman & LeCun, 2023, "SIE"; the non-linear evaluation of
"Soft Equivariance Regularization"). Neither says features, epochs or rate: here they are the class
tokens of the last four blocks, 50 epochs, AdamW without decay, cosine per epoch to 0, and
lr · batch / 1024. SIE itself trains with Adam at a constant 0.001 and batches of 256, which is
lrs=0.004 schedule=constant. How the rate is chosen and what is reported stands in `probing`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from equitools.core.errors import UsageError
from equitools.evals.classifiers import protocol
from equitools.evals.classifiers.mlp import Classifiers
from equitools.evals.classifiers.protocol import HeadTraining, constant, cosine
from equitools.features.table import FeatureTable, Outcome


def evaluate(
    train: FeatureTable,
    test: FeatureTable,
    parts: Sequence[str],
    slicing: str,
    *,
    epochs: int = 50,
    lrs: list[float] = [0.0003, 0.001, 0.003],  # noqa: B006
    batch_size: int = 256,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    holdout: float = 0.1,
    hidden: int = 1024,
    weight_decay: float = 0.0,
    schedule: Literal["cosine", "constant"] = "cosine",
    standardize: bool = False,
) -> Outcome:
    """Accuracy of a three-layer MLP on each part of the features, for every seed and as mean ± sd.

    epochs: passes over the training data. lrs: base learning rates per 1024 images; the history
    has the held-out accuracy of each. seeds: of initialization, order and held-out part. holdout:
    share of the training data on which the rate is chosen; a single rate needs no choice. hidden:
    width. schedule: cosine per epoch to 0, or constant. standardize: features to mean 0 and sd 1
    over the training data first.
    """
    if hidden < 1:
        raise UsageError(f"probe.hidden is {hidden}; it is at least 1")
    heads = partial(Classifiers, hidden=hidden, weight_decay=weight_decay)

    factor = {"cosine": cosine, "constant": constant}[schedule]
    plan = HeadTraining(epochs, lrs, batch_size, seeds, holdout, 1024, factor, standardize)
    outcome = protocol.train(train, test, parts, slicing, heads, plan)
    words = "cosine per epoch to 0" if schedule == "cosine" else "constant rate"
    outcome.facts = {
        "head": f"three linear layers with ReLU, hidden {hidden}, torch's initialization",
        "optimizer": f"AdamW, weight decay {weight_decay:g}, {words}",
        **outcome.facts,
    }
    return outcome
