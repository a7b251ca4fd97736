"""The encoder with its terms: what is optimized, and the loss

    L = Σ objective terms + Σ_t weight_t · Σ terms of t

that every method of the toolkit is an instance of. The objective and the equivariance terms never
meet; both read the same Step.
"""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from equitools import backbones, equivariance, objectives
from equitools.backbones import Encoder
from equitools.core.errors import UsageError
from equitools.core.records import Features, Step, View
from equitools.manifest import schema
from equitools.nn.term import Objective, Term
from equitools.training import compatibility, portions


class Learner(nn.Module):
    """Encoder, objective and equivariance terms under one roof, so that one wrapper serves all."""

    encoder: Encoder
    objective: Objective

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        terms: dict[str, Term],
        weights: dict[str, float],
    ) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective
        self.terms = nn.ModuleDict(terms)
        self.weights = {name: float(weight) for name, weight in weights.items()}

    def forward(
        self, views: list[View], target: list[Features] | None, done: float, epoch: float
    ) -> tuple[Tensor, dict[str, Tensor], Step]:
        """The loss (a scalar), its parts by name, and the step that the terms have read.

        target: what `target_features` returns for the same views.
        """
        online = encode(
            self.encoder,
            views[:1] if self._one_way(views) else views,
            maps=self._layers(portion=False),
            inside=self._layers(portion=True),
            apart=self.objective.apart,
        )
        step = _step(views, online, target, self.objective, done, epoch)
        losses = self.objective(step)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        for name, term in self.terms.items():
            own = term(step)
            total = total + self.weights[name] * sum(value.float() for value in own.values())
            losses = losses | own
        return total, losses, step

    @torch.no_grad()
    def target_features(self, network: nn.Module, views: list[View]) -> list[Features]:
        """A target network's features of the global views and of those that stand in for them."""
        seen = portions.target_views(views)
        seen = seen[-1:] if self._one_way(views) else seen
        return encode(network, seen, inside=self._layers(portion=True), apart=self.objective.apart)

    def _one_way(self, views: list[View]) -> bool:
        """Does nobody read but the first view's features and the last target ones (MoCo v2)?"""
        alone = not self.terms and not any(view.replaces for view in views)
        return alone and self.objective.one_way

    def _layers(self, *, portion: bool) -> tuple[int, ...]:
        """The maps that terms read of a portion's views, or of all views."""
        wanted = [term.layers for term in self.all_terms() if portion or not term.portion]
        return tuple(sorted({layer for layers in wanted for layer in layers}))

    def named_terms(self, objective: str) -> dict[str, Term]:
        """The objective, by the name that it is given, then the equivariance terms by theirs."""
        return {objective: self.objective, **cast(dict[str, Term], dict(self.terms))}

    def all_terms(self) -> list[Term]:
        """The objective first, then the equivariance terms in the recipe's order."""
        return list(self.named_terms("").values())

    @property
    def needs_target(self) -> bool:
        """Does any term read a target network?"""
        return any(term.target for term in self.all_terms())

    def constant_rate(self) -> list[nn.Parameter]:
        """Parameters whose learning rate is not scheduled (SimSiam's predictors)."""
        return [parameter for term in self.all_terms() for parameter in term.constant_rate()]

    def last_layers(self) -> list[nn.Parameter]:
        """Parameters of the heads' last layers, which DINO keeps still at first."""
        return [p for name, p in self.named_parameters() if "last_layer" in name]


def encode(
    encoder: nn.Module,
    views: list[View],
    maps: tuple[int, ...] = (),
    *,
    inside: tuple[int, ...] = (),
    apart: bool = False,
) -> list[Features]:
    """Features of every view, with one encoder call for each picture size.

    maps: layers whose maps are wanted of every view; inside: of views that stand in for others.
    apart: one call a view instead, so that each has batch statistics of its own (SimSiam).
    """
    calls: dict[tuple[Any, ...], list[int]] = {}
    for i, view in enumerate(views):
        # Stand-ins have calls of their own: batch norm sees a portion apart, each grid by itself.
        call = (*view.image.shape[-2:], view.mask is None, view.replaces, i if apart else 0)
        calls.setdefault(call, []).append(i)
    features: dict[int, Features] = {}
    for members in calls.values():
        image = torch.cat([views[i].image for i in members])
        masks = [mask for i in members if (mask := views[i].mask) is not None]
        wanted = maps if views[members[0]].replaces is None else inside
        together = _call(encoder, image, torch.cat(masks) if masks else None, wanted)
        lengths = [len(views[i].image) for i in members]
        for i, part in zip(members, _divide(together, lengths), strict=True):
            features[i] = replace(part, rows=views[i].rows)
    return [features[i] for i in range(len(views))]


