"""Evaluations of frozen networks: what is imported here is the menu of equi-probe, and DIAGNOSES
are those of equi-perturb that need no probe. TRANSFERS are those of equi-transfer."""

from collections.abc import Callable
from typing import Any

from equitools.evals.classification import downstream_linear, finetune
from equitools.evals.classification.knn import evaluate as knn
from equitools.evals.classification.linear import evaluate as linear
from equitools.evals.classification.mlp import evaluate as mlp
from equitools.evals.embedding.embed import evaluate as embed
from equitools.evals.equivariance import layers, score, sensitivity
from equitools.evals.segmentation import label_propagation, saliency

DIAGNOSES = {
    "equivariance": score.evaluate,
    "layers": layers.evaluate,
    "sensitivity": sensitivity.evaluate,
}
TRANSFERS: dict[str, Callable[..., Any]] = {
    "linear": downstream_linear.evaluate,
    "finetune": finetune.evaluate,
    "semi": finetune.evaluate,
    "saliency": saliency.evaluate,
    "video": label_propagation.evaluate,
}

__all__ = ["embed", "knn", "linear", "mlp"]
