"""Labeled pictures as an encoder sees them: features of both splits, or batches to train it on.

Pictures of a split are shown under the evaluation transform, or as new random crops each epoch that
depend on (seed, epoch, row) alone.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equitools import backbones, manifest
from equitools.backbones import checkpoint
from equitools.backbones.encoder import Encoder
from equitools.data.shards.index import ShardIndex
from equitools.evals.classifiers import finetuning
from equitools.features import encoders
from equitools.features.extract import choose_layers, extract, loading, stream, subset
from equitools.features.labels import classes_of, require_labels
from equitools.features.table import FeatureTable, Stream, channels
from equitools.features.transform import Transform, evaluation_transform, keyed, load

SHAPE = ("size", "crop_pct", "interpolation")
log = logging.getLogger(__name__)


def view_of(encoder: Encoder, settings: dict[str, Any]) -> Transform:
    """How the settings show pictures to an encoder; UsageError for parts that it does not have."""
    for part in settings["parts"]:
        channels(1, encoder.dim, encoder.split, part, settings["split"])
    return evaluation_transform(encoder, **{key: settings[key] for key in SHAPE})


def digests(splits: dict[str, ShardIndex]) -> dict[str, str]:
    """What the shards of each split are known by."""
    return {split: index.digest for split, index in splits.items()}


@dataclass
class Labeled:
    """Labeled splits as the settings show them to an encoder, `rows` of each: up to the limit.

    settings: those of `transfer` or `probe`. cache: the folder of features; out: of everything
    else. progress(total, what, unit) is a display with `advance`. notes: what an evaluation's
    record says of the data; absent: how many classes have no training picture, once `check` has
    counted. UsageError for parts or layers that the encoder does not have.
    """

    encoder: Encoder
    splits: dict[str, ShardIndex]
    settings: dict[str, Any]
    document: dict[str, Any]
    out: Path
    progress: Callable[..., Any]
    notes: dict[str, Any] = field(default_factory=dict)
    absent: int | None = None

    def __post_init__(self) -> None:
        limit, wanted = self.settings["limit"], self.settings["encoder"]
        self.transform = view_of(self.encoder, self.settings)
        self.layers = choose_layers(self.encoder, self.settings["layers"], "cls4")
        self.rows = {split: subset(len(index), limit) for split, index in self.splits.items()}
        self.cache = encoders.features_folder(self.document, wanted, self.out)

    @property
    def parts(self) -> list[str]:
        return self.settings["parts"]

    @property
    def slicing(self) -> str:
        return self.settings["split"]

    @property
    def classes(self) -> int:
        """How many classes either split has."""
        return max(classes_of(index) for index in self.splits.values())

    def labels(self, split: str) -> Tensor:
        """The labels of the split's rows, n int64."""
        return torch.as_tensor(np.asarray(self.splits[split].labels)[self.rows[split]])

    def require_labels(self) -> None:
        """Refuse labels that are missing or out of range."""
        for split, index in self.splits.items():
            keys = [index.keys[i] for i in self.rows[split]]
            table = FeatureTable(torch.empty(0), self.labels(split), keys, self.classes)
            require_labels(table, split)

    def check(self) -> None:
        """Refuse labels that are missing or out of range; count classes without a picture."""
        self.require_labels()
        counts = torch.bincount(self.labels("train"), minlength=self.classes)
        absent = (counts == 0).nonzero().flatten().tolist()
        self.absent = len(absent)
        if absent:
            names: Sequence[object] = self.splits["train"].classes or range(self.classes)
            first = ", ".join(str(names[label]) for label in absent[:3])
            named = f"{first}{' …' if len(absent) > 3 else ''}"
            what = f"{len(absent)} of {self.classes} classes have no training picture ({named})"
            log.warning("%s; their test pictures count as wrong", what)
        tested = torch.bincount(self.labels("val"), minlength=self.classes)
        self.notes["classes_without_test"] = int((tested == 0).sum())

    def tables(self) -> tuple[FeatureTable, ...]:
        """Features of the splits under the evaluation transform, on the device."""
        tables = []
        for split, index in self.splits.items():
            with self.progress(len(self.rows[split]), f"features of {split}", "image") as bar:
                table = extract(
                    self.encoder,
                    index,
                    transform=self.transform,
                    layers=self.layers,
                    cache=self.cache,
                    progress=bar.advance,
                    **loading(self.settings),
                )
            if table.read:
                log.info("features of %s: %s", split, table.read)
            table.classes = self.classes
            table.features = table.features.to(self.settings["device"])
            tables.append(table)
        return tuple(tables)

    @contextmanager
    def training(self, train: FeatureTable) -> Iterator[None]:
        """A display of the samples that heads are trained on, which `train.progress` counts."""
        total = len(train.labels) * self.settings["epochs"] * len(self.settings["seeds"])
        with self.progress(total, "training heads", "sample") as bar:
            train.progress = bar.advance
            yield

    def stream(self) -> Stream:
        """Features of new crops of the training pictures each epoch ."""
        return stream(
            self.encoder,
            self.splits["train"],
            self.rows["train"],
            transform=self.transform,
            layers=self.layers,
            device=self.settings["device"],
            workers=self.settings["workers"],
        )

    def network(self, part: str, seed: int, drop_path: float) -> finetuning.Classifier:
        """A classifier on a copy of the encoder, with stochastic depth."""
        encoder = copy.deepcopy(self.encoder)
        if drop_path and hasattr(self.encoder, "settings"):
            wanted = {**self.encoder.settings, "pretrained": False, "drop_path": drop_path}
            encoder = backbones.create(wanted)
            encoder.load_state_dict(self.encoder.state_dict())
        blocks = 1 if self.layers == "last" else int(self.layers.removeprefix("cls"))
        chosen = channels(blocks, encoder.dim, encoder.split, part, self.slicing)
        made = finetuning.Classifier(encoder, self.layers, chosen, self.classes, seed)
        return made.to(self.settings["device"])

    def resume_point(self, part: str, seed: int, *matters: Any) -> finetuning.ResumePoint:
        """Where the training of one network is saved, and what makes it that training."""
        named = (encoders.fingerprint(self.encoder), digests(self.splits), self.rows)
        view = {key: self.settings[key] for key in ("layers", "split", *SHAPE)}
        identity = manifest.identity("finetune", part, seed, *matters, *named, view)
        return finetuning.ResumePoint(self._folder(part, seed) / "resume.safetensors", identity)

    def keep_network(
        self, part: str, seed: int, network: finetuning.Classifier
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Save a trained encoder; its file's entry by name, and the head by name."""
        name = f"{part}/seed{seed}"
        head = {f"{name}/weight": network.head.weight, f"{name}/bias": network.head.bias}
        if not hasattr(network.encoder, "trunk"):  # raw pixels have nothing to save but the head
            return {}, head
        entry = checkpoint.save_encoder(self._folder(part, seed), network.encoder)
        return {f"transfer.encoder/{name}": entry}, head

    def forget_runs(self) -> None:
        """Remove what only a killed run needs."""
        for path in (self.out / "networks").glob("*/*/resume.safetensors"):
            path.unlink()

    def _folder(self, part: str, seed: int) -> Path:
        folder = self.out / "networks" / part / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def train_batches(self, batch_size: int, seed: int, epoch: int) -> finetuning.Batches:
        """New crops of the training pictures in a new order; none is left out."""
        rows = self.rows["train"]
        draw = torch.Generator().manual_seed(keyed("order", seed, epoch))
        order = torch.randperm(len(rows), generator=draw).tolist()
        return self._batches("train", [rows[i] for i in order], batch_size, (seed, epoch))

    def test_batches(self) -> finetuning.Batches:
        """The test pictures under the evaluation transform."""
        return self._batches("val", self.rows["val"], self.settings["extract_batch_size"])

    def _batches(
        self, split: str, rows: Sequence[int], size: int, augment: tuple[int, int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        index, device = self.splits[split], self.settings["device"]
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        shown = load(
            index, batches, self.transform, augment, device=device, workers=self.settings["workers"]
        )
        for batch, pixels in zip(batches, shown, strict=True):
            labels = torch.as_tensor(np.asarray(index.labels)[batch]).to(device)
            yield self.transform.normalized(pixels), labels

    def facts(self) -> dict[str, Any]:
        """What a record says of data, features and pictures."""
        return {
            "features": f"{self.layers}, fp32",
            "slicing": f"{self.slicing}; invariant are {self.encoder.split} of {self.encoder.dim}",
            "transform": self.transform.describe(),
            "metric": "percent of all test samples; macro is the mean over classes",
            "train_samples": len(self.rows["train"]),
            "test_samples": len(self.rows["val"]),
            "classes": self.classes,
            **({} if self.absent is None else {"absent_classes": self.absent}),
            "data": digests(self.splits),
            **self.notes,
        }
