"""What the `views` of a recipe may say, checked, with every default written back.

A mapping is a view group (global, local, or any name) unless its key is an operation's. Groups
called global and local start from DINO's settings (Caron et al., 2021), so that
`views: {global: {}, local: {}}` is the basic augmentation of CLeVER (Song et al., 2024).
"""

from typing import Any, Literal

from equitools.augment.checks import probability
from equitools.augment.normalize import MEAN, STD
from equitools.augment.operation import Operation
from equitools.augment.operations import Menu, in_order
from equitools.augment.views import groups
from equitools.augment.views.groups import Group
from equitools.core.errors import UsageError
from equitools.manifest import schema

WHAT = "setting in recipe.views"
COMMON = ("order", "apply", "mean", "std")


def common_settings(
    *,
    order: list[str] | None = None,
    apply: Literal["device", "worker"] = "device",
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> dict[str, Any]:
    """The keys of `views` that are neither groups nor operations.

    order: the operations, first first; None is the usual one. apply: where all but the crops is
    carried out. mean, std: of the encoder's input, by channel.
    """
    return dict(locals())


def resolve(views: dict[str, Any], operations: Menu) -> dict[str, Any]:
    """The whole of `views`; UsageError for what nothing knows, or what cannot be.

    Groups that are null or have no views are left out, and so is what would say nothing: operations
    that are off, and an order that is the usual one. So an operation that comes to the menu changes
    no recipe that does not name it.
    """
    shared = {name: one for name, one in operations.items() if one.SCOPE == "views"}
    others = {k: v for k, v in views.items() if k not in shared and v is not None}
    given = {k: v for k, v in others.items() if isinstance(v, dict)}
    partial = {k: v for k, v in given.items() if groups.stands_in(v)}
    present = {k: v for k, v in others.items() if k not in given}
    for key in present:  # a typing error may be near a group's or an operation's name as well
        schema.pick(dict.fromkeys([*COMMON, *shared, "global", "local"]), key, WHAT)
    common = schema.knobs(common_settings, present, "recipe.views")
    whole = {k: v for k, v in given.items() if k not in partial}
    filled = {name: groups.resolve(name, whole[name], operations) for name in whole}
    filled = {name: group for name, group in filled.items() if group["count"]}
    filled |= groups.resolve_portions(partial, filled, operations)
    if not filled:
        raise UsageError("recipe.views has no views; add a group, as in views.global.count=2")
    on = [name for name in shared if views.get(name) is not None]
    chosen = {name: resolve_shared(name, views[name], shared[name]) for name in on}
    if (order := common.pop("order")) is not None:
        check_order(order, operations, filled, chosen)
        if order != [name for name in in_order(operations) if name in order]:
            common = {"order": order, **common}
    first = {"global": filled.pop("global")} if "global" in filled else {}
    return {**first, **filled, **chosen, **common}


def groups_of(settings: dict[str, Any], operations: Menu) -> dict[str, Group]:
    """The view groups of resolved settings."""
    return {k: v for k, v in settings.items() if isinstance(v, dict) and k not in operations}


def used(settings: dict[str, Any], operations: Menu) -> list[str]:
    """The operations that resolved settings name, in the order of carrying out; others are off."""
    keys = {*settings}.union(*groups_of(settings, operations).values())
    order = settings.get("order", [])
    rest = [name for name in in_order(operations) if name not in order]
    return [name for name in [*order, *rest] if name in keys]


def resolve_shared(name: str, given: Any, operation: Operation) -> float | dict[str, Any]:
    """An operation for all groups: its main knob as a number, or a mapping of its knobs."""
    where, number = f"recipe.views.{name}", type(given) in (int, float)
    if not number and not isinstance(given, dict):
        raise UsageError(f"{where} is {given!r}; it must be null, a number or a mapping")
    filled = schema.knobs(operation.draw, knobs_of(operation, given), where)
    if "p" in filled:
        probability(filled["p"], f"{where}.p")
    return filled[_main(operation)] if number else filled


def _main(operation: Operation) -> str:
    """The first knob of an operation's draw."""
    return schema.own_knobs(operation.draw)[0]


def knobs_of(operation: Operation, value: float | dict[str, Any]) -> dict[str, Any]:
    """A shared operation's resolved setting as keyword arguments of its draw."""
    return dict(value) if isinstance(value, dict) else {_main(operation): value}


def check_order(
    order: list[str], operations: Menu, filled: dict[str, Group], chosen: dict[str, Any]
) -> None:
    """UsageError when the order is not possible, or leaves out what views ask for."""
    for name in order:
        schema.pick(operations, name, "operation in recipe.views.order")
    if order[:1] != ["crop"] or len(set(order)) < len(order):
        raise UsageError("recipe.views.order begins with crop and names an operation once")
    wanted = list(chosen)
    for name in groups.of_groups(operations):
        wanted += [name for group in filled.values() if groups.is_on(group.get(name, 0))]
    for name in wanted:
        if name not in order:
            raise UsageError(
                f"recipe.views.order leaves out {name}, which the views ask for; add it to the"
                f" order, or set {name} to {'null' if name in chosen else 0}"
            )
