"""A few of the training labels: a seeded share of every class, or a list of files.

The lists of SimCLR (Chen et al., 2020) have 12 811 and 128 116 files of ImageNet, 1 % and 10 %; of
IN-100 they name 1278 and 12 812. The draw and the list work as in equi-shard (`selection`), so that
a share is the same pictures whether it is taken here or there. The whole val split is the test.
"""

import hashlib
import logging
from typing import Any

from equitools.core.errors import UsageError
from equitools.data.shards.index import ShardIndex
from equitools.data.sources import subsets
from equitools.data.sources.source import Sample, Source
from equitools.evals.classification import datasets
from equitools.evals.classification.datasets import LabeledData
from equitools.manifest import files, schema

log = logging.getLogger(__name__)


def _own(*, fraction: float | None = None, list: str | None = None, draw: int = 0) -> None:
    """fraction: a share of every class, at least one picture of each (0.01, 0.1). list: a file of
    file names to train on instead, a line each. draw: the seed of the share."""


settings_of = schema.together(datasets.settings_of, _own)


def open_data(document: dict[str, Any], settings: dict[str, Any]) -> LabeledData:
    """The data, of which only some labels will be used; UsageError unless one choice is made."""
    if (settings["fraction"] is None) == (settings["list"] is None):
        raise UsageError("semi needs fraction=0.01 (a share of every class) or list=FILE")
    if (share := settings["fraction"]) is not None and not 0 < share <= 1:
        raise UsageError(f"transfer.fraction is {share:g}; it is a share of train, above 0 up to 1")
    data = datasets.open_data(document, settings)
    if settings["list"] is not None:
        settings["list"] = str(files.absolute(settings["list"]))
        data.names = files.digest_file(settings["list"])
    data.keep = lambda index: draw(index, settings)
    return data


def draw(index: ShardIndex, settings: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    """Rows of a split, and how they were chosen: with a hash of the names that were drawn."""
    known = [index.info(i).get("filename", key) for i, key in enumerate(index.keys)]
    samples = [
        Sample(name, int(label)) for name, label in zip(known, index.labels.tolist(), strict=True)
    ]
    source = Source("the data", {"train": samples}, index.classes)
    if settings["list"] is not None:
        source = subsets.take_listed(source, settings["list"])
        how = source.notes[-1]
    else:
        source = subsets.take_fraction(source, settings["fraction"], settings["draw"])
        how = f"{settings['fraction']:g} of every class, at least one, seed {settings['draw']}"
    taken = {one.file for one in source.splits["train"]}
    rows = [i for i, name in enumerate(known) if name in taken]
    digest = hashlib.sha256("\n".join(sorted(taken)).encode()).hexdigest()
    log.info("%s: %d of %d labels", how, len(rows), len(known))
    return rows, {"labels": how, "drawn": f"sha256:{digest}", "of": len(known)}
