"""Backbones: pictures in, Features out; any timm network through one adapter, and small ones.

A function of this namespace that returns a Blueprint is a name in a recipe; so is every name that
timm knows.
"""
# ruff: noqa: F401

from equitools.backbones.build import create, load, menu, resolve
from equitools.backbones.encoder import Encoder, split_width
from equitools.backbones.mini import Blueprint, resnet_mini, vit_mini, vmamba_mini
from equitools.backbones.vmamba import VMamba
