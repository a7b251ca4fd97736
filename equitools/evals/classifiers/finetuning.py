"""Whole networks trained on labels: nothing frozen, a linear head on their features.

`paper` is Song et al. (2025, "CLeVER") for few labels and other data: SGD with momentum 0.9, lr
0.001 · batch / 256 for network and head, weight decay 1e-4 on everything, 200 epochs, cosine per
epoch to 0. `modern` is the usual recipe for ViTs (Touvron et al., 2021, "DeiT"; layer decay of Bao
et al., 2022, "BEiT"): AdamW, lr 5e-4 · batch / 512 times 0.75 for each layer below the head, mixup
or CutMix, label smoothing, stochastic depth, warm-up; by timm.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitools.backbones.encoder import Encoder
from equitools.core.errors import NumericalError, UsageError
from equitools.evals.classifiers.protocol import cosine, percents
from equitools.features.extract import vectors
from equitools.features.transform import keyed
from equitools.nn import schedules, serialization

log = logging.getLogger(__name__)
KEEP_EVERY = 30.0  # seconds between two states of a run on disk
Batches = Iterator[tuple[Tensor, Tensor]]  # normalized pictures b 3 h w, labels b


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: lr is for `per` pictures, warmup in epochs, the cosine by epochs or
    by steps; layer_decay multiplies the rate of each layer below; mixup and cutmix are the alphas
    of their Beta distributions. UsageError for what cannot be."""

    optimizer: Literal["sgd", "adamw"]
    epochs: int
    lr: float
    per: int
    weight_decay: float
    warmup: int = 0
    schedule: Literal["epoch", "step"] = "epoch"
    layer_decay: float = 1.0
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.lr <= 0:
            raise UsageError("transfer.epochs is at least 1, and transfer.lr is above 0")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"transfer.layer_decay is {self.layer_decay:g}; above 0, at most 1")
        for key in ("smoothing", "drop_path"):
            if not 0 <= getattr(self, key) < 1:
                raise UsageError(f"transfer.{key} is {getattr(self, key):g}; from 0 to below 1")
        for key in ("weight_decay", "warmup", "mixup", "cutmix"):
            if getattr(self, key) < 0:
                raise UsageError(f"transfer.{key} is {getattr(self, key):g}; it is at least 0")


MIXED: dict[str, Any] = {"smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.1}
RECIPES = {
    "paper": Recipe("sgd", 200, 0.001, 256, 1e-4),
    "modern": Recipe("adamw", 100, 5e-4, 512, 0.05, 5, "step", layer_decay=0.75, **MIXED),
}


class Classifier(nn.Module):
    """Normalized pictures b 3 h w → logits b c: a linear layer, weight N(0, 0.01) drawn from a
    seed, on some channels of an encoder's features. All of it is trained."""

    def __init__(
        self, encoder: Encoder, layers: str, channels: Tensor, classes: int, seed: int
    ) -> None:
        super().__init__()
        self.encoder, self.layers = encoder.requires_grad_(True), layers
        self.channels: Tensor
        self.register_buffer("channels", channels, persistent=False)
        self.head = nn.utils.skip_init(nn.Linear, len(channels), classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(vectors(self.encoder, image, self.layers)[:, self.channels])


@dataclass
class ResumePoint:
    """Where a run is saved after an epoch, and which run it is: another one's state is no state."""

    path: Path
    identity: str

    def save(self, cursor: dict[str, Any], network: Classifier, optimizer: Any) -> None:
        """The whole state, in one atomic file."""
        moments = serialization.optimizer_tensors(optimizer)
        states = {"network": network.state_dict(), "optimizer": moments}
        cursor = {**cursor, "identity": self.identity}
        serialization.save_tensors(self.path, serialization.pack(cursor, **states))

    def restore(self, network: Classifier, optimizer: Any) -> dict[str, Any] | None:
        """Put the state back, bit for bit; its cursor, or None where this run has none."""
        if not self.path.exists():
            return None
        cursor, states = serialization.unpack(serialization.load_tensors(self.path))
        if cursor["identity"] != self.identity:
            return None
        network.load_state_dict(states["network"])
        serialization.load_optimizer(optimizer, states.get("optimizer", {}))
        return cursor


def fit(
    network: Classifier,
    train: Callable[[int], Batches],
    test: Callable[[], Batches],
    recipe: Recipe,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int], Any] | None = None,
    resume: ResumePoint | None = None,
) -> dict[str, float]:
    """Train; percents on `test` after the last epoch, and as `best/…` of the epoch whose top-1 is
    the highest there.

    train(epoch) gives its `steps` batches; progress is told of pictures. The result follows from
    the seed; with `resume`, a run that was killed goes on after its last saved epoch and ends the
    same. Raises NumericalError when the loss is no longer finite.
    """
    optimizer = _optimizer(network, recipe, batch_size)
    cursor: dict[str, Any] = {"epoch": 0, "pictures": 0, "best": {"top1": -1.0}}
    if resume is not None and (state := resume.restore(network, optimizer)):
        cursor = state
        log.info("fine-tuning goes on after epoch %d of %d", cursor["epoch"], recipe.epochs)
        if progress is not None:
            progress(cursor["pictures"])
    saved = time.monotonic()
    for epoch in range(cursor["epoch"], recipe.epochs):
        with _drawn_from(seed, epoch, network.head.weight.device):
            cursor["pictures"] += _epoch(
                network, train(epoch), optimizer, recipe, epoch, steps, progress
            )
        cursor["scores"] = judge(network, test())
        cursor["best"] = max(cursor["best"], cursor["scores"], key=lambda one: one["top1"])
        cursor["epoch"] = epoch + 1
        done = epoch + 1 == recipe.epochs
        if resume is not None and (done or time.monotonic() - saved >= KEEP_EVERY):
            resume.save(cursor, network, optimizer)
            saved = time.monotonic()
    return cursor["scores"] | {f"best/{key}": value for key, value in cursor["best"].items()}


