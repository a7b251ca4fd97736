"""What the `views` of a recipe may say, checked, with every default written back.

A mapping is a view group (global, local, or any name) unless its key is an operation's. Groups
called global and local start from DINO's settings (Caron et al., 2021), so that
`views: {global: {}, local: {}}` is the basic augmentation of CLeVER (Song et al., 2024).
"""

from __future__ import annotations

from typing import Any, Literal

from equitools.augment.normalize import MEAN, STD
from equitools.augment.views import groups as views_groups
from equitools.augment.views.groups import probability, resolve_portions, stands_in
from equitools.core.errors import UsageError
from equitools.manifest import schema

WHAT = "setting in recipe.views"
COMMON = ("order", "apply", "mean", "std")
DEFAULT_ORDER = ("crop", "flip", "rotation", "elastic", "jitter", "gray", "blur", "solarize")
# Operations that a group sets by keys of its own; all others stand beside the groups, for all.
OF_GROUPS = ("crop", "flip", "jitter", "gray", "blur", "solarize")


def common_settings(
    *,
    order: list[str] | None = None,
    apply: Literal["device", "worker"] = "device",
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> dict[str, Any]:
    """The keys of `views` that are neither groups nor operations.

    order: the operations, first first. apply: where all but the crops is carried out. mean, std:
    of the encoder's input, by channel.
    """
    return dict(locals())


def resolve(views: dict[str, Any], operations: dict[str, Any]) -> dict[str, Any]:
    """The whole of `views`; UsageError for what nothing knows, or what cannot be.

    operations: {name: module}. Groups that are null or have no views are left out.
    """
    shared = {name: module for name, module in operations.items() if name not in OF_GROUPS}
    common = {k: v for k, v in views.items() if not isinstance(v, dict) and k not in shared}
    given = {k: v for k, v in views.items() if isinstance(v, dict) and k not in shared}
    partial = {k: v for k, v in given.items() if stands_in(v)}
    said = {k: v for k, v in common.items() if v is not None}
    for key in said:  # a typing error may be near a group's or an operation's name as well
        schema.pick(dict.fromkeys([*COMMON, *shared, "global", "local"]), key, WHAT)
    common = schema.knobs(common_settings, said, "recipe.views")
    filled = {
        name: views_groups.resolve(name, group, operations["jitter"])
        for name, group in given.items()
        if name not in partial
    }
    filled = {name: group for name, group in filled.items() if group["count"]}
    filled |= resolve_portions(partial, filled, operations["jitter"])
    if not filled:
        raise UsageError("recipe.views has no views; add a group, as in views.global.count=2")
    chosen = {name: resolve_shared(name, views.get(name), shared[name]) for name in shared}
    common["order"] = resolve_order(common["order"], operations, filled, chosen)
    first = {"global": filled.pop("global")} if "global" in filled else {}
    return {**first, **filled, **chosen, **common}


def resolve_shared(name: str, given: Any, operation: Any) -> Any:
    """An operation for all groups: null, its main knob as a number, or a mapping of its knobs."""
    where = f"recipe.views.{name}"
    if given is None:
        return None
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return schema.knobs(operation.draw, {_main(operation): given}, where)[_main(operation)]
    if not isinstance(given, dict):
        raise UsageError(f"{where} is {given!r}; it must be null, a number or a mapping")
    filled = schema.knobs(operation.draw, given, where)
    if "p" in filled:
        probability(filled["p"], f"{where}.p")
    return filled


def _main(operation: Any) -> str:
    """The first keyword-only knob of an operation's draw."""
    return next(iter(operation.draw.__kwdefaults__))


def knobs_of(operation: Any, value: Any) -> dict[str, Any]:
    """A shared operation's resolved setting as keyword arguments of its draw."""
    return dict(value) if isinstance(value, dict) else {_main(operation): value}


def resolve_order(
    order: list[str] | None, operations: dict, groups: dict, shared: dict
) -> list[str]:
    """The operations in order; UsageError when the order is not possible or leaves one out."""
    if order is None:
        return [*DEFAULT_ORDER, *(name for name in operations if name not in DEFAULT_ORDER)]
    for name in order:
        schema.pick(operations, name, "operation in recipe.views.order")
    if order[:1] != ["crop"] or len(set(order)) < len(order):
        raise UsageError("recipe.views.order begins with crop and names an operation once")
    wanted = [name for name, value in shared.items() if value is not None]
    for name in OF_GROUPS[1:]:
        wanted += [name for group in groups.values() if _is_on(group[name])]
    for name in wanted:
        if name not in order:
            raise UsageError(
                f"recipe.views.order leaves out {name}, which the views ask for; add it to the"
                f" order, or set {name} to {'null' if name in shared else 0}"
            )
    return list(order)


def _is_on(value: Any) -> bool:
    """Can an operation of a group ever act?"""
    if isinstance(value, dict):
        return value["p"] > 0
    return max(value) > 0 if isinstance(value, list) else value > 0
