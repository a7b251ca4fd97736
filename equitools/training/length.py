"""How long a run is, in steps of the data that it has."""

from dataclasses import dataclass
from typing import Any

from equitools.nn.schedules import share


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


def run_length(recipe: dict[str, Any], samples: int) -> Length:
    """The length of a resolved recipe's run over a train split of so many samples."""
    batch = recipe["batch_size"]
    steps = recipe["steps"] or max(1, int(recipe["epochs"] * samples / batch + 1e-6))
    prelude = round(recipe["schedule"]["prelude"] * samples / batch)
    return Length(samples=samples, batch_size=batch, prelude=prelude, main=steps)


def asked_epochs(recipe: dict[str, Any], run: Length) -> float:
    """The epochs that durations are shares of: those asked for, of which a part of a batch is lost
    at the end, or what the asked steps come to."""
    return run.epochs if recipe["steps"] else recipe["epochs"]


def durations(settings: dict[str, Any], epochs: float) -> dict[str, float]:
    """A resolved recipe's durations as shares of the run; UsageError when longer than it."""
    return {
        key: share(settings["schedule"][key], epochs, f"recipe.schedule.{key}")
        for key in ("warmup_epochs", "freeze_last_layer")
    }
