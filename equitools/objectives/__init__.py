"""Base objectives, one file each; a name in this namespace is a name in a recipe."""

# ruff: noqa: F401
from equitools.objectives.barlow import Barlow as barlow
from equitools.objectives.byol import BYOL as byol
from equitools.objectives.debiased import Debiased as debiased
from equitools.objectives.dino import DINO as dino
from equitools.objectives.mocov2 import MoCoV2 as mocov2
from equitools.objectives.mocov3 import MoCoV3 as mocov3
from equitools.objectives.simclr import SimCLR as simclr
from equitools.objectives.simsiam import SimSiam as simsiam
