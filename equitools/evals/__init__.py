"""Evaluations of frozen networks: what is imported here is the menu of equi-probe, and DIAGNOSES
are those of equi-perturb that need no probe. TRANSFERS are those of equi-transfer."""

from collections.abc import Callable
from typing import Any

from equitools.evals import (
    equivariance,
    finetune,
    frozen,
    layers,
    propagation,
    saliency,
    sensitivity,
)
from equitools.evals.embed import evaluate as embed
from equitools.evals.knn import evaluate as knn
from equitools.evals.linear import evaluate as linear
from equitools.evals.mlp import evaluate as mlp

DIAGNOSES = {
    "equivariance": equivariance.evaluate,
    "layers": layers.evaluate,
    "sensitivity": sensitivity.evaluate,
}
TRANSFERS: dict[str, Callable[..., Any]] = {
    "linear": frozen.evaluate,
    "finetune": finetune.evaluate,
    "semi": finetune.evaluate,
    "saliency": saliency.evaluate,
    "video": propagation.evaluate,
}

__all__ = ["embed", "knn", "linear", "mlp"]
