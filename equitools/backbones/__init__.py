"""Backbones: any timm network through one adapter, and our own small ones for 32-px pictures.

A function of this namespace that returns a Blueprint is a name in a recipe; so is every name that
timm knows.
"""

from equitools.backbones.blueprint import Blueprint
from equitools.backbones.build import create, load, menu, resolve
from equitools.backbones.encoder import Encoder, split_width
from equitools.backbones.resnet_mini import resnet_mini
from equitools.backbones.vit_mini import vit_mini
from equitools.backbones.vmamba import VMamba
from equitools.backbones.vmamba_mini import vmamba_mini

__all__ = [
    "Blueprint", "Encoder", "VMamba", "create", "load", "menu", "resnet_mini", "resolve",
    "split_width", "vit_mini", "vmamba_mini",
]  # fmt: skip
