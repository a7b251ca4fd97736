"""A recipe with every default written back, and the length of the run that it asks for.

Samples seen is the only clock: epochs are a multiplication. Step s takes the global positions
[s·B, (s+1)·B); a prelude (DDCL's warm-up epochs) comes before the counted run.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

from equitools.errors import UsageError
from equitools.manifest import fold

TOP_MAPPINGS = ("backbone", "objective", "equivariance", "views", "optimizer", "schedule")
# What may change between a run and its resumption without changing the result.
NOT_IDENTITY = (
    "device", "workers", "processes", "checkpoint_every", "trackers", "log_every", "watch_every",
    "knn_every", "on_collapse", "cache",
)  # fmt: skip

Duration = float | int | str


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
    trackers: tensorboard, wandb. export: slow or online; None is what the objective declares.
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


def share(duration: Duration, epochs: float, what: str) -> float:
    """A duration (epochs, or "10%") as a share of a run of so many epochs.

    Raises UsageError when it is longer than the run.
    """
    if isinstance(duration, str):
        try:
            part = float(duration.removesuffix("%")) / 100
        except ValueError:
            part = -1.0
        if not duration.endswith("%") or not 0 <= part <= 1:
            raise UsageError(f"{what} is '{duration}'; a duration is epochs (10) or a share (10%)")
        return part
    if duration > epochs:
        raise UsageError(
            f"{what} is {duration:g} epochs but the run has {epochs:g}; shorten it or say a share,"
            f" as in {what.removeprefix('recipe.')}=10%"
        )
    return duration / epochs


@dataclass(frozen=True)
class Length:
    """How long a run is, counted in steps of `batch_size` images over all processes."""

    samples: int
    batch_size: int
    prelude: int
    main: int

    @property
    def steps(self) -> int:
        """Steps of the prelude and the counted run together."""
        return self.prelude + self.main

    @property
    def epochs(self) -> float:
        """Epochs of the counted run."""
        return self.main * self.batch_size / self.samples

    def done(self, step: int) -> float:
        """The share of the counted run that is behind a step; 0 during the prelude."""
        return max(0, step - self.prelude) / self.main

    def epoch(self, step: int) -> float:
        """Passes over the data of the counted run; 0 during the prelude."""
        return max(0, step - self.prelude) * self.batch_size / self.samples

    def ramp(self, step: int) -> float:
        """How far the prelude is, in [0, 1); 1 after it."""
        return 1.0 if step >= self.prelude else step / self.prelude


def length(recipe: dict[str, Any], samples: int) -> Length:
    """The length of a resolved recipe's run over a train split of so many samples."""
    batch = recipe["batch_size"]
    steps = recipe["steps"] or max(1, int(recipe["epochs"] * samples / batch + 1e-6))
    prelude = round(recipe["schedule"]["prelude"] * samples / batch)
    return Length(samples=samples, batch_size=batch, prelude=prelude, main=steps)


def asked_epochs(recipe: dict[str, Any], run: Length) -> float:
    """The epochs that durations are shares of: those asked for, of which a part of a batch is lost
    at the end, or what the asked steps come to."""
    return run.epochs if recipe["steps"] else recipe["epochs"]
