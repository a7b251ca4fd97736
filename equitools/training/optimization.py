"""A run's optimizer and rates, and the micro-batches of a step added up."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from equitools.core import distributed
from equitools.core.records import Features, Step
from equitools.nn import collapse, optim
from equitools.training.learner import Learner
from equitools.training.length import Length
from equitools.training.metrics import flat, trackers_of


def make_optimizer(settings: dict[str, Any], model: Learner) -> torch.optim.Optimizer:
    """The recipe's optimizer over every trainable parameter of the learner."""
    groups = optim.parameter_groups(
        model.named_parameters(),
        decay_bias=settings["optimizer"]["decay_bias"],
        constant_rate=model.constant_rate(),
    )
    return optim.create(settings["optimizer"], groups)


def set_rates(
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
    length: Length,
    warmup: float,
    step: int,
) -> float:
    """This step's learning rate: a linear ramp over the prelude, then the schedule."""
    knobs, batch = settings["optimizer"], settings["batch_size"]
    done = length.done(step)
    rate = optim.set_rates(optimizer, knobs, batch_size=batch, done=done, warmup=warmup)
    if step >= length.prelude:
        return rate
    rate = knobs["lr"] * batch / knobs["lr_reference"] * length.ramp(step)
    for group in optimizer.param_groups:
        group["lr"] = optim.own_share(knobs, group) * rate
    return rate


def sync_only_last(
    accelerator: Accelerator, model: nn.Module, last: bool
) -> AbstractContextManager:
    """Processes exchange gradients once a step, with the last micro-batch."""
    return nullcontext() if last else accelerator.no_sync(model)


def accelerate(settings: dict[str, Any], out: Path) -> Accelerator:
    """Accelerate with a run's device, precision and trackers; UsageError for one that lacks."""
    distributed.start(settings["device"])
    accelerator = Accelerator(
        cpu=settings["device"] == "cpu",
        mixed_precision="bf16" if settings["precision"] == "bf16" else "no",
        log_with=trackers_of(settings) or None,
        project_dir=out,
    )
    if settings["trackers"]:
        accelerator.init_trackers("equitools", config=flat(settings))
    return accelerator


def update(
    optimizer: torch.optim.Optimizer, model: Learner, settings: dict[str, Any], *, frozen: bool
) -> None:
    """Clip and apply the gradients; frozen: without those of the heads' last layers."""
    for parameter in model.last_layers() if frozen else ():
        parameter.grad = None
    knobs = settings["optimizer"]
    optim.clip_gradients(model.parameters(), knobs["clip"], knobs["clip_per"])
    optimizer.step()


class Sums:
    """The micro-batches of a step: losses added up, and the features that the watch looks at."""

    def __init__(self) -> None:
        self.values: dict[str, torch.Tensor] = {}
        self.features: list[Features] = []
        self.count = 0

    def add(self, loss: torch.Tensor, losses: dict[str, torch.Tensor], record: Step | None) -> None:
        """Count one micro-batch; record: what the collapse watch will look at, if it is due."""
        self.features += collapse.watched_features(record) if record is not None else []
        for name, value in {"": loss, **losses}.items():
            self.values[name] = self.values.get(name, 0) + value.detach().float()
        self.count += 1

    def means(self) -> tuple[float, dict[str, float]]:
        """Of the whole batch, over micro-batches and processes: the loss, and its parts by name."""
        whole = distributed.mean_across(torch.stack(list(self.values.values())) / self.count)
        loss, *losses = whole.tolist()
        return loss, dict(zip(list(self.values)[1:], losses, strict=True))
