"""Other labeled data for an encoder: where they lie, what is checked, and how they are shown.

`data` is a folder or manifest of shards, an image folder with train/ and val/ (packed as equi-shard
packs it, into shards/ below the output), or nothing: the document's own shards. Both splits need
the same list of classes. A class without a training picture is kept, counted and warned about: the
test pictures of it are counted as any, and are wrong.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from equitools import (
    backbones,
    encoders,
    features,
    finetune,
    manifest,
    preprocess,
    selection,
    sharding,
    shards,
)  # fmt: skip
from equitools.errors import DataError
from equitools.sources import Source

SPLITS = ("train", "val")
said = logging.getLogger("equitools")


def settings_of(
    *,
    parts: list[str] = ["all"],  # noqa: B006
    split: Literal["official", "per_block"] = "official",
    layers: str = "auto",
    crop_pct: float | None = None,
    interpolation: Literal["bicubic", "bilinear"] = "bicubic",
) -> None:
    """The knobs of labeled data, as equi-probe has them; the signature is the schema.

    parts: all, ir, ef; split: how ir and ef are cut from concatenated blocks. layers: last, cls4 or
    auto, which is cls4 for a ViT. crop_pct: of the pictures, the encoder's own when null.
    """


Keep = Callable[[Any], tuple[list[int], dict[str, Any]]]  # split → its rows, and why in words


def open_data(document: dict[str, Any], settings: dict[str, Any]) -> Data:
    """The data that `settings.data` names; DataError for what is not there or has no val split."""
    where = settings["data"]
    if where is None:
        return Data(document, _splits(document))
    path = Path(where)
    if (path / "manifest.yaml").is_file():
        path = path / "manifest.yaml"
    if path.is_dir():
        return Data(document, listed=_listed(path))
    if not path.exists():
        raise DataError(f"no data at {path}; data= is a folder of images or shards, or a manifest")
    return Data(document, _splits(manifest.load_file(path)[-1]))


def _splits(document: dict[str, Any]) -> dict[str, Any]:
    return {split: shards.open_split(document, split) for split in SPLITS}


def _listed(path: Path) -> Source:
    """An image folder with both splits."""
    if any(path.glob("*.tar")):
        raise DataError(f"{path} holds tar files and no manifest.yaml; equi-shard describes them")
    source = selection.select(sharding.settle({"source": str(path)}))
    if "val" not in source.splits:
        raise DataError(f"{path} has no val/ (or test/) beside train/; both are needed")
    if source.classes is None:
        raise DataError(f"{path} has no class folders below train/ and val/")
    return source


@dataclass
class Data:
    """Two splits of shards, or the listing of an image folder that is to be packed.

    keep: which rows of train are trained on; None is all, up to the limit. names: the digest of the
    list that says so, where there is one. digest: of all that is looked at.
    """

    document: dict[str, Any]
    splits: dict[str, Any] | None = None
    listed: Source | None = None
    keep: Keep | None = None
    names: str | None = None

    @property
    def digest(self) -> dict[str, Any]:
        held = {"listing": self.listed.digest()} if self.listed else _digests(self.splits or {})
        return held if self.names is None else {**held, "list": self.names}

    def source(
        self, encoder: Any, settings: dict[str, Any], out: Path, progress: Callable[..., Any]
    ) -> Labeled:
        """The data as an encoder sees them. DataError for lists of classes that differ, and labels
        that are missing or out of range; UsageError for parts or layers that it does not have."""
        found = self.splits
        if found is None:
            assert self.listed is not None
            found = _splits(pack(settings["data"], self.listed, out / "shards", progress))
        features.same_classes(*found.values())
        rows = {key: features.subset(len(one), settings["limit"]) for key, one in found.items()}
        notes: dict[str, Any] = {}
        if self.keep is not None:
            kept, notes = self.keep(found["train"])
            rows["train"] = [kept[i] for i in features.subset(len(kept), settings["limit"])]
        layers = features.choose_layers(encoder, settings["layers"], "cls4")
        for part in settings["parts"]:
            features.channels(1, encoder.dim, encoder.split, part, settings["split"])
        shape = {key: settings[key] for key in ("size", "crop_pct", "interpolation")}
        labeled = Labeled(
            encoder, found, rows, preprocess.evaluation_transform(encoder, **shape), layers,
            settings, encoders.features_folder(self.document, settings["encoder"], out), progress,
        )  # fmt: skip
        labeled.check()
        labeled.notes |= notes
        return labeled


def pack(where: str, source: Source, folder: Path, progress: Callable[..., Any]) -> dict[str, Any]:
    """The manifest of an image folder's shards, packed as equi-shard does unless they are there."""
    path, settings = folder / "manifest.yaml", sharding.settle({"source": where})
    identity = sharding.identity(settings, source)
    if path.is_file():
        document = manifest.load_file(path)[-1]
        if (document.get("history") or [{}])[-1].get("id") == identity:
            return document
    began, total = time.monotonic(), sum(map(len, source.splits.values()))
    for note in source.notes:
        said.info(note)
    folder.mkdir(parents=True, exist_ok=True)
    with progress(total, "shard", "image") as bar:
        entries, report, _ = sharding.write(source, settings, folder, bar.advance)
    if report and report["dropped"]:
        said.warning("%d pictures are dropped; %s names them", report["dropped"], folder)
    document = {"kind": "shards", "shard": settings | {"report": report}, "files": entries}
    argv = ["equi-shard", settings["source"], "-o", str(folder)]
    document = manifest.append_history(
        manifest.ordered(document), "shard", argv, time.monotonic() - began, identity
    )
    manifest.write_atomic(path, manifest.dump(manifest.rebase(document, folder)))
    return document


