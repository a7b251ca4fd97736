"""What the `views` of a recipe may say, checked, with every default written back.

A mapping is a view group (global, local, or any name) unless its key is an operation's. Groups
called global and local start from DINO's settings (Caron et al., 2021), so that
`views: {global: {}, local: {}}` is the basic augmentation of CLeVER (Song et al., 2024).
"""

from __future__ import annotations

from typing import Any, Literal

from equitools import names
from equitools.augment.levels import MEAN, STD
from equitools.errors import UsageError

LOCAL = {"count": 8, "size": 96, "crop": [0.05, 0.4], "blur": 0.5, "solarize": 0.0}
GLOBAL = {"count": 2, "size": 224, "crop": [0.4, 1.0], "blur": [1.0, 0.1], "solarize": [0.0, 0.2]}
WHAT = "setting in recipe.views"
COMMON = ("order", "apply", "mean", "std")
PORTION = ("portion", "patch", "area", "aspect", "complement", "whole")
DEFAULT_ORDER = ("crop", "flip", "rotation", "elastic", "jitter", "gray", "blur", "solarize")
# Operations that a group sets by keys of its own; all others stand beside the groups, for all.
OF_GROUPS = ("crop", "flip", "jitter", "gray", "blur", "solarize")


def group_settings(
    *,
    count: int = 1,
    size: int = 224,
    crop: tuple[float, float] = (0.4, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    jitter: dict | None = None,
    gray: float = 0.2,
    blur: float | list[float] = 0.5,
    sigma: tuple[float, float] = (0.1, 2.0),
    solarize: float | list[float] = 0.0,
) -> dict[str, Any]:
    """The keys of a view group.

    count views of size × size pixels. crop: share of the image's area; ratio: width over height of
    the window. flip, gray, blur, solarize: probabilities; blur and solarize may be lists with one
    value for each view. jitter: p and strengths. sigma: of the blur, in pixels of the view.
    """
    return dict(locals())


def portion_settings(
    *,
    portion: float,
    patch: int = 16,
    area: tuple[float, float] = (0.7, 1.3),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    complement: bool = False,
    whole: bool = False,
) -> dict[str, Any]:
    """The keys that make a group stand in for the global views of a part of the batch.

    portion: that part, in (0, 1]. The group starts from the global group's settings; its views
    share one crop (the full picture with `whole`), turned and resized as grid.py says to a
    multiple of `patch` pixels: a ViT's patch, or the stride of a CNN's stage. area: cells of the
    grid as a share of (size / patch)²; aspect: its width over its height. complement: every second
    view is half turned and flipped exactly where the one before it is not.
    """
    return dict(locals())


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
    groups = {k: v for k, v in views.items() if isinstance(v, dict) and k not in shared}
    partial = {k: v for k, v in groups.items() if v.get("portion") is not None}
    said = {k: v for k, v in common.items() if v is not None}
    for key in said:  # a typing error may be near a group's or an operation's name as well
        names.pick(dict.fromkeys([*COMMON, *shared, "global", "local"]), key, WHAT)
    common = names.knobs(common_settings, said, "recipe.views")
    filled = {
        name: resolve_group(name, given, operations["jitter"])
        for name, given in groups.items()
        if name not in partial
    }
    filled = {name: group for name, group in filled.items() if group["count"]}
    filled |= resolve_portions(partial, filled.get("global"), operations["jitter"])
    if not filled:
        raise UsageError("recipe.views has no views; add a group, as in views.global.count=2")
    chosen = {name: resolve_shared(name, views.get(name), shared[name]) for name in shared}
    common["order"] = resolve_order(common["order"], operations, filled, chosen)
    first = {"global": filled.pop("global")} if "global" in filled else {}
    return {**first, **filled, **chosen, **common}


def resolve_group(name: str, given: dict[str, Any], jitter: Any) -> dict[str, Any]:
    """One group, checked, with the defaults of its name."""
    where = f"recipe.views.{name}"
    known = {"global": GLOBAL, "local": LOCAL}.get(name, {})
    group = names.knobs(group_settings, {**known, **given}, where)
    group["jitter"] = names.knobs(jitter.draw, group["jitter"] or {}, f"{where}.jitter")
    for key in ("blur", "solarize"):
        group[key] = _for_each(group[key], group["count"], key in given, f"{where}.{key}")
    _check_group(group, where)
    return group


def resolve_portions(
    given: dict[str, dict[str, Any]], whole: dict[str, Any] | None, jitter: Any
) -> dict[str, dict[str, Any]]:
    """The group with `portion`, checked, with what it takes over from the global group."""
    if len(given) > 1:
        raise UsageError(
            f"recipe.views has several groups with portion ({', '.join(given)}); one can stand in"
            " for the global views: set the others to null"
        )
    return {name: resolve_portion(name, group, whole, jitter) for name, group in given.items()}


def resolve_portion(
    name: str, given: dict[str, Any], whole: dict[str, Any] | None, jitter: Any
) -> dict[str, Any]:
    """One group with `portion`; whole: the global group, resolved."""
    where = f"recipe.views.{name}"
    if whole is None or name == "global":
        raise UsageError(f"{where}.portion replaces global views; add a group views.global")
    for key in given:
        names.pick({**whole, **dict.fromkeys(PORTION)}, key, f"setting in {where}")
    own = names.knobs(portion_settings, {k: v for k, v in given.items() if k in PORTION}, where)
    rest = {key: value for key, value in given.items() if key not in PORTION}
    if rest.get("count", whole["count"]) != whole["count"]:
        raise UsageError(
            f"{where}.count is {rest['count']} but its views replace {whole['count']} global"
            " views, one for one; leave count out"
        )
    group = resolve_group(name, {**whole, **rest}, jitter) | own
    _check_portion(group, where)
    return group


def _check_portion(group: dict[str, Any], where: str) -> None:
    if not 0 < group["portion"] <= 1:
        raise UsageError(
            f"{where}.portion is {group['portion']:g}; it is a share of the batch, in (0, 1]"
        )
    if not 1 <= group["patch"] <= group["size"]:
        raise UsageError(
            f"{where}.patch is {group['patch']} pixels; it must be from 1 to size={group['size']}"
        )
    for key in ("area", "aspect"):
        low, high = group[key]
        if not 0 < low <= high:
            raise UsageError(f"{where}.{key} is [{low:g}, {high:g}]; it must be 0 < low ≤ high")


def _for_each(value: Any, count: int, given: bool, where: str) -> Any:
    """A value, or a list of one value for each view; a default list is fitted to the count."""
    if not isinstance(value, list) or len(value) == count:
        return value
    if given:
        raise UsageError(f"{where} has {len(value)} values for {count} views; give one, or {count}")
    return (value + value[-1:] * count)[:count]


def _check_group(group: dict[str, Any], where: str) -> None:
    if group["count"] < 0 or group["size"] < 1:
        raise UsageError(f"{where} asks for {group['count']} views of {group['size']} pixels")
    low, high = group["crop"]
    if not 0 < low <= high <= 1:
        raise UsageError(f"{where}.crop is [{low:g}, {high:g}]; it must be 0 < low ≤ high ≤ 1")
    for key in ("ratio", "sigma"):
        low, high = group[key]
        if not 0 < low <= high:
            raise UsageError(f"{where}.{key} is [{low:g}, {high:g}]; it must be 0 < low ≤ high")
    for key in ("flip", "gray", "blur", "solarize"):
        values = group[key] if isinstance(group[key], list) else [group[key]]
        for value in values:
            _probability(value, f"{where}.{key}")
    _check_jitter(group["jitter"], f"{where}.jitter")


def _check_jitter(jitter: dict[str, float], where: str) -> None:
    _probability(jitter["p"], f"{where}.p")
    for key in ("brightness", "contrast", "saturation", "hue"):
        limit = 0.5 if key == "hue" else float("inf")
        if not 0 <= jitter[key] <= limit:
            raise UsageError(f"{where}.{key} is {jitter[key]:g}; it must be in [0, {limit:g}]")


def _probability(value: float, where: str) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"{where} is {value:g}; a probability is in [0, 1]")


def resolve_shared(name: str, given: Any, operation: Any) -> Any:
    """An operation for all groups: null, its main knob as a number, or a mapping of its knobs."""
    where = f"recipe.views.{name}"
    if given is None:
        return None
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return names.knobs(operation.draw, {_main(operation): given}, where)[_main(operation)]
    if not isinstance(given, dict):
        raise UsageError(f"{where} is {given!r}; it must be null, a number or a mapping")
    filled = names.knobs(operation.draw, given, where)
    if "p" in filled:
        _probability(filled["p"], f"{where}.p")
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
        names.pick(operations, name, "operation in recipe.views.order")
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
