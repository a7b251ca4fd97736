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
from equitools.backbones.encoder import Encoder
from equitools.core import files
from equitools.core.errors import DataError
from equitools.data.shards import settings as shards_settings
from equitools.data.shards.index import ShardIndex, open_split
from equitools.data.shards.inventory import REPORT
from equitools.data.shards.settings import settle, write
from equitools.data.sources import subsets
from equitools.data.sources.source import Source
from equitools.evals.classification.labeled import Labeled, digests
from equitools.evals.run import picture_settings
from equitools.features.extract import subset
from equitools.features.labels import same_classes
from equitools.manifest.schema import together

SPLITS = ("train", "val")
log = logging.getLogger(__name__)


def part_settings(
    *,
    parts: list[str] = ["all"],  # noqa: B006
    split: Literal["official", "per_block"] = "official",
    layers: str = "auto",
) -> None:
    """parts: all, ir, ef; split: how ir and ef are cut from concatenated blocks. layers: last, cls4
    or auto, which is cls4 for a ViT (equi-probe: where the evaluation says so)."""


settings_of = together(part_settings, picture_settings)


# A split → its rows, and why in words.
Keep = Callable[[ShardIndex], tuple[list[int], dict[str, Any]]]


def open_data(document: dict[str, Any], settings: dict[str, Any]) -> LabeledData:
    """The data that `settings.data` names; DataError for what is not there or has no val split."""
    where = settings["data"]
    if where is None:
        return LabeledData(document, open_splits(document))
    path = Path(where)
    if (path / "manifest.yaml").is_file():
        path = path / "manifest.yaml"
    if path.is_dir():
        return LabeledData(document, listed=_listed(path))
    if not path.exists():
        raise DataError(f"no data at {path}; data= is a folder of images or shards, or a manifest")
    return LabeledData(document, open_splits(manifest.load_file(path)[-1]))


def open_splits(document: dict[str, Any]) -> dict[str, ShardIndex]:
    """The train and the val split of a document's shards."""
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
class LabeledData:
    """Two splits of shards, or the listing of an image folder that is to be packed.

    keep: which rows of train are trained on; None is all, up to the limit. names: the digest of the
    list that says so, where there is one. digest: of all that is looked at.
    """

    document: dict[str, Any]
    splits: dict[str, ShardIndex] | None = None
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
        self, encoder: Encoder, settings: dict[str, Any], out: Path, progress: Callable[..., Any]
    ) -> Labeled:
        """The data as an encoder sees them; DataError for labels that are missing or out of
        range."""
        splits = self.splits
        if splits is None:
            assert self.listed is not None
            splits = open_splits(pack(settings["data"], self.listed, out / "shards", progress))
        same_classes(*splits.values())
        pictures = Labeled(encoder, splits, settings, self.document, out, progress)
        notes: dict[str, Any] = {}
        if self.keep is not None:
            rows, notes = self.keep(splits["train"])
            pictures.rows["train"] = [rows[i] for i in subset(len(rows), settings["limit"])]
        pictures.check()
        pictures.notes |= notes
        return pictures


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
        log.info(note)
    folder.mkdir(parents=True, exist_ok=True)
    with progress(total, "shard", "image") as bar:
        entries, report, _ = write(source, settings, folder, bar.advance)
    if report and report["dropped"]:
        log.warning("%d dropped; %s names them", report["dropped"], folder / REPORT)
    document = {"kind": "shards", "shard": settings | {"report": report}, "files": entries}
    argv = ["equi-shard", settings["source"], "-o", str(folder)]
    document = manifest.append_history(
        manifest.ordered(document), "shard", argv, time.monotonic() - began, identity
    )
    files.write_atomic(path, manifest.dump(manifest.rebase(document, folder)))
    return document
