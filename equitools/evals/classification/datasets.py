"""Other labeled data for an encoder: where they lie, what is checked, and how they are shown.

`data` is a folder or manifest of shards, an image folder with train/ and val/ (packed as equi-shard
packs it, into shards/ below the output), or nothing: the document's own shards. Both splits need
the same list of classes. A class without a training picture is kept, counted and warned about: the
test pictures of it are counted as any, and are wrong.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from equitools import manifest
from equitools.core import files
from equitools.core.errors import DataError
from equitools.data.shards import settings as shards_settings
from equitools.data.shards.index import open_split
from equitools.data.shards.inventory import REPORT
from equitools.data.shards.settings import settle, write
from equitools.data.sources import subsets
from equitools.data.sources.source import Source
from equitools.evals.classification.labeled import SHAPE, Labeled, digests
from equitools.features import encoders
from equitools.features.extract import choose_layers, subset
from equitools.features.labels import same_classes
from equitools.features.table import channels
from equitools.features.transform import evaluation_transform  # fmt: skip

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
    return {split: open_split(document, split) for split in SPLITS}


def _listed(path: Path) -> Source:
    """An image folder with both splits."""
    if any(path.glob("*.tar")):
        raise DataError(f"{path} holds tar files and no manifest.yaml; equi-shard describes them")
    source = subsets.select(settle({"source": str(path)}))
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
        held: dict[str, Any] = digests(self.splits or {})
        if self.listed:
            held = {"listing": self.listed.digest()}
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
        same_classes(*found.values())
        rows = {key: subset(len(one), settings["limit"]) for key, one in found.items()}
        notes: dict[str, Any] = {}
        if self.keep is not None:
            kept, notes = self.keep(found["train"])
            rows["train"] = [kept[i] for i in subset(len(kept), settings["limit"])]
        layers = choose_layers(encoder, settings["layers"], "cls4")
        for part in settings["parts"]:
            channels(1, encoder.dim, encoder.split, part, settings["split"])
        shape = {key: settings[key] for key in SHAPE}
        seen = Labeled(
            encoder, found, rows, evaluation_transform(encoder, **shape), layers,
            settings, encoders.features_folder(self.document, settings["encoder"], out), progress,
            out,
        )  # fmt: skip
        seen.check()
        seen.notes |= notes
        return seen


def pack(where: str, source: Source, folder: Path, progress: Callable[..., Any]) -> dict[str, Any]:
    """The manifest of an image folder's shards, packed as equi-shard does unless they are there."""
    path, settings = folder / "manifest.yaml", settle({"source": where})
    identity = shards_settings.identity(settings, source)
    if path.is_file():
        document = manifest.load_file(path)[-1]
        if (document.get("history") or [{}])[-1].get("id") == identity:
            return document
    began, total = time.monotonic(), sum(map(len, source.splits.values()))
    for note in source.notes:
        said.info(note)
    folder.mkdir(parents=True, exist_ok=True)
    with progress(total, "shard", "image") as bar:
        entries, report, _ = write(source, settings, folder, bar.advance)
    if report and report["dropped"]:
        said.warning("%d dropped; %s names them", report["dropped"], folder / REPORT)
    document = {"kind": "shards", "shard": settings | {"report": report}, "files": entries}
    argv = ["equi-shard", settings["source"], "-o", str(folder)]
    document = manifest.append_history(
        manifest.ordered(document), "shard", argv, time.monotonic() - began, identity
    )
    files.write_atomic(path, manifest.dump(manifest.rebase(document, folder)))
    return document
