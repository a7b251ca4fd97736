"""A part of the batch that has views of its own: which samples, and one record for all again.

With B images a step and n = round(portion · B), position p of the step is in the portion iff

    ⌊(p + 1) n / B⌋ > ⌊p n / B⌋

so that every process and micro-batch has its share to within one, and the samples are the same
however many there are. What objectives read is of the whole batch, in its order.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from equitools.backbones import Encoder
from equitools.core.errors import UsageError
from equitools.core.records import Features, Portion, View

Record = TypeVar("Record", View, Features)


def members(portion: float | None, batch: int) -> int:
    """n, the images of a step that are in the portion; UsageError when there are fewer than two."""
    if portion is None:
        return 0
    count = round(portion * batch)
    if count < 2:
        raise UsageError(
            f"portion={portion:g} of batch_size={batch} is {count} image{'' if count else 's'}, and"
            " images are compared with others; say batch_size="
            f"{math.ceil(2 / portion)} or portion={min(1, 2 / batch):.3g}"
        )
    if count == batch and portion < 1:
        raise UsageError(
            f"portion={portion:g} of batch_size={batch} is every image; say portion=1, or less"
        )
    return count


def inside(start: int, count: int, *, members: int, batch: int) -> list[bool]:
    """Which of the positions start, start + 1, … of a step are in the portion."""
    positions = range(start, start + count)
    return [(p + 1) * members // batch > p * members // batch for p in positions]


def refuse_lonely(members: int, batch: int, *, processes: int, accumulate: int) -> None:
    """UsageError when a micro-batch has one image of the portion in all processes together."""
    share = batch // (processes * accumulate)
    for micro in range(accumulate if members else 0):
        starts = range(micro * share, batch, accumulate * share)
        count = sum(sum(inside(p, share, members=members, batch=batch)) for p in starts)
        if count < 2:
            raise UsageError(
                f"a micro-batch has {count} of the {members} images of the portion, and images are"
                f" compared with others; say a larger portion, or accumulate={accumulate // 2 or 1}"
            )


def check_patch(views: dict[str, Any], encoder: Encoder) -> None:
    """UsageError when a ViT cannot cut the pictures of a portion into patches."""
    patch = encoder.patch_size
    for name, group in views.items():
        if isinstance(group, dict) and "portion" in group and patch and group["patch"] % patch:
            raise UsageError(
                f"recipe.views.{name}.patch is {group['patch']}, but the network cuts pictures into"
                f" {patch}-px patches; say views.{name}.patch={patch}"
            )


def target_views(views: Sequence[View]) -> list[View]:
    """The views that the target network sees: the global ones and those that stand in for them."""
    return [view for view in views if "global" in (view.group, view.replaces)]


def compared(views: Sequence[View]) -> list[View]:
    """The views that objectives compare, those of a portion left out unless it is all there is."""
    alone = [replace(view, group=view.replaces or view.group) for view in _alone(views, views)]
    return [*alone, *(view for view in views if view.replaces is None)]


def join(views: Sequence[View], records: Sequence[Features]) -> list[Features]:
    """Features of the views that `compared` lists, each of the whole batch in its order.

    records: of every view. The i-th view of a group and the i-th one that stands in for that group
    become one record of pooled features and class tokens; maps and attention stay apart.
    """
    waiting: dict[str, list[Features]] = defaultdict(list)
    for view, features in zip(views, records, strict=True):
        if view.replaces is not None:
            waiting[view.replaces].append(features)
    joined = [_joined(features) for features in _alone(views, records)]
    for view, features in zip(views, records, strict=True):
        if view.replaces is None:
            both = waiting[view.group]
            joined.append(_joined(features, both.pop(0)) if both else features)
    return joined


def _alone(views: Sequence[View], records: Sequence[Record]) -> list[Record]:
    """What belongs to stand-ins for views that no sample of the step has."""
    present: set[str | None] = {view.group for view in views if view.replaces is None}
    missing = [view.replaces not in present | {None} for view in views]
    return [one for one, wanted in zip(records, missing, strict=True) if wanted]


def _joined(*records: Features) -> Features:
    """Records of some samples each as one of all, in the order of `rows`."""
    order = torch.cat([one.rows for one in records if one.rows is not None]).argsort()
    cls = {
        layer: torch.cat([one.cls[layer] for one in records])[order]
        for layer in records[0].cls
        if all(layer in one.cls for one in records)
    }
    return Features(torch.cat([one.pooled for one in records])[order], records[0].split, cls=cls)


def apart(
    views: Sequence[View], online: Sequence[Features], target: Sequence[Features] | None
) -> dict[str, Portion]:
    """The portions by their groups' names. target: of the views that `target_views` lists."""
    seen = target_views(views)

    def those(group: str, views: Sequence[View], records: Sequence[Record]) -> list[Record]:
        return [one for view, one in zip(views, records, strict=True) if view.group == group]

    return {
        group: Portion(
            those(group, views, views),
            those(group, views, online),
            None if target is None else those(group, seen, target) or None,
        )
        for group in dict.fromkeys(view.group for view in views if view.replaces is not None)
    }
