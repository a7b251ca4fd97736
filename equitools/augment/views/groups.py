"""Groups of views as a recipe says them, checked, with every default written back.

Those called global and local start from DINO's settings (Caron et al., 2021), those that stand in
for another group in a part of the batch from that group's.
"""

from __future__ import annotations

from typing import Any

from equitools.core.errors import UsageError
from equitools.manifest import schema

LOCAL = {"count": 8, "size": 96, "crop": [0.05, 0.4], "blur": 0.5, "solarize": 0.0}
GLOBAL = {"count": 2, "size": 224, "crop": [0.4, 1.0], "blur": [1.0, 0.1], "solarize": [0.0, 0.2]}
TAKEN_OVER = ("portion", "patch", "area", "aspect", "complement")
PORTION = (*TAKEN_OVER, "whole", "replaces")


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
    replaces: str = "global",
) -> dict[str, Any]:
    """The keys that make a group stand in for the global views of a part of the batch.

    portion: that part, in (0, 1]. The group starts from the global group's settings; its views
    share one crop (the full picture with `whole`), turned and resized as grid.py says to a
    multiple of `patch` pixels: a ViT's patch, or the stride of a CNN's stage. area: cells of the
    grid as a share of (size / patch)²; aspect: its width over its height. complement: every second
    view is half turned and flipped exactly where the one before it is not.

    A further group can stand in for another one in the same part of the batch: `replaces: local`.
    It starts from that group's settings, and takes portion, patch, area, aspect and complement over
    from the group that stands in for the global views; its views 0 and 1, 2 and 3 … share a crop.
    """
    return dict(locals())


def resolve(name: str, given: dict[str, Any], jitter: Any) -> dict[str, Any]:
    """One group, checked, with the defaults of its name."""
    where = f"recipe.views.{name}"
    known = {"global": GLOBAL, "local": LOCAL}.get(name, {})
    group = schema.knobs(group_settings, {**known, **given}, where)
    group["jitter"] = schema.knobs(jitter.draw, group["jitter"] or {}, f"{where}.jitter")
    for key in ("blur", "solarize"):
        group[key] = _for_each(group[key], group["count"], key in given, f"{where}.{key}")
    _check_group(group, where)
    return group


def resolve_portions(
    given: dict[str, dict[str, Any]], whole: dict[str, dict[str, Any]], jitter: Any
) -> dict[str, dict[str, Any]]:
    """The groups that stand in for others, checked, that for the global views first.

    whole: the groups of every sample, resolved.
    """
    made: dict[str, dict[str, Any]] = {}
    targets = {name: group.get("replaces") or "global" for name, group in given.items()}
    for name in sorted(given, key=lambda name: targets[name] != "global"):
        rivals = [other for other, target in targets.items() if target == targets[name]]
        if len(rivals) > 1:
            raise UsageError(
                f"recipe.views has several groups with portion ({', '.join(rivals)}); one can stand"
                f" in for the {targets[name]} views: set the others to null"
            )
        first = next(iter(made.values()), None)
        made[name] = resolve_portion(name, given[name], whole, first, jitter)
    return made


def resolve_portion(
    name: str,
    given: dict[str, Any],
    whole: dict[str, dict[str, Any]],
    first: dict[str, Any] | None,
    jitter: Any,
) -> dict[str, Any]:
    """One group that stands in for another one of `whole`; first: for the global one, resolved."""
    where = f"recipe.views.{name}"
    taken = {} if first is None else {key: first[key] for key in TAKEN_OVER}
    own = {key: value for key, value in given.items() if key in PORTION}
    target = str(own.get("replaces") or "global")
    if target != "global" and first is None:
        raise UsageError(
            f"{where} replaces {target} views where another group replaces the global ones; say"
            f" views.grid.portion=0.01 (or another share of the batch), or views.{name}=null"
        )
    if target not in whole:
        raise UsageError(
            f"{where} replaces {target} views; add a group views.{target}, or say views.{name}=null"
        )
    replaced = whole[target]
    for key in given:
        schema.pick({**replaced, **dict.fromkeys(PORTION)}, key, f"setting in {where}")
    own = schema.knobs(portion_settings, {**taken, **own}, where)
    if own["replaces"] == "global":
        del own["replaces"]  # as in recipes from before there was a choice
    rest = {key: value for key, value in given.items() if key not in PORTION}
    if rest.get("count", replaced["count"]) != replaced["count"]:
        raise UsageError(
            f"{where}.count is {rest['count']} but its views replace {replaced['count']} {target}"
            " views, one for one; leave count out"
        )
    group = resolve(name, {**replaced, **rest}, jitter) | own
    _check_portion(group, where)
    if first is not None:
        _check_further(group, first, where)
    return group


def stands_in(given: dict[str, Any]) -> bool:
    """Does a group, as a recipe says it, stand in for another one?"""
    return given.get("portion") is not None or given.get("replaces") is not None


def replaced(group: dict[str, Any]) -> str | None:
    """The name of the views that a resolved group stands in for, if it does."""
    return group.get("replaces", "global") if "portion" in group else None


def _check_further(group: dict[str, Any], first: dict[str, Any], where: str) -> None:
    if group["portion"] != first["portion"]:
        raise UsageError(
            f"{where}.portion is {group['portion']:g}, but what stands in for the global views has"
            f" portion={first['portion']:g}, and the images are the same; leave it out"
        )
    if group["count"] % 2:
        target, count = group["replaces"], group["count"]
        raise UsageError(
            f"{where} has pairs of views that share a crop, and views.{target}.count is {count};"
            f" say views.{target}.count={count + 1}"
        )


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
            probability(value, f"{where}.{key}")
    _check_jitter(group["jitter"], f"{where}.jitter")


def _check_jitter(jitter: dict[str, float], where: str) -> None:
    probability(jitter["p"], f"{where}.p")
    for key in ("brightness", "contrast", "saturation", "hue"):
        limit = 0.5 if key == "hue" else float("inf")
        if not 0 <= jitter[key] <= limit:
            raise UsageError(f"{where}.{key} is {jitter[key]:g}; it must be in [0, {limit:g}]")


def probability(value: float, where: str) -> None:
    """UsageError for what is no probability; where: its dotted path, for the message."""
    if not 0 <= value <= 1:
        raise UsageError(f"{where} is {value:g}; a probability is in [0, 1]")
