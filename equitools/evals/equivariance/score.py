"""Does moving a picture move the map of every layer alike?

    score(G) = E_x E_{g₁,g₂ ∈ G} mean over cells of cos(ρ_g f(g₁x), f(g₂x)),  g = g₂ g₁⁻¹

("Soft Equivariance Regularization", Section B.2, whose d is the cosine: higher is more
equivariant), for quarter turns, flips, and scaling of the whole picture. A high score alone proves
nothing, since a map that is the same everywhere has it too, so its controls stand beside it:

    moved     the score where g is not the identity, with which any network scores 1
    centered  the score after each map's mean cell is taken away; a cell that is the mean counts 0
    shuffled  Σ_{i≠j} cos(a_i, b_j) / n(n-1), which is a shuffled grid's score on average
    constant  the score of a map that is the same everywhere
    variance  Σ‖z_i - z̄‖² / Σ‖z_i‖² over the cells of f(g₂x), 0 for a constant map
    random    score, and centered score, of the same network with random weights

`zoom` scales the content inside the frame and is another measure, with a name of its own.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from equitools.core.errors import DataError, UsageError
from equitools.evals.equivariance import transformed_pairs
from equitools.features.maps import FrozenMaps, Maps
from equitools.features.table import Outcome

LIMITS = {"val": "images"}  # the knob that limits the pictures of a split
BLOCK = 32  # pictures that share the two grids of their scaling
FLAT = 1e-5  # a centered cell below this share of the map's size is rounding
ACTIONS = {
    "rotation": "quarter turns, exact on pixels and cells",
    "flip": "left-right, exact on pixels and cells",
    "scale": "whole picture resized to another grid (bicubic), map resized (bicubic)",
    "zoom": "content scaled inside the frame, black outside (bilinear); cells inside both views",
}


def evaluate(
    source: FrozenMaps,
    *,
    images: int = 5000,
    groups: list[str] = ["rotation", "flip", "scale"],  # noqa: B006
    zoom: bool = False,
    random: bool = True,
    area: tuple[float, float] = (0.7, 1.3),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Outcome:
    """The score and its controls for every group and layer, `<group>/layer<n>/<name>`.

    images: so many pictures of the val split at most. groups: rotation, flip, scale. zoom: also
    scaling inside the frame. random: also the same network with random weights. area, aspect:
    ranges of a scaled picture's area, as a share of what it was, and of its width / height. Scaling
    is drawn for 32 pictures at once.
    """
    wanted = _wanted(groups, zoom, area, aspect)
    left_out = {}
    if "scale" in wanted and source.other_shapes:
        wanted.remove("scale")
        left_out["scale"] = f"the network takes no other shape of picture: {source.other_shapes}"
    shape = {"area": area, "aspect": aspect}
    untrained = source.untrained() if random else None
    sums, count = _Means(), 0
    for number, (pixels, names) in enumerate(source.pictures("val", images, BLOCK)):
        count += len(pixels)
        for group in wanted:
            if group == "rotation":
                pair = transformed_pairs.rotations(pixels, names, source.seed)
            elif group == "flip":
                pair = transformed_pairs.flips(pixels, names, source.seed)
            elif group == "scale":
                pair = transformed_pairs.scalings(
                    pixels, number, source.seed, cell=source.cell, **shape
                )
            else:
                pair = transformed_pairs.zooms(pixels, names, source.seed, **shape)
            _trained(pair, source.maps, group, sums)
            if untrained is not None:
                _random(pair, untrained, group, sums)
    if not count:
        raise DataError("the val split has no pictures")
    facts = {
        "images": count,
        "elements": "two of the group for each picture, uniform, independent, seeded by its key",
        "measure": "cosine of patch tokens or map cells, mean over cells, then pictures; fp32",
        "actions": {group: ACTIONS[group] for group in wanted},
        **({"left_out": left_out} if left_out else {}),
    }
    return Outcome(sums.done(), facts=facts)


def _wanted(groups: list[str], zoom: bool, area: Any, aspect: Any) -> list[str]:
    wanted = list(dict.fromkeys([*groups, *(["zoom"] if zoom else [])]))
    if unknown := [group for group in wanted if group not in ACTIONS]:
        raise UsageError(f"no group '{unknown[0]}'; groups are rotation, flip, scale (and zoom)")
    if not wanted:
        raise UsageError("no group is asked for; groups are rotation, flip, scale (and zoom)")
    for name, (low, high) in (("area", area), ("aspect", aspect)):
        if not 0 < low <= high:
            raise UsageError(f"{name} is {low:g}, {high:g}; it is two numbers above 0, in order")
    return wanted


class _Means:
    """Means of values that come batch by batch."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))

    def add(self, name: str, values: Tensor) -> None:
        total = values.double().sum().cpu()
        self.sums[name] += torch.stack((total, torch.tensor(len(values), dtype=torch.float64)))

    def done(self) -> dict[str, float]:
        """What no picture says anything of is left out."""
        return {name: float(s[0] / s[1]) for name, s in self.sums.items() if s[1]}


