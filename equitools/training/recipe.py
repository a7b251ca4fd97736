"""A recipe with every default written back, and the length of the run that it asks for.

Samples seen is the only clock: epochs are a multiplication. Step s takes the global positions
[s·B, (s+1)·B); a prelude (DDCL's warm-up epochs) comes before the counted run.
"""

import copy
import inspect
from types import ModuleType
from typing import Any

from equitools import augment, backbones, equivariance, objectives
from equitools.core.errors import UsageError
from equitools.manifest import history, schema
from equitools.manifest.fold import fold
from equitools.nn import optim
from equitools.nn.schedules import Duration
from equitools.training import portions

TOP_MAPPINGS = ("backbone", "objective", "equivariance", "views", "optimizer", "schedule")
# What may change between a run and its resumption without changing the result.
NOT_IDENTITY = {"device", "workers", "processes", "cache", "trackers", "on_collapse"}
NOT_IDENTITY |= {"checkpoint_every", "log_every", "watch_every", "knn_every"}


def run_settings(
    *,
    epochs: float = 100.0,
    steps: int | None = None,
    batch_size: int = 256,
    accumulate: int = 1,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    processes: int | None = None,
    workers: int | None = None,
    cache: str = "none",
    compile: bool = False,
    checkpoint_activations: bool = False,
    checkpoint_every: int = 500,
    log_every: int = 10,
    watch_every: int = 50,
    knn_every: float = 10.0,
    on_collapse: str = "warn",
    trackers: list | None = None,
    export: str | None = None,
) -> dict[str, Any]:
    """The keys at the top of `recipe`; the signature is the schema.

    epochs: passes over the train split, unless `steps` says how many optimizer steps.
    batch_size: images a step over all processes. accumulate: forward passes a step.
    precision: fp32, bf16, or auto (bf16 on GPUs that have it). processes: None uses every local
    GPU. workers: loader processes of each process; None chooses. cache: none; memory to decode
    each picture once and keep it (small data; the views are the same); device to keep them where
    the model is and crop there (the same within two levels of 255). compile: through
    torch.compile.
    checkpoint_activations: compute them again in the backward pass. checkpoint_every, log_every,
    watch_every: in steps; knn_every: in epochs, 0 is off. on_collapse: warn or stop.
    trackers: tensorboard, wandb. export: slow (the target network) or online; None is what
    the objective declares.
    """
    values = dict(locals())
    _choice(values, "precision", ("auto", "fp32", "bf16"))
    _choice(values, "on_collapse", ("warn", "stop"))
    _choice(values, "cache", ("none", "memory", "device"))
    _choice(values, "export", (None, "slow", "online"))
    for key in ("batch_size", "accumulate", "checkpoint_every", "log_every", "watch_every"):
        if values[key] < 1:
            raise UsageError(f"recipe.{key} is {values[key]}; it must be at least 1")
    if epochs <= 0 or (steps is not None and steps < 1):
        raise UsageError("a run needs epochs > 0, or steps of at least 1")
    return values


RUN_KEYS = frozenset(inspect.signature(run_settings).parameters)


def schedule_settings(
    *, warmup_epochs: Duration = 10, freeze_last_layer: Duration = 1, prelude: float = 0.0
) -> dict[str, Any]:
    """The knobs of `recipe.schedule`. A duration is a number of epochs, or "10%" of the run.

    warmup_epochs: linear warm-up of the learning rate. freeze_last_layer: how long the last
    layers of heads get no gradient (DINO). prelude: epochs before the counted run, with a rate
    that rises linearly and an optimizer of their own (DDCL).
    """
    return dict(locals())


def _choice(values: dict[str, Any], key: str, choices: tuple) -> None:
    if values[key] not in choices:
        allowed = ", ".join(str(choice) for choice in choices if choice is not None)
        raise UsageError(f"recipe.{key} is '{values[key]}'; it is one of {allowed}")


def apply_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """Fold `recipe.defaults` under what the recipe says; only what the recipe has is touched.

    Knobs of a term stand under the term's name, those of a view group under `views`; so a small
    backbone can say what suits it, whatever the order of the layers.
    """
    recipe = copy.deepcopy(recipe)
    defaults = recipe.pop("defaults", None) or {}
    if not isinstance(defaults, dict):
        raise UsageError("recipe.defaults must be a mapping")
    under: dict[str, Any] = {}
    for key, value in defaults.items():
        if key == "views":
            under["views"] = _known_groups(value, recipe.get("views") or {})
        elif (recipe.get("objective") or {}).get("name") == key:
            under["objective"] = {"name": key, **value}
        elif key in (recipe.get("equivariance") or {}):
            under.setdefault("equivariance", {})[key] = value
        elif key in RUN_KEYS or key in ("backbone", "optimizer", "schedule"):
            under[key] = value
    return fold(under, recipe)


def _known_groups(defaults: dict[str, Any], views: dict[str, Any]) -> dict[str, Any]:
    """Leave out defaults of view groups that the recipe does not have."""
    return {
        key: value
        for key, value in defaults.items()
        if not isinstance(value, dict) or isinstance(views.get(key), dict)
    }


def resolve(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with every default written back; UsageError for what no signature knows."""
    recipe = apply_defaults(recipe)
    for part, example in (("objective", "dino"), ("backbone", "vit-mini")):
        if not isinstance(recipe.get(part), dict) or "name" not in recipe[part]:
            raise UsageError(f"the recipe names no {part}; add a layer such as '{example}'")
    top = {key: value for key, value in recipe.items() if key not in TOP_MAPPINGS}
    plan = augment.plan(recipe.get("views") or {"global": {}})
    full: dict[str, Any] = {
        "backbone": backbones.resolve(recipe["backbone"]),
        "objective": _with_name(objectives, recipe["objective"], "objective"),
        "equivariance": {
            name: _term(name, knobs or {})
            for name, knobs in (recipe.get("equivariance") or {}).items()
        },
        "views": plan.settings,
        "optimizer": schema.knobs(
            optim.optimizer_settings, recipe.get("optimizer") or {}, "recipe.optimizer"
        ),
        "schedule": schema.knobs(
            schedule_settings, recipe.get("schedule") or {}, "recipe.schedule"
        ),
        **schema.knobs(run_settings, top, "recipe"),
    }
    optim.optimizer_settings(**full["optimizer"])
    run_settings(**{key: full[key] for key in RUN_KEYS})
    portions.members(plan.portion, full["batch_size"])
    return full


def identity(settings: dict[str, Any], shards: str) -> str:
    """The digest of a resolved recipe and its shards: what two runs share to be the same run."""
    matters = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    return history.identity(matters, shards)


def _with_name(namespace: ModuleType, settings: dict[str, Any], what: str) -> dict[str, Any]:
    knobs = {key: value for key, value in settings.items() if key != "name"}
    chosen = schema.pick(namespace, settings["name"], what)
    return {"name": settings["name"], **schema.knobs(chosen, knobs, f"recipe.{what}")}


def _term(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    knobs = {key: value for key, value in settings.items() if key != "weight"}
    chosen = schema.pick(equivariance, name, "equivariance term")
    filled = schema.knobs(chosen, knobs, f"recipe.equivariance.{name}")
    return {"weight": float(settings.get("weight", 1.0)), **filled}
