"""Base objectives, one file each; a name in this namespace is a name in a recipe."""

# ruff: noqa: F401
from equitools.objectives.dino import DINO as dino
from equitools.objectives.simsiam import SimSiam as simsiam
