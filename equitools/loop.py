"""What stands around the loop of equi-pretrain: its optimizer, its rates, what it leaves behind."""

from __future__ import annotations

import copy
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import timm
import torch
from torch import nn

from equitools import (
    augment,
    checkpoint,
    collapse,
    features,
    manifest,
    optim,
    parallel,
    shards,
    state,
)
from equitools.errors import NumericalError, UsageError
from equitools.evals.knn import knn
from equitools.preprocess import evaluation_transform
from equitools.records import Features, Step

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


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


def worker_count(settings: dict[str, Any]) -> int:
    """Loader processes of each process: what the recipe says, else a share of the cores."""
    if settings["workers"] is not None:
        return settings["workers"]
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if settings["device"] == "cpu":
        return 1
    return max(1, min(8, cores // max(1, parallel.world_size())))


def sync_only_last(accelerator: Any, model: nn.Module, last: bool) -> AbstractContextManager:
    """Processes exchange gradients once a step, with the last micro-batch."""
    return nullcontext() if last else accelerator.no_sync(model)


def stop_if_broken(
    loss: torch.Tensor, parts: dict[str, torch.Tensor], step: int, saved: int
) -> None:
    """Raise NumericalError naming the terms that are not finite, in whichever process they are.

    saved: the step of the last saved state, 0 for none.
    """
    broken = not bool(torch.isfinite(loss))
    if parallel.any_across(broken, loss.device):
        bad = [name for name, value in parts.items() if not bool(torch.isfinite(value))]
        where = ", ".join(bad) or ("the sum of terms" if broken else "another process's loss")
        kept = f"the state of step {saved} is kept" if saved else "nothing was saved before it"
        raise NumericalError(
            f"step {step + 1}: {where} is not finite; {kept}."
            " A lower optimizer.lr, or precision=fp32, is what usually helps"
        )


def trackers_of(settings: dict[str, Any]) -> list[str]:
    """The trackers to log with; UsageError naming the extra when one is not installed."""
    for name in settings["trackers"] or []:
        if name not in PACKAGES:
            raise UsageError(f"no tracker '{name}'; there are {', '.join(PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UsageError(f"{name} is not installed: pip install 'equitools[trackers]'")
    return list(settings["trackers"] or [])


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
        whole = parallel.mean_across(torch.stack(list(self.values.values())) / self.count)
        loss, *parts = whole.tolist()
        return loss, dict(zip(list(self.values)[1:], parts, strict=True))


def look(
    settings: dict[str, Any], model: Any, record: Step, said: list[Features],
    losses: dict[str, float],
) -> tuple[dict[str, float], list[str]]:  # fmt: skip
    """The collapse watch of one step: its readings, and in words what is wrong, if anything is.

    record: its last micro-batch, which the terms look at; said: what the encoder says of them all.
    """
    signs: dict[str, float] = {}
    for owner, term in [(settings["objective"]["name"], model.objective), *model.terms.items()]:
        if hasattr(term, "diagnostics"):
            signs |= {f"{owner}/{key}": value for key, value in term.diagnostics(record).items()}
    readings = collapse.measure(said) | _mean(parallel.everyones(signs))
    return readings, collapse.describe(readings, losses)


def _mean(said: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each reading over the processes that have it: a portion may be elsewhere."""
    keys = dict.fromkeys(key for one in said for key in one)
    return {key: fmean(one[key] for one in said if key in one) for key in keys}


def note(noted: dict[str, str], words: list[str], step: int) -> list[str]:
    """Keep what the watch says for the first time, with its step; returns what is new.

    Sentences are the same when they differ in their numbers only, which stand after the colon.
    """
    fresh = {word.split(":")[0]: f"step {step}: {word}" for word in words}
    fresh = {kind: said for kind, said in fresh.items() if kind not in noted}
    noted |= fresh
    return list(fresh.values())


def flat(line: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """A nested line of metrics as `a/b: number`, for trackers."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            found[prefix + key] = float(value)
    return found


def shown(line: dict[str, Any]) -> dict[str, str]:
    """What the progress display takes from a line of metrics."""
    if "loss" not in line:
        return {}
    return {"loss": f"{line['loss']:.4f}", "waiting for data": f"{100 * line['waited']:.0f} %"}


def crossed(every: float, length: Any, step: int) -> bool:
    """Does this step end another `every` epochs, or the run?"""
    if every <= 0:
        return False
    now, before = length.epoch(step + 1), length.epoch(step)
    return int(now / every) > int(before / every) or step + 1 == length.steps


def exported(settings: dict[str, Any], model: Any, slow: nn.Module | None) -> tuple[str, nn.Module]:
    """Which encoder the checkpoint holds: the recipe's choice, else the objective's."""
    choice = settings["export"] or model.objective.exports
    if choice == "slow" and slow is None:
        name = settings["objective"]["name"]
        raise UsageError(f"export=slow, but {name} keeps no slow encoder; say export=online")
    return choice, slow if choice == "slow" and slow is not None else model.encoder


def write_outputs(
    settings: dict[str, Any], model: Any, slow: nn.Module | None, out: Path
) -> dict[str, Any]:
    """Write the encoder and the heads; returns the manifest's entries by name."""
    _, encoder = exported(settings, model, slow)
    files = {"encoder": checkpoint.save_encoder(out, encoder)}
    checkpoint.save_tensors(out / "heads.safetensors", state.heads(model))
    files["heads"] = manifest.entry(out / "heads.safetensors")
    files["metrics"] = manifest.entry(out / "metrics.jsonl")
    return files


def nearest_neighbors(
    settings: dict[str, Any], document: dict[str, Any], index: Any, encoder: nn.Module
) -> dict[str, float]:
    """20-nearest-neighbor accuracy, in percent, and effective rank, on a val split if there is one.

    At most 25,000 training and 5,000 val samples, so that ImageNet does not stop for it.
    """
    if "shards.val" not in document["files"] or (index.labels < 0).any():
        return {}
    frozen = copy.deepcopy(encoder)  # extraction freezes what it reads
    transform = evaluation_transform(frozen)
    train, val = (
        features.extract(frozen, split, transform=transform, device=settings["device"], limit=limit)
        for split, limit in ((index, 25_000), (shards.open_split(document, "val"), 5_000))
    )
    found = knn(train.features, train.labels, val.features, val.labels, ks=[20])
    return found | {"effective_rank": collapse.effective_rank(val.features)}


def platform(settings: dict[str, Any]) -> dict[str, Any]:
    """Where the run ran: versions, device and processes, for the history."""
    cuda = settings["device"] != "cpu"
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "processes": parallel.world_size(),
        "threads": torch.get_num_threads(),
        "precision": settings["precision"],
        "augmentation": augment.engine(settings["device"]),
    }
