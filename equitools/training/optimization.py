"""A run's optimizer and rates, and the micro-batches of a step added up."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from equitools.core import distributed
from equitools.core.records import Features, Step
from equitools.nn import collapse, optim


def make_optimizer(settings: dict[str, Any], model: Any) -> torch.optim.Optimizer:
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
    length: Any,
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


def sync_only_last(accelerator: Any, model: nn.Module, last: bool) -> AbstractContextManager:
    """Processes exchange gradients once a step, with the last micro-batch."""
    return nullcontext() if last else accelerator.no_sync(model)


class Sums:
    """The micro-batches of a step: loss and parts added up, and what the encoder says of each."""

    def __init__(self) -> None:
        self.values: dict[str, torch.Tensor] = {}
        self.said: list[Features] = []
        self.count = 0

    def add(self, loss: torch.Tensor, parts: dict[str, torch.Tensor], record: Step | None) -> None:
        """Count one micro-batch; record: what the collapse watch will look at, if it is due."""
        self.said += collapse.said(record) if record is not None else []
        for name, value in {"": loss, **parts}.items():
            self.values[name] = self.values.get(name, 0) + value.detach().float()
        self.count += 1

    def means(self) -> tuple[float, dict[str, float]]:
        """Of the whole batch, over micro-batches and processes: the loss, and its parts by name."""
        whole = distributed.mean_across(torch.stack(list(self.values.values())) / self.count)
        loss, *parts = whole.tolist()
        return loss, dict(zip(list(self.values)[1:], parts, strict=True))
