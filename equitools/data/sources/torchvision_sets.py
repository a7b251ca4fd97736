"""Any classification set of torchvision by name, as a source.

A set that lies on disk as image files keeps their bytes; one that lies as arrays or binary files
(CIFAR, STL-10, SVHN …) becomes PNG. Nothing is downloaded unless asked.
"""

import inspect
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from equitools.core.errors import DataError, EquiError, UsageError
from equitools.data import images
from equitools.data.sources.source import SUFFIXES, Sample, Source, of_file, suffix
from equitools.manifest import files

# The published transfer protocols train on these splits; elsewhere on "train".
TRAIN_SPLIT = dict.fromkeys(("OxfordIIITPet", "FGVCAircraft"), "trainval")
TRAIN_SPLIT |= {"Places365": "train-standard"}
VAL_SPLITS = ("test", "val", "valid")


def torchvision_set(
    name: str,
    root: str | None,
    download: bool,
    args: dict[str, Any],
    train_split: str | None,
    val_split: str | None,
) -> Source:
    """The splits of `torchvision.datasets.<name>` below `root`; args go to its constructor.

    train_split, val_split: the set's own names ("trainval", "test"). Raises UsageError for an
    unknown set or split, DataError when it is not at `root`.
    """
    import torchvision.datasets as namespace

    maker = getattr(namespace, name, None)
    if name not in namespace.__all__ or not inspect.isclass(maker):
        raise UsageError(f"torchvision has no data set '{name}'; write it as in its documentation")
    parameters = inspect.signature(maker).parameters
    if "root" in parameters and root is None:
        raise UsageError(f"torchvision:{name} needs root=DIR, the folder where it lies")
    given = {"root": root, "download": download}
    common = args | {key: value for key, value in given.items() if key in parameters}
    source = Source(name.lower(), {}, None)
    for split, choice in _choices(name, parameters, train_split, val_split):
        dataset = _open(maker, name, common | choice)
        if dataset is not None:
            source.classes = source.classes or _classes(dataset)
            source.splits[split] = _samples(dataset, source.classes)
    if not source.splits.get("train"):
        raise DataError(f"torchvision:{name} has no training images at {root}")
    return source


def _choices(
    name: str, parameters: Any, train_split: str | None, val_split: str | None
) -> list[tuple[str, dict[str, Any]]]:
    """(our split, the constructor's arguments); `split: None` is the first val that it knows."""
    if "split" in parameters and "train" not in parameters:
        trains = {"split": train_split or TRAIN_SPLIT.get(name, "train")}
        return [("train", trains), ("val", {"split": val_split})]
    if "train" in parameters:
        return [("train", {"train": True}), ("val", {"train": False})]
    return [("train", {})]


def _open(maker: Any, name: str, arguments: dict[str, Any]) -> Any:
    if "split" in arguments and arguments["split"] is None:
        return _open_val(maker, name, arguments)
    try:
        return maker(**arguments)
    except (ValueError, TypeError) as error:
        raise UsageError(f"torchvision:{name}: {_line(error)}") from error
    except (RuntimeError, OSError) as error:
        raise DataError(f"torchvision:{name}: {_line(error)} (download=true fetches it)") from error
    except ImportError as error:  # Flowers-102 keeps its labels in MATLAB files
        package = error.name or "scipy"
        raise EquiError(f"torchvision:{name} needs {package}: pip install {package}") from error


def _open_val(maker: Any, name: str, arguments: dict[str, Any]) -> Any:
    """The first of the usual names that the set knows; None when it knows none."""
    for split in VAL_SPLITS:
        with suppress(UsageError):
            return _open(maker, name, arguments | {"split": split})
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _classes(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "classes", None)
    if not isinstance(names, (list, tuple)) or not names:
        return None
    return [" ".join(name) if isinstance(name, tuple) else str(name) for name in names]


def _samples(dataset: Any, classes: list[str] | None) -> list[Sample]:
    pairs = _files(dataset)
    if pairs is None:
        return [_made(dataset, i, classes) for i in range(len(dataset))]
    root = os.path.commonpath([Path(path).parent for path, _ in pairs])
    samples = []
    for path, label in pairs:
        if classes is not None and not 0 <= label < len(classes):
            raise DataError(f"{path} has label {label}; there are {len(classes)} classes, from 0")
        try:
            facts = Path(path).stat()
        except OSError as error:
            raise DataError(f"the set lists an image that is not there: {path}") from error
        name = Path(path).relative_to(root).as_posix()
        samples.append(of_file(name, label, path, facts))
    return sorted(samples, key=lambda one: one.file)


def _files(dataset: Any) -> list[tuple[str, int]] | None:
    """(path, label) of each picture, where the set says that they lie as files."""
    pairs = getattr(dataset, "_samples", None) or getattr(dataset, "samples", None)
    if pairs is None:
        paths = getattr(dataset, "_image_files", None) or getattr(dataset, "_images", None)
        labels = getattr(dataset, "_labels", None)
        if paths is None or labels is None or len(paths) != len(labels):
            return None
        pairs = list(zip(paths, labels, strict=True))
    try:
        listed = [(str(files.absolute(path)), int(label)) for path, label in pairs]
    except (TypeError, ValueError):
        return None
    known = listed and all(suffix(path) in SUFFIXES for path, _ in listed)
    return listed if known and any(Path(path).is_file() for path, _ in listed) else None


def _made(dataset: Any, i: int, classes: list[str] | None) -> Sample:
    label = _label(dataset, i)
    if classes is not None and label >= len(classes):
        raise DataError(f"image {i} has label {label}; there are {len(classes)} classes, from 0")
    folder = f"{label:04d}/" if label >= 0 else ""
    return Sample(f"{folder}{i:07d}.png", label, make=partial(_encode, dataset, i))


def _label(dataset: Any, i: int) -> int:
    labels = getattr(dataset, "targets", None)
    if labels is None:
        labels = getattr(dataset, "labels", None)
    try:
        return int(labels[i] if labels is not None else dataset[i][1])
    except (TypeError, ValueError):
        return -1


def _encode(dataset: Any, i: int) -> tuple[bytes, dict[str, Any]]:
    picture = dataset[i][0]
    return images.encode_png(np.asarray(picture.convert("RGB"))), {}
