"""The menu of operations: what is imported here is a name in a recipe's views."""

# ruff: noqa: F401
from types import ModuleType
from typing import cast

from equitools.augment.operation import Operation
from equitools.augment.operations import blur, crop, elastic, flip, gray, jitter, rotation, solarize

Menu = dict[str, Operation]


def menu() -> Menu:
    """Every module of this namespace that can draw and apply parameters, by name."""
    modules = {name: one for name, one in sorted(globals().items()) if isinstance(one, ModuleType)}
    return {name: cast(Operation, one) for name, one in modules.items() if hasattr(one, "COLUMNS")}


def in_order(menu: Menu) -> list[str]:
    """The names of operations as they are carried out where a recipe says no order."""
    return sorted(menu, key=lambda name: (menu[name].PLACE, name))
