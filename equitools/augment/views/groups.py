"""Groups of views as a recipe says them, checked, with every default written back.

Those called global and local start from DINO's settings (Caron et al., 2021), those that stand in
for another group in a part of the batch from that group's.
"""

from collections.abc import Callable
from typing import Any

from equitools.augment.checks import interval
from equitools.augment.operations import Menu, in_order
from equitools.core.errors import UsageError
from equitools.manifest import schema

Group = dict[str, Any]
COUNTS = {"global": {"count": 2, "size": 224}, "local": {"count": 8, "size": 96}}
TAKEN_OVER = ("portion", "patch", "area", "aspect", "complement")
PORTION = (*TAKEN_OVER, "whole", "replaces")


def group_settings(*, count: int = 1, size: int = 224) -> Group:
    """The keys of a view group beside those of its operations: count views of size × size px."""
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
) -> Group:
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


def of_groups(operations: Menu) -> dict[str, Callable[..., Group]]:
    """The operations that groups set, in order, each with the function that has its keys."""
    ordered = {name: operations[name] for name in in_order(operations)}
    return {name: one.of_group for name, one in ordered.items() if hasattr(one, "of_group")}


def draw_knobs(group: Group, index: int, operations: Menu) -> dict[str, Group]:
    """The knobs of each operation's draw for one view of a group; of none that it leaves out."""
    chosen = {name: of for name, of in of_groups(operations).items() if name in group}
    knobs = {name: of("", **_keys(of, group)) for name, of in chosen.items()}
    for own in knobs.values():
        if isinstance(own.get("p"), list):
            own["p"] = own["p"][index]
    return knobs


def resolve(name: str, given: Group, operations: Menu, under: Group | None = None) -> Group:
    """One group, checked, with the defaults of its name, or those of the group `under` it.

    Operations that are off are left out, unless they would be on if the group did not say so.
    """
    where = f"recipe.views.{name}"
    under = _named(name, operations) if under is None else under
    functions = of_groups(operations)
    signature = schema.together(group_settings, *functions.values())
    usual = schema.knobs(signature, under, where)
    group = schema.knobs(signature, {**under, **given}, where)
    if group["count"] < 0 or group["size"] < 1:
        raise UsageError(f"{where} asks for {group['count']} views of {group['size']} pixels")
    for operation, of in functions.items():
        knobs = of(where, **_keys(of, group))
        if isinstance(knobs.get("p"), list):
            own, path = group[operation], f"{where}.{operation}"
            group[operation] = _for_each(own, group["count"], operation in given, path)
        elif group[operation] is None or isinstance(group[operation], dict):
            group[operation] = knobs
        if not (is_on(group[operation]) or is_on(usual[operation])):
            for key in _keys(of, group):
                del group[key]
    return group


def is_on(value: Any) -> bool:
    """Can an operation of a group ever act? None is a mapping of defaults."""
    if isinstance(value, dict):
        return value["p"] > 0
    return value is None or (max(value) if isinstance(value, list) else value) > 0


def _named(name: str, operations: Menu) -> Group:
    """DINO's defaults of a group of this name."""
    own = {key: getattr(one, "DEFAULTS", {}).get(name) for key, one in operations.items()}
    return COUNTS.get(name, {}) | {key: value for key, value in own.items() if value is not None}


def _keys(of: Callable[..., Group], group: Group) -> Group:
    return {key: group[key] for key in schema.own_knobs(of)}


def resolve_portions(
    given: dict[str, Group], whole: dict[str, Group], operations: Menu
) -> dict[str, Group]:
    """The groups that stand in for others, checked, that for the global views first.

    whole: the groups of every sample, resolved.
    """
    made: dict[str, Group] = {}
    targets = {name: group.get("replaces") or "global" for name, group in given.items()}
    for name in sorted(given, key=lambda name: targets[name] != "global"):
        rivals = [other for other, target in targets.items() if target == targets[name]]
        if len(rivals) > 1:
            raise UsageError(
                f"recipe.views has several groups with portion ({', '.join(rivals)}); one can stand"
                f" in for the {targets[name]} views: set the others to null"
            )
        first = next(iter(made.values()), None)
        made[name] = resolve_portion(name, given[name], whole, first, operations)
    return made


def resolve_portion(
    name: str, given: Group, whole: dict[str, Group], first: Group | None, operations: Menu
) -> Group:
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
        way = f"add a group views.{target}, or say views.{name}=null"
        raise UsageError(f"{where} replaces {target} views; {way}")
    replaced = whole[target]
    known = schema.together(group_settings, *of_groups(operations).values(), portion_settings)
    for key in given:
        schema.pick(dict.fromkeys(schema.own_knobs(known)), key, f"setting in {where}")
    own = schema.knobs(portion_settings, {**taken, **own}, where)
    if own["replaces"] == "global":
        del own["replaces"]  # as in recipes from before there was a choice
    rest = {key: value for key, value in given.items() if key not in PORTION}
    if rest.get("count", replaced["count"]) != replaced["count"]:
        raise UsageError(
            f"{where}.count is {rest['count']} but its views replace {replaced['count']} {target}"
            " views, one for one; leave count out"
        )
    group = resolve(name, rest, operations, under=replaced) | own
    _check_portion(group, where)
    if first is not None:
        _check_further(group, first, where)
    return group


def stands_in(given: Group) -> bool:
    """Does a group, as a recipe says it, stand in for another one?"""
    return given.get("portion") is not None or given.get("replaces") is not None


def replaced(group: Group) -> str | None:
    """The name of the views that a resolved group stands in for, if it does."""
    return group.get("replaces", "global") if "portion" in group else None


def _check_further(group: Group, first: Group, where: str) -> None:
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


def _check_portion(group: Group, where: str) -> None:
    portion, patch, size = group["portion"], group["patch"], group["size"]
    if not 0 < portion <= 1:
        raise UsageError(f"{where}.portion is {portion:g}; it is a share of the batch, in (0, 1]")
    if not 1 <= patch <= size:
        raise UsageError(f"{where}.patch is {patch} pixels; it must be from 1 to size={size}")
    for key in ("area", "aspect"):
        interval(group[key], f"{where}.{key}")


def _for_each(value: list[float], count: int, given: bool, where: str) -> list[float]:
    """A list of one value for each view; a default list is fitted to the count."""
    if len(value) != count and given:
        raise UsageError(f"{where} has {len(value)} values for {count} views; give one, or {count}")
    return (value + value[-1:] * count)[:count]
