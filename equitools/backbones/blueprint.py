"""A blueprint: which timm architecture, built with which arguments, for which picture size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Blueprint:
    """What a backbone of our own is made of; plain timm builds the same network from it.

    architecture  a name that `timm.create_model` knows
    args          what it is built with; plain JSON values
    image_size    the side of the pictures that it is meant for, in pixels; None is timm's own
    """

    architecture: str
    args: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
