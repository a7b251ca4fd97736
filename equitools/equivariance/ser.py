"""SER: the maps of an inner block follow the flips, turns and scalings of the picture, softly.

    L_equiv = d( ρ_g f1(x1), f1(x2) ),    x1 = g1 x,  x2 = g2 x,  g = g2 g1⁻¹

on the views of a portion of the batch ("Soft Equivariance Regularization", §3). f1 is the network
up to block ℓ, with a LayerNorm and a projector of its own; ρ_g permutes the cells of a map for
flips and right angles and interpolates for scalings; d is the contrast of dense_info_nce.py, the
mean of both directions. In the released code the gathered tokens carry no gradient; here they do.
With 2+4 views there are three pairs, one of them global and each on a crop of its own, and d is the
mean of all; the released code adds them up.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitools.augment import geometry
from equitools.core.errors import UsageError
from equitools.core.records import Features, Portion, Step
from equitools.nn.losses import dense_info_nce
from equitools.nn.term import Objective, Term

NO_PORTION = (
    "ser needs views that are turned and scaled but not cropped apart, for a part of the batch; say"
    " views.grid.portion=0.01 (or another share of it)"
)


class SER(Term):
    """SER: contrasts inner maps, moved as the picture was, with those of other images (2026).

    Reads the maps of block (a CNN's: stage) `layer`, counted from 1, of the views of a portion:
    b d h w, d = dim. temperature: τ. negatives: tokens of other images in both views, or in the
    other view only (cross: the released two-view code). keys: what queries are compared with, made
    by the online encoder, or by the target network without gradient where there is one (slow: the
    released code for MoCo and DINO with two views); pairs that the target network does not
    see, those of local crops, have online keys. out_dim: width of the projector's two layers.
    """

    maps = True
    portion = True

    def __init__(
        self,
        dim: int,
        objective: Objective,
        *,
        layer: int = 3,
        temperature: float = 0.3,
        negatives: dense_info_nce.Negatives = "both",
        keys: Literal["online", "slow"] = "online",
        out_dim: int = 512,
    ) -> None:
        super().__init__()
        if keys == "slow" and not objective.target:
            other = type(objective).__name__.lower()
            raise UsageError(
                f"ser.keys is slow, but {other} keeps no target network; say ser.keys=online"
            )
        if temperature <= 0:
            raise UsageError(f"ser.temperature is {temperature:g}; it must be above 0")
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.projector = nn.Sequential(
            nn.Linear(dim, out_dim, bias=False), nn.GELU(), nn.Linear(out_dim, out_dim, bias=False)
        )
        self.layers = (layer - 1,)
        self.target = keys == "slow"
        self.temperature = temperature
        self.negatives: dense_info_nce.Negatives = negatives

    @staticmethod
    def check_views(views: dict[str, Any]) -> None:
        """Refuse a recipe's views, resolved, among which no group has a portion of the batch."""
        if not any(isinstance(group, dict) and group.get("portion") for group in views.values()):
            raise UsageError(NO_PORTION)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The mean over pairs of views and both directions, in nats; 0 without other images."""
        losses = []
        for portion in portions(step):
            for first, second in view_pairs(portion):
                queries, keys = self.aligned(portion, first, second)
                losses += [self._contrast(queries[i], keys[i]) for i in range(2)]
        return {"ser": torch.stack(losses).mean()}

    def aligned(
        self, portion: Portion, first: int, second: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Queries and keys of both directions, unit tokens b h w c on the queries' grids."""
        online = [self.project(portion.online[i]) for i in (first, second)]
        keys = online
        if self.target and portion.target is not None:
            with torch.no_grad():
                keys = [self.project(portion.target[i]) for i in (first, second)]
        there, back = relative(portion, first, second), relative(portion, second, first)
        moved = (
            geometry.act(keys[1], back, _grid(online[0])),
            geometry.act(keys[0], there, _grid(online[1])),
        )
        return (unit(online[0]), unit(online[1])), (unit(moved[0]), unit(moved[1]))

    def project(self, features: Features) -> Tensor:
        """The projected map, b d h w → b c h w, in float32; every cell by itself."""
        cells = features.maps[self.layers[0]].movedim(1, -1)
        return self.projector(self.norm(cells)).float().movedim(-1, 1)

    def _contrast(self, queries: Tensor, keys: Tensor) -> Tensor:
        tokens = queries.flatten(1, 2), keys.flatten(1, 2)
        return dense_info_nce.mean(*tokens, temperature=self.temperature, negatives=self.negatives)

    def heads(self) -> list[nn.Module]:
        """The norm and the projector that are trained."""
        return [self.norm, self.projector]

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Mean cosines of a token: with itself in the other view, with all tokens of its image.

        Maps that are equal everywhere have 1 and 1; equivariant ones have a `positive` well above
        `constant`. Empty where this process has no images of the portion.
        """
        queries, keys = (both[1] for both in self.aligned(portions(step)[0], 0, 1))
        if not len(queries):
            return {}
        anywhere = (queries.mean((1, 2)) * keys.mean((1, 2))).sum(-1)
        return {
            "positive": float((queries * keys).sum(-1).mean()),
            "constant": float(anywhere.mean()),
        }


def portions(step: Step) -> list[Portion]:
    """The step's portions; UsageError when there are none, with what to say."""
    if not step.portions:
        raise UsageError(NO_PORTION)
    return list(step.portions.values())


def view_pairs(portion: Portion) -> list[tuple[int, int]]:
    """Views (0, 1), (2, 3) …, each pair of the same pictures on their own grids."""
    count = len(portion.views)
    if count < 2 or count % 2:
        group = portion.views[0].group if count else "grid"
        raise UsageError(f"ser compares views in pairs; views.{group}.count is {count}, say 2")
    return [(i, i + 1) for i in range(0, count, 2)]


def relative(portion: Portion, first: int, second: int) -> list[tuple[bool, int]]:
    """For each image the flip and turns that take the first view to the second."""
    matrices = [portion.views[i].matrix.detach().cpu().double() for i in (first, second)]
    moved = geometry.compose(geometry.invert(matrices[0]), matrices[1])
    elements = geometry.elements(moved)
    known = [element for element in elements if element is not None]
    if len(known) < len(elements):
        raise UsageError(
            "ser acts on maps by flips, right angles and scaling; the matrices of a portion's views"
            " differ by something else, though a portion shares its crop"
        )
    return known


def unit(maps: Tensor) -> Tensor:
    """Maps b c h w as unit tokens b h w c."""
    return F.normalize(maps.movedim(1, -1), dim=-1)


def _grid(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