def _epoch(
    network: Classifier,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    epoch: int,
    steps: int,
    progress: Callable[[int], Any] | None,
) -> int:
    """Train on every batch; how many pictures they had."""
    network.train()
    count, total = 0, torch.zeros((), device=network.head.weight.device)
    for step, (image, labels) in enumerate(batches):
        _set_rates(optimizer, recipe, epoch, step / steps)
        image, targets = mixed(image, labels, network.head.out_features, recipe)
        loss = F.cross_entropy(network(image), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
        count += len(labels)
        if progress is not None:
            progress(len(labels))
    if not total.isfinite():
        raise NumericalError(
            f"fine-tuning: the loss is not finite in epoch {epoch + 1}; give a smaller lr"
        )
    return count


@torch.no_grad()
def judge(network: nn.Module, batches: Batches) -> dict[str, float]:
    """Percents of a network in evaluation mode."""
    network.eval()
    answers = [(network(image), labels) for image, labels in batches]
    logits, labels = (torch.cat(parts) for parts in zip(*answers, strict=True))
    return percents(logits, labels)


def mixed(image: Tensor, labels: Tensor, classes: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """A batch after mixup or CutMix of its first half with its second turned round (the odd one
    stays as it is), and its smoothed targets b c."""
    from timm.data.mixup import Mixup, mixup_target

    even = len(labels) - len(labels) % 2 if recipe.mixup or recipe.cutmix else 0
    targets = mixup_target(labels[even:], classes, 1.0, recipe.smoothing)
    if not even:
        return image, targets
    mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=classes)
    first, soft = mix(image[:even].clone(), labels[:even])
    return torch.cat([first, image[even:]]), torch.cat([soft, targets])


def _optimizer(network: Classifier, recipe: Recipe, batch_size: int) -> torch.optim.Optimizer:
    """Its groups have `base`, the rate before the schedule."""
    rate = recipe.lr * batch_size / recipe.per
    if recipe.optimizer == "sgd" and recipe.layer_decay == 1:
        groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
        groups[0]["weight_decay"] = recipe.weight_decay
    else:
        groups = _by_layer(network, recipe)
    for group in groups:
        group["base"] = rate * group.pop("lr_scale", 1.0)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=rate)


def _by_layer(network: Classifier, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups by layer; biases, norms and positions are not decayed."""
    from timm.optim import param_groups_layer_decay

    trunk: Any = getattr(network.encoder, "trunk", network.encoder)
    bare = trunk.no_weight_decay() if hasattr(trunk, "no_weight_decay") else ()
    groups = [{"params": [network.head.weight], "weight_decay": recipe.weight_decay}]
    groups.append({"params": [network.head.bias], "weight_decay": 0.0})
    if any(True for _ in trunk.parameters()):
        groups += param_groups_layer_decay(
            trunk, recipe.weight_decay, no_weight_decay_list=bare, layer_decay=recipe.layer_decay
        )
    return groups


def _set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int, share: float) -> None:
    """The schedule: half a cosine to 0 by whole epochs, or by steps after a linear warm-up."""
    if recipe.schedule == "epoch":
        scale = cosine(epoch, recipe.epochs)
    else:
        done, warmup = (epoch + share) / recipe.epochs, min(recipe.warmup / recipe.epochs, 0.5)
        scale = schedules.warmup_cosine(1.0, 0.0, done, warmup)
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * scale


@contextmanager
def _drawn_from(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """What torch and numpy (timm's mixup) draw inside follows from seed and epoch, and outside from
    what it was before."""
    state, drawn = np.random.get_state(), keyed("finetune", seed, epoch)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(drawn)
            np.random.seed(drawn % 2**32)
            yield
    finally:
        np.random.set_state(state)


def steps_of(count: int, batch_size: int) -> int:
    """Batches of an epoch; the last may be smaller, and none is left out."""
    return math.ceil(count / batch_size)
