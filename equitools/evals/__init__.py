"""Evaluations of frozen features; what is imported here is the menu of equi-probe."""

from equitools.evals.embed import evaluate as embed
from equitools.evals.knn import evaluate as knn
from equitools.evals.linear import evaluate as linear

__all__ = ["embed", "knn", "linear"]
