"""What has to hold of labels before anything is said of them.

Every sample has one, both splits have the same classes, and a head fits them.
"""

import numpy as np

from equitools.core.errors import DataError
from equitools.data.shards.index import ShardIndex
from equitools.features.table import FeatureTable


def classes_of(index: ShardIndex) -> int:
    """How many classes a split has: its list of names, else what its manifest says, else one more
    than the largest label."""
    if index.classes:
        return len(index.classes)
    if stated := getattr(index, "class_count", None):
        return int(stated)
    return int(np.max(index.labels, initial=-1)) + 1


def require_labels(table: FeatureTable, split: str) -> None:
    """DataError when samples are missing, lack a label, or have one outside the classes."""
    if not len(table.labels):
        raise DataError(f"the {split} split has no samples")
    wrong = ((table.labels < 0) | (table.labels >= table.classes)).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{len(wrong)} of {len(table.labels)} samples of the {split} split have no label from 0"
            f" to {table.classes - 1} (the first is '{table.keys[first]}', with"
            f" {int(table.labels[first])}); only equi-probe embed works without labels"
        )


def same_classes(train: ShardIndex, val: ShardIndex) -> None:
    """DataError when two splits (indices with `classes`) do not have the same classes."""
    ours, theirs = train.classes, val.classes
    if ours and theirs and list(ours) != list(theirs):
        odd = sorted(set(ours) ^ set(theirs))[:3] or ["their order"]
        raise DataError(
            f"the train split has {len(ours)} classes and the val split {len(theirs)}, and they"
            f" differ ({', '.join(map(str, odd))}); both need the same list"
        )


def check_head(shape: tuple[int, int], width: int, classes: int, name: str) -> None:
    """DataError when a saved head (classes, width) does not fit so many classes and features."""
    if shape != (classes, width):
        raise DataError(
            f"probe head '{name}' is {shape[0]} classes × {shape[1]} features, but"
            f" the data have {classes} classes and the encoder gives {width} features"
        )