def _digests(splits: dict[str, Any]) -> dict[str, str]:
    return {split: index.digest for split, index in splits.items()}


@dataclass
class Labeled:
    """Two labeled splits as an encoder sees them, `rows` of each.

    settings: those of `transfer`. kept: the folder of features. progress(total, what, unit) is a
    display with `advance`. notes: what an evaluation's record says of the data.
    """

    encoder: Any
    splits: dict[str, Any]
    rows: dict[str, list[int]]
    transform: preprocess.Transform
    layers: str
    settings: dict[str, Any]
    kept: Path
    progress: Callable[..., Any]
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> list[str]:
        return self.settings["parts"]

    @property
    def slicing(self) -> str:
        return self.settings["split"]

    @property
    def classes(self) -> int:
        """How many classes either split has."""
        return max(features.classes_of(index) for index in self.splits.values())

    def labels(self, split: str) -> Tensor:
        """The labels of the split's rows, n int64."""
        return torch.as_tensor(np.asarray(self.splits[split].labels)[self.rows[split]])

    def check(self) -> None:
        """Refuse labels that are missing or out of range; count classes without a picture."""
        for split, index in self.splits.items():
            keys = [index.keys[i] for i in self.rows[split]]
            table = features.Table(torch.empty(0), self.labels(split), keys, self.classes)
            features.require_labels(table, split)
        counts = torch.bincount(self.labels("train"), minlength=self.classes)
        if absent := (counts == 0).nonzero().flatten().tolist():
            named = self.splits["train"].classes or list(range(self.classes))
            first = ", ".join(str(named[label]) for label in absent[:3])
            self.notes["absent_classes"] = len(absent)
            said.warning(
                "%d of %d classes have no training picture (%s%s); their test pictures count as"
                " wrong", len(absent), self.classes, first, " …" if len(absent) > 3 else "",
            )  # fmt: skip

    def tables(self) -> tuple[features.Table, features.Table]:
        """Features of both splits under the evaluation transform, on the device."""
        settings = self.settings
        tables = []
        for split, index in self.splits.items():
            with self.progress(len(self.rows[split]), f"features of {split}", "image") as bar:
                table = features.extract(
                    self.encoder, index, transform=self.transform, layers=self.layers,
                    device=settings["device"], batch_size=settings["extract_batch_size"],
                    workers=settings["workers"], limit=settings["limit"], cache=self.kept,
                    progress=bar.advance,
                )  # fmt: skip
            if table.read:
                said.info("features of %s: %s", split, table.read)
            table.classes = self.classes
            table.features = table.features.to(settings["device"])
            tables.append(table)
        return tables[0], tables[1]

    def stream(self) -> Any:
        """Features of new crops of the training pictures each epoch (features.Table.stream)."""
        return features.stream(
            self.encoder, self.splits["train"], self.rows["train"], transform=self.transform,
            layers=self.layers, device=self.settings["device"], workers=self.settings["workers"],
        )  # fmt: skip

    def network(self, part: str, seed: int, drop_path: float) -> finetune.Classifier:
        """A classifier on a copy of the encoder, with stochastic depth."""
        encoder = copy.deepcopy(self.encoder)
        if drop_path and hasattr(self.encoder, "settings"):
            wanted = {**self.encoder.settings, "pretrained": False, "drop_path": drop_path}
            encoder = backbones.create(wanted)
            encoder.load_state_dict(self.encoder.state_dict())
        blocks = 1 if self.layers == "last" else int(self.layers.removeprefix("cls"))
        channels = features.channels(blocks, encoder.dim, encoder.split, part, self.slicing)
        made = finetune.Classifier(encoder, self.layers, channels, self.classes, seed)
        return made.to(self.settings["device"])

    def train_batches(self, batch_size: int, seed: int, epoch: int) -> finetune.Batches:
        """New crops of the training pictures in a new order; none is left out."""
        rows = self.rows["train"]
        draw = torch.Generator().manual_seed(preprocess.keyed("order", seed, epoch))
        order = torch.randperm(len(rows), generator=draw).tolist()
        return self._batches("train", [rows[i] for i in order], batch_size, (seed, epoch))

    def test_batches(self) -> finetune.Batches:
        """The test pictures under the evaluation transform."""
        return self._batches("val", self.rows["val"], self.settings["extract_batch_size"])

    def _batches(
        self, split: str, rows: Sequence[int], size: int, augment: tuple[int, int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        index, device = self.splits[split], self.settings["device"]
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        shown = preprocess.load(
            index, batches, self.transform, augment, device=device,
            workers=self.settings["workers"],
        )  # fmt: skip
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
            "absent_classes": 0,
            "data": _digests(self.splits),
            **self.notes,
        }
