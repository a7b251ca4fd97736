"""Equivariance terms, one file each; a name in this namespace is a name in a recipe."""

# ruff: noqa: F401
from equitools.equivariance.clever import CLeVER as clever
from equitools.equivariance.ddcl import DDCL as ddcl
from equitools.equivariance.ser import SER as ser
