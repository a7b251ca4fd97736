"""The settings of a shard set, and packing by them: equi-shard's work without its words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from equitools import manifest
from equitools.core.errors import UsageError
from equitools.manifest import files, schema

if TYPE_CHECKING:
    from equitools.data.shards.packing import Written
    from equitools.data.sources.source import Source


def knobs(
    *,
    source: str | None = None,
    train_split: str | None = None,
    val_split: str | None = None,
    classes: str | int | list | None = None,
    list: str | None = None,
    fraction: float = 1.0,
    holdout: float = 0.0,
    seed: int = 0,
    size: int | None = None,
    train_samples: int | None = None,
    val_samples: int | None = None,
    layout: Literal["saliency", "video"] | None = None,
    root: str | None = None,
    download: bool = False,
    args: dict | None = None,
    samples_per_shard: int = 3000,
    megabytes_per_shard: int = 500,
    verify: bool = True,
    min_side: int = 8,
    crop: int = 224,
    workers: int | None = None,
) -> None:
    """The keys of `shard` and their defaults; `--help` says what they mean."""


# What does not change a byte of the shards.
NOT_IDENTITY = ("workers", "download")
MADE = {"digits": {"size": 32}, "scenes": {"size": 64, "train_samples": 1500, "val_samples": 400}}
NAMED = (*MADE, "cub200")  # sources that are no path


def settle(given: dict[str, Any]) -> dict[str, Any]:
    """Every key with its value; paths absolute. Raises UsageError for what cannot be."""
    from equitools.data import sources

    settings = schema.knobs(knobs, given, "shard")
    source = settings["source"]
    if not source:
        raise UsageError(f"equi-shard needs a source: {sources.SOURCES}")
    for key in ("samples_per_shard", "megabytes_per_shard"):
        if settings[key] < 1:
            raise UsageError(f"shard.{key}={settings[key]}; it must be at least 1")
    if settings["layout"] is None:
        del settings["layout"]  # of folders that are no shards
    elif source != "scenes":
        raise UsageError(f"shard.layout={settings['layout']} is of source=scenes alone")
    defaults = MADE.get(source, {})
    for key in ("size", "train_samples", "val_samples"):
        if settings[key] is None:
            settings[key] = defaults.get(key)
        elif key not in defaults:
            raise UsageError(f"shard.{key} is not for source={source}")
        elif settings[key] < (key != "val_samples"):
            raise UsageError(f"shard.{key}={settings[key]}; it must be at least 1")
    if source not in NAMED and ":" not in source:
        settings["source"] = str(files.absolute(Path(source).expanduser()))
    for key in ("list", "root"):
        if settings[key] is not None:
            settings[key] = str(files.absolute(Path(settings[key]).expanduser()))
    if _is_path(settings["classes"]):
        settings["classes"] = str(files.absolute(settings["classes"]))
    return settings


def _is_path(classes: Any) -> bool:
    return isinstance(classes, str) and ("/" in classes or classes.endswith(".txt"))


def identity(settings: dict[str, Any], source: Source) -> str:
    """The id of a run with these settings on this listing."""
    matters = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    return manifest.identity(matters, source.digest())


def write(
    source: Source, settings: dict[str, Any], out: Path, advance: Callable[[int], None]
) -> tuple[dict[str, dict[str, Any]], dict[str, int] | None, dict[str, list[Written]]]:
    """Pack a source into a folder: the `files` of a manifest, the counts of verification (None
    without it), and what became of each shard. Raises DataError for what cannot be read."""
    from equitools.data.shards import inventory, packing
    from equitools.data.shards.pool import write_all

    chosen = {key: settings[key] for key in schema.own_knobs(packing.plan)}
    jobs = packing.plan(source, out, **chosen)
    written = write_all(jobs, settings["workers"] or cores(), advance)
    report = None
    if settings["verify"]:
        inventory.find_duplicates(written)
        report = inventory.report(written, len(source.ignored))
    return inventory.finish(out, written, source.classes, source.ignored), report, written


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
