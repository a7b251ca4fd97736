"""What an encoder costs, counted as the papers' tables count it.

Parameters of the backbone alone; multiply-adds of one 224×224 picture by fvcore, counted once,
with the network in training mode and without any head (Song et al., 2024, Table 2).
"""

import copy
import logging
import warnings
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from equitools import backbones, manifest
from equitools.core.errors import EquiError
from equitools.report.describe import Document
from equitools.training.learner import build
from equitools.training.recipe import resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """parameters: numbers in the network; flops: multiply-adds of one picture, fvcore's way."""

    parameters: int
    flops: float

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.1f}M/{self.flops / 1e9:.2f}G"


@cache
def of_layer(layer: str) -> Cost | None:
    """The cost of a backbone layer's network; None, and why is said, when it cannot be counted."""
    settings = manifest.layer(layer, ("backbone",))["recipe"]["backbone"]
    try:
        return measure(backbones.create(settings))
    except EquiError as error:
        log.info("%s is not counted: %s", layer, error)
        return None


def trained(recipe: Document) -> int:
    """How many numbers a recipe trains, heads too."""
    with torch.device("meta"):
        learner = build(resolve(recipe))
    return sum(p.numel() for p in learner.parameters() if p.requires_grad)


def measure(encoder: nn.Module, size: int = 224) -> Cost:
    """The cost of an Encoder (its trunk) or of any network, for one size×size picture.

    The network itself is left as it was. Raises EquiError when fvcore is not installed.
    """
    return Cost(parameters(encoder), flops(encoder, size))


def parameters(module: nn.Module) -> int:
    """How many numbers are trained or kept as parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def flops(encoder: nn.Module, size: int = 224) -> float:
    """Multiply-adds of one picture; operations that fvcore does not know count nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses what torch calls deprecated
            from fvcore.nn import FlopCountAnalysis
    except ImportError:
        raise EquiError(
            "counting operations needs fvcore: pip install 'equitools[count]'"
        ) from None
    # A copy, as training mode moves batch-norm statistics. Training mode, as the papers' counts
    # are of it: fvcore counts batch norm differently there.
    trunk = copy.deepcopy(getattr(encoder, "trunk", encoder)).cpu().train()
    for module in trunk.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # attention must show its two products
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    # Two pictures: batch norm in training mode refuses a single value for each channel.
    counter = FlopCountAnalysis(trunk, torch.zeros(2, 3, size, size))
    counter = counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(counter.total()) / 2
