"""Perturbed pictures for evaluation: the operations of training, drawn by image and by pass.

The same image is perturbed alike for every model, in any batch and on any device.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equitools.augment import rng
from equitools.augment.engines import carry_out
from equitools.augment.operations import Menu
from equitools.augment.views.settings import knobs_of
from equitools.core.errors import UsageError
from equitools.manifest import schema


def resolve(settings: dict[str, Any], operations: Menu, where: str) -> dict[str, Any]:
    """Operations with their knobs, every default written back; the order is kept.

    settings: {operation: a mapping of knobs, its main knob as a number, or null (left out)}. The
    probability is 1 unless said. Raises UsageError for an unknown operation or knob.
    """
    filled = {}
    for name, given in settings.items():
        operation = schema.pick(operations, name, f"operation in {where}")
        if name == "crop":
            raise UsageError(f"{where} cannot crop; the pictures are cropped already")
        if given is None:
            continue
        knobs = {} if given is True else knobs_of(operation, given)
        always = {"p": 1.0} if "p" in schema.own_knobs(operation.draw) else {}
        filled[name] = schema.knobs(operation.draw, {**always, **knobs}, f"{where}.{name}")
    return filled


def draw(
    settings: dict[str, Any], operations: Menu, keys: Sequence[str], seed: int, number: int = 0
) -> dict[str, Tensor]:
    """Parameters {operation: b k} float64 of resolved settings, for each key and pass number."""
    rows = np.concatenate([rng.uniforms("perturb", seed, number, key) for key in keys])
    return {
        name: torch.from_numpy(operations[name].draw(rows[:, operations[name].COLUMNS], **knobs))
        for name, knobs in settings.items()
    }


def apply(images: Tensor, parameters: dict[str, Tensor], operations: Menu) -> Tensor:
    """Carry out parameters in their order: b 3 h w uint8 or floats in [0, 1] → floats."""
    chosen = {name: operations[name] for name in parameters}
    return carry_out(images[None], parameters, chosen, mean=(0, 0, 0), std=(1, 1, 1))