def _call(
    encoder: nn.Module, image: Tensor, mask: Tensor | None, maps: tuple[int, ...]
) -> Features:
    """An encoder call. Where a process has no image of a portion it must call all the same, as the
    others wait for its gradients; timm's ViTs cannot reshape nothing, so a blank one is cut off."""
    if len(image) or not getattr(encoder, "is_vit", False):
        return encoder(image, mask, maps=maps)
    blank = encoder(image.new_zeros(1, *image.shape[1:]), None, maps=maps)
    return _divide(blank, [0, 1])[0]


def _step(
    views: list[View],
    online: list[Features],
    target: list[Features] | None,
    objective: Objective,
    done: float,
    epoch: float,
) -> Step:
    """What terms read: features of the whole batch, and those of a portion beside them."""
    if not any(view.replaces for view in views):
        return Step(views, online, target, objective, done, epoch)
    apart = portions.apart(views, online, target)
    online = portions.join(views, online)
    if target is not None:
        target = portions.join(portions.target_views(views), target)
    return Step(portions.compared(views), online, target, objective, done, epoch, apart)


def _divide(features: Features, lengths: list[int]) -> list[Features]:
    """Cut features of a concatenated batch back into one record a view."""
    pooled = features.pooled.split(lengths)
    maps = {layer: value.split(lengths) for layer, value in features.maps.items()}
    cls = {layer: value.split(lengths) for layer, value in features.cls.items()}
    return [
        replace(
            features,
            pooled=pooled[i],
            maps={layer: value[i] for layer, value in maps.items()},
            cls={layer: value[i] for layer, value in cls.items()},
        )
        for i in range(len(lengths))
    ]


def build(recipe: dict[str, Any]) -> Learner:
    """The learner that a resolved recipe describes, with fresh weights.

    Raises UsageError for terms that do not fit the objective or the views, and for an encoder that
    does not split or has no such maps.
    """
    encoder = backbones.create(recipe["backbone"])
    portions.check_patch(recipe["views"], encoder)
    if recipe["checkpoint_activations"]:
        encoder.trunk.set_grad_checkpointing(True)
    settings = dict(recipe["objective"])
    invariant = encoder.split or encoder.dim
    objective = schema.pick(objectives, settings.pop("name"), "objective")(invariant, **settings)
    kinds: dict[str, type[Term]] = {
        name: schema.pick(equivariance, name, "equivariance term")
        for name in recipe["equivariance"]
    }
    for name, kind in kinds.items():
        compatibility.check_actions(name, kind, recipe["views"])
        kind.check_views(recipe["views"])
    compatibility.check(
        recipe["objective"]["name"], objective, recipe["views"], recipe["batch_size"]
    )
    terms, weights = {}, {}
    for name, kind in kinds.items():
        knobs = dict(recipe["equivariance"][name])
        weights[name] = knobs.pop("weight")
        if kind.split and encoder.split is None:
            raise UsageError(
                f"{name} needs an encoder that splits its output; say backbone.split=0.8"
            )
        terms[name] = kind(_width(encoder, kind, knobs), objective, **knobs)
    return Learner(encoder, objective, terms, weights)


def check(recipe: dict[str, Any]) -> None:
    """Refuse what `build` refuses, of a resolved recipe, without weights: on the meta device."""
    with torch.device("meta"):
        build(recipe | {"backbone": recipe["backbone"] | {"pretrained": False}})


def _width(encoder: Encoder, term: type[Term], knobs: dict[str, Any]) -> int:
    """The width of what a term reads: a block's maps, the EF part, or the whole output."""
    if term.maps:
        return encoder.channels(knobs["layer"])
    return encoder.dim - (encoder.split or 0) if term.split else encoder.dim