def _trained(pair: transformed_pairs.Pair, maps: Maps, group: str, means: _Means) -> None:
    """Add a batch's score and controls of every layer."""
    for layer, views, values, valid, seen in _compared(pair, maps):
        first, second = (torch.ones_like(view[:, :1]) for view in views)
        constant = agreement(pair.act(first, _size(second)), second, valid)["score"]
        values |= {"constant": constant, "variance": values.pop("variance")}
        for name, value in values.items():
            means.add(f"{group}/layer{layer}/{name}", value[seen])
        means.add(f"{group}/layer{layer}/moved", values["score"][seen & (pair.element > 0)])


def _random(pair: transformed_pairs.Pair, maps: Maps, group: str, means: _Means) -> None:
    """Add what a network with random weights scores."""
    for layer, _, values, _, seen in _compared(pair, maps):
        means.add(f"{group}/layer{layer}/random", values["score"][seen])
        means.add(f"{group}/layer{layer}/random_centered", values["centered"][seen])


def _compared(
    pair: transformed_pairs.Pair, maps: Maps
) -> Iterator[tuple[int, tuple[Tensor, Tensor], dict[str, Tensor], Tensor | None, Tensor]]:
    """Of every layer: the maps of both views, how they agree, the cells that count (None: all), and
    the pictures b that have one."""
    first, second = maps(pair.first), maps(pair.second)
    for layer, target in second.items():
        valid = None if pair.valid is None else pair.valid(_size(target))
        seen = torch.ones_like(pair.element, dtype=torch.bool)
        seen = seen if valid is None else valid.flatten(1).any(1)
        values = agreement(pair.act(first[layer], _size(target)), target, valid)
        yield layer, (first[layer], target), values, valid, seen


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def agreement(moved: Tensor, target: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
    """score, centered, shuffled and variance, b each, of maps b d h w: see above.

    valid: the cells b h w that count; a picture without one has zeros.
    """
    a, b = moved.flatten(2), target.flatten(2)
    weight = torch.ones_like(a[:, 0]) if valid is None else valid.flatten(1).to(a.dtype)
    count = weight.sum(1)
    unit_a, unit_b = (F.normalize(x, dim=1) * weight[:, None] for x in (a, b))
    same = (unit_a * unit_b).sum((1, 2))
    every = (unit_a.sum(2) * unit_b.sum(2)).sum(1)
    score = same / count.clamp(min=1)
    rest_a, rest_b = _centered(a, weight), _centered(b, weight)
    centered = (F.normalize(rest_a, dim=1) * F.normalize(rest_b, dim=1)).sum((1, 2))
    energy = (b.square().sum(1) * weight).sum(1)
    return {
        "score": score,
        "centered": centered / count.clamp(min=1),
        # A single cell has no other place to be shuffled to.
        "shuffled": torch.where(
            count > 1, (every - same) / (count * (count - 1)).clamp(min=1), score
        ),
        "variance": rest_b.square().sum((1, 2)) / energy.clamp(min=torch.finfo(b.dtype).tiny),
    }


def _centered(cells: Tensor, weight: Tensor) -> Tensor:
    """Cells b d n without their mean over those that count (b n); 0 for the others, and for those
    that are the mean but for rounding."""
    count = weight.sum(1, keepdim=True).clamp(min=1)
    mean = (cells * weight[:, None]).sum(2) / count
    rest = (cells - mean[..., None]) * weight[:, None]
    size = ((cells.square().sum(1) * weight).sum(1, keepdim=True) / count).sqrt()
    return rest * (rest.norm(dim=1) > FLAT * size)[:, None]
