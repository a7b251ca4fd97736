"""Evaluations of frozen networks: what is imported here is the menu of equi-probe, and DIAGNOSES
are those of equi-perturb that look at maps and need no probe."""

from equitools.evals import equivariance, layers
from equitools.evals.embed import evaluate as embed
from equitools.evals.knn import evaluate as knn
from equitools.evals.linear import evaluate as linear
from equitools.evals.mlp import evaluate as mlp

DIAGNOSES = {"equivariance": equivariance.evaluate, "layers": layers.evaluate}

__all__ = ["embed", "knn", "linear", "mlp"]
