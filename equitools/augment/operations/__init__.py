"""The menu of operations: what is imported here is a name in a recipe's views.

An operation is a module with `draw` (uniforms → parameters), `apply` (pictures, parameters), and
where it has them `matrix` and `delta`.
"""

from types import ModuleType

from equitools.augment.operations import (
    blur,
    crop,
    elastic,
    flip,
    gray,
    jitter,
    rotation,
    solarize,
)

__all__ = ["blur", "crop", "elastic", "flip", "gray", "jitter", "menu", "rotation", "solarize"]


def menu() -> dict[str, ModuleType]:
    """Every module of this namespace that can draw and apply parameters, by name."""
    return {
        name: thing
        for name, thing in sorted(globals().items())
        if isinstance(thing, ModuleType) and hasattr(thing, "COLUMNS")
    }
