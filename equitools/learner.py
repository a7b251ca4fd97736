"""The encoder with its terms: what is optimized, and the loss

    L = Σ objective terms + Σ_t weight_t · Σ terms of t

that every method of the toolkit is an instance of. The objective and the equivariance terms never
meet; both read the same Step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from equitools import augment, backbones, equivariance, names, objectives, optim
from equitools.errors import UsageError
from equitools.recipe import RUN_KEYS, TOP_MAPPINGS, apply_defaults, run_settings, schedule_settings
from equitools.records import Features, Step, View


class Learner(nn.Module):
    """Encoder, objective and equivariance terms under one roof, so that one wrapper serves all."""

    def __init__(
        self, encoder: Any, objective: Any, terms: dict[str, nn.Module], weights: dict
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.objective: Any = objective
        self.terms = nn.ModuleDict(terms)
        self.weights = {name: float(weight) for name, weight in weights.items()}

    def forward(
        self, views: list[View], target: list[Features] | None, done: float, epoch: float
    ) -> tuple[Tensor, dict[str, Tensor], Step]:
        """The loss (a scalar), its parts by name, and the step that the terms have read."""
        layers = sorted({layer for term in self.all_terms() for layer in term.layers})
        apart = getattr(self.objective, "apart", False)
        online = encode(self.encoder, views, maps=tuple(layers), apart=apart)
        step = Step(views, online, target, self.objective, done, epoch)
        parts = self.objective(step)
        loss = torch.stack([value.float() for value in parts.values()]).sum()
        for name, term in self.terms.items():
            found = term(step)
            loss = loss + self.weights[name] * sum(value.float() for value in found.values())
            parts = parts | found
        return loss, parts, step

    def all_terms(self) -> list[Any]:
        """The objective first, then the equivariance terms in the recipe's order."""
        return [self.objective, *self.terms.values()]

    @property
    def needs_target(self) -> bool:
        """Does any term read a slow encoder?"""
        return any(term.target for term in self.all_terms())

    def constant_rate(self) -> list[nn.Parameter]:
        """Parameters whose learning rate is not scheduled (SimSiam's predictors)."""
        found: list[nn.Parameter] = []
        for term in self.all_terms():
            if hasattr(term, "constant_rate"):
                found += term.constant_rate()
        return found

    def last_layers(self) -> list[nn.Parameter]:
        """Parameters of the heads' last layers, which DINO keeps still at first."""
        return [p for name, p in self.named_parameters() if "last_layer" in name]


def encode(
    encoder: nn.Module, views: list[View], maps: tuple[int, ...] = (), apart: bool = False
) -> list[Features]:
    """Features of every view, with one encoder call for each picture size.

    apart: one call a view instead, so that each has batch statistics of its own (SimSiam).
    """
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, view in enumerate(views):
        call = (*view.image.shape[-2:], view.mask is None, i if apart else 0)
        sizes.setdefault(call, []).append(i)
    features: dict[int, Features] = {}
    for members in sizes.values():
        image = torch.cat([views[i].image for i in members])
        masks = [mask for i in members if (mask := views[i].mask) is not None]
        together = encoder(image, torch.cat(masks) if masks else None, maps=maps)
        lengths = [len(views[i].image) for i in members]
        for i, part in zip(members, _divide(together, lengths), strict=True):
            features[i] = replace(part, rows=views[i].rows)
    return [features[i] for i in range(len(views))]


def _divide(features: Features, lengths: list[int]) -> list[Features]:
    """Cut features of a concatenated batch back into one record a view."""
    pooled = features.pooled.split(lengths)
    maps = {layer: value.split(lengths) for layer, value in features.maps.items()}
    return [
        replace(features, pooled=pooled[i], maps={layer: m[i] for layer, m in maps.items()})
        for i in range(len(lengths))
    ]


def resolve(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with every default written back; UsageError for what no signature knows."""
    recipe = apply_defaults(recipe)
    for part, example in (("objective", "dino"), ("backbone", "vit-mini")):
        if not isinstance(recipe.get(part), dict) or "name" not in recipe[part]:
            raise UsageError(f"the recipe names no {part}; add a layer such as '{example}'")
    top = {key: value for key, value in recipe.items() if key not in TOP_MAPPINGS}
    full: dict[str, Any] = {
        "backbone": backbones.resolve(recipe["backbone"]),
        "objective": _with_name(objectives, recipe["objective"], "objective"),
        "equivariance": {
            name: _term(name, knobs or {})
            for name, knobs in (recipe.get("equivariance") or {}).items()
        },
        "views": augment.plan(recipe.get("views") or {"global": {}}).settings,
        "optimizer": names.knobs(
            optim.optimizer_settings, recipe.get("optimizer") or {}, "recipe.optimizer"
        ),
        "schedule": names.knobs(schedule_settings, recipe.get("schedule") or {}, "recipe.schedule"),
        **names.knobs(run_settings, top, "recipe"),
    }
    optim.optimizer_settings(**full["optimizer"])
    run_settings(**{key: full[key] for key in RUN_KEYS})
    return full


def _with_name(namespace: Any, settings: dict[str, Any], what: str) -> dict[str, Any]:
    knobs = {key: value for key, value in settings.items() if key != "name"}
    found = names.pick(namespace, settings["name"], what)
    return {"name": settings["name"], **names.knobs(found, knobs, f"recipe.{what}")}


def _term(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    knobs = {key: value for key, value in settings.items() if key != "weight"}
    found = names.pick(equivariance, name, "equivariance term")
    filled = names.knobs(found, knobs, f"recipe.equivariance.{name}")
    return {"weight": float(settings.get("weight", 1.0)), **filled}


def build(recipe: dict[str, Any]) -> Learner:
    """The learner that a resolved recipe describes, with fresh weights.

    Raises UsageError for terms that do not fit the objective or an encoder that does not split.
    """
    encoder = backbones.create(recipe["backbone"])
    if recipe["checkpoint_activations"]:
        encoder.trunk.set_grad_checkpointing(True)
    settings = dict(recipe["objective"])
    invariant = encoder.split or encoder.dim
    objective = names.pick(objectives, settings.pop("name"), "objective")(invariant, **settings)
    terms, weights = {}, {}
    for name, given in recipe["equivariance"].items():
        knobs = dict(given)
        weights[name] = knobs.pop("weight")
        chosen = names.pick(equivariance, name, "equivariance term")
        if chosen.split and encoder.split is None:
            raise UsageError(
                f"{name} needs an encoder that splits its output; say backbone.split=0.8"
            )
        terms[name] = chosen(encoder.dim - invariant, objective, **knobs)
    return Learner(encoder, objective, terms, weights)
