"""Who judges changed pictures: the head or neighbors of a probe, or networks that were fine-tuned.

A judge is an encoder and a function from a table of its test features to percents, with the way in
which pictures are shown to it. A probe is one judge; fine-tuning left one for each part and seed.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from equitools import (
    checkpoint,
    downstream,
    encoders,
    features,
    label_checks,
    manifest,
    preprocess,
    shards,
)
from equitools.errors import DataError
from equitools.evals import knn, perturbed

said = logging.getLogger("equitools")
ENCODER = "transfer.encoder/"


@dataclass
class Judge:
    """An encoder, and what its features of test pictures are worth: {part/metric: percent}.

    layers: which features it reads. shape: size, crop_pct and interpolation of the pictures. kept:
    the folder of features.
    """

    encoder: Any
    layers: str
    shape: dict[str, Any]
    kept: Path
    judge: Callable[[features.Table], dict[str, float]]


def of_probe(
    document: dict[str, Any], encoder: Any, probe: dict[str, Any], settings: dict[str, Any],
    out: Path, progress: Callable[..., Any],
) -> Judge:  # fmt: skip
    """The saved heads of the document's probe, or else its nearest neighbors in the train split."""
    kept = encoders.features_folder(document, probe["encoder"], out)
    shape = {key: probe[key] for key in ("size", "crop_pct", "interpolation")}
    judge = partial(Judge, encoder, probe["layers"], shape, kept)
    if "probe.heads" in document["files"]:
        path = manifest.verify(document["files"]["probe.heads"], "probe.heads")
        heads = checkpoint.load_tensors(path)
        return judge(partial(perturbed.judge, heads=heads, slicing=probe["split"]))
    index = shards.open_split(document, "train")
    with progress(len(index), "features of train", "image") as bar:
        train = features.extract(
            encoder, index, transform=preprocess.evaluation_transform(encoder, **shape),
            layers=probe["layers"], device=settings["device"], workers=settings["workers"],
            batch_size=settings["extract_batch_size"], limit=probe["limit"], cache=kept,
            progress=bar.advance,
        )  # fmt: skip
    if train.read:
        said.info("features of train: %s", train.read)
    label_checks.require_labels(train, "train")

    def neighbors(table: features.Table) -> dict[str, float]:
        knobs = {"k": [settings["k"]], "temperature": probe["temperature"][:1]}
        found = knn(train, table, probe["parts"], probe["split"], **knobs).scores
        return {f"{key.split('/')[0]}/{key.split('/')[-1]}": v for key, v in found.items()}

    return judge(neighbors)


def tuning_of(document: dict[str, Any]) -> dict[str, Any]:
    """How the document's fine-tuned networks were made, with their files, as a record can say it;
    DataError where there are none."""
    transfer, entries = document.get("transfer") or {}, document.get("files", {})
    networks = {key: one["digest"] for key, one in entries.items() if key.startswith(ENCODER)}
    if not networks or "transfer.heads" not in entries:
        raise DataError(
            "no fine-tuned network is here to judge the changed pictures; run equi-transfer"
            " finetune first, as in equi-transfer finetune | equi-perturb grid judge=finetuned"
        )
    keys = ("eval", "data", "layers", "split", "size", "crop_pct", "interpolation", "limit")
    if missing := sorted(set(keys) - transfer.keys()):
        raise DataError(f"the document's transfer section lacks {', '.join(missing)}; tune again")
    heads = entries["transfer.heads"]["digest"]
    return {key: transfer[key] for key in keys} | {"networks": networks, "heads": heads}


def tested_on(document: dict[str, Any], tuning: dict[str, Any]) -> Any:
    """The val split on which the networks were tested before."""
    data = downstream.open_data(document, tuning)
    if data.splits is not None:
        return data.splits["val"]
    packed = manifest.locate(document["files"]["transfer.heads"], "transfer.heads").parent
    path = packed / "shards" / "manifest.yaml"
    if not path.is_file():
        raise DataError(f"no {path}: the shards that were made of {tuning['data']} are gone")
    return shards.open_split(manifest.load_file(path)[-1], "val")


def of_tuning(document: dict[str, Any], tuning: dict[str, Any], out: Path) -> list[Judge]:
    """Every network that fine-tuning left, each with its own head."""
    heads = checkpoint.load_tensors(
        manifest.verify(document["files"]["transfer.heads"], "transfer.heads")
    )
    shape, found = {key: tuning[key] for key in ("size", "crop_pct", "interpolation")}, []
    for key in tuning["networks"]:
        path, name = manifest.verify(document["files"][key], key), key.removeprefix(ENCODER)
        encoder = checkpoint.load_encoder(path)
        layers = features.choose_layers(encoder, tuning["layers"], "cls4")
        mine = {k: value for k, value in heads.items() if k.startswith(f"{name}/")}
        kept = encoders.features_folder(document, str(path), out)
        right = partial(perturbed.judge, heads=mine, slicing=tuning["split"])
        found.append(Judge(encoder, layers, shape, kept, right))
    return found


def measure(
    judges: Sequence[Judge], index: Any, tests: Sequence[tuple[str, str, perturbed.Column]],
    settings: dict[str, Any], progress: Callable[..., Any],
) -> dict[str, float]:  # fmt: skip
    """Every score: `perturb/<test>/<column>/<part>/draw<k>/<metric>`, and mean and sd of draws.

    tests: (test, column, what is done). What several judges say of one part is averaged, draw by
    draw. settings: those of `perturb`.
    """
    limit = settings["limit"]
    passes = sum(settings["draws"] if column.operations else 1 for _, _, column in tests)
    total = len(features.subset(len(index), limit)) * passes * len(judges)
    scores: dict[str, float] = {}
    read = 0
    with progress(total, "changed pictures", "image") as bar:
        for test, name, column in tests:
            draws = []
            for draw in range(settings["draws"] if column.operations else 1):
                tables = [_table(j, index, column, draw, settings, bar.advance) for j in judges]
                draws.append(_mean([j.judge(t) for j, t in zip(judges, tables, strict=True)]))
                read += sum(table.reused for table in tables)
            scores |= perturbed.summary(f"perturb/{test}/{name}", draws)
    if read:
        said.info("changed pictures: features of %d of %d read from disk", read, total)
    return scores


def _table(
    judge: Judge, index: Any, column: perturbed.Column, draw: int, settings: dict[str, Any],
    progress: Callable[[int], Any],
) -> features.Table:  # fmt: skip
    """What one judge's encoder says of one draw of changed pictures."""
    shape = {**judge.shape, "interpolation": column.interpolation}
    transform = preprocess.evaluation_transform(judge.encoder, **shape)
    asked = column, transform.size, settings["seed"], draw
    table = features.extract(
        judge.encoder, index, transform=transform, layers=judge.layers, cache=judge.kept,
        device=settings["device"], batch_size=settings["extract_batch_size"],
        workers=settings["workers"], limit=settings["limit"], progress=progress,
        perturb=perturbed.perturbation(*asked), changed=perturbed.told(*asked),
    )  # fmt: skip
    if table.reused == len(table.labels):
        progress(table.reused)
    label_checks.require_labels(table, "val")
    return table


def _mean(said: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every percent over the judges that have it."""
    names = dict.fromkeys(key for one in said for key in one)
    return {key: statistics.fmean(one[key] for one in said if key in one) for key in names}
