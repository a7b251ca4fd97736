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

import torch
from torch import Tensor

from equitools import manifest
from equitools.backbones import checkpoint
from equitools.core.errors import DataError
from equitools.data.shards.index import open_split
from equitools.evals.classification.datasets import open_data
from equitools.evals.classification.knn import evaluate as knn
from equitools.evals.classifiers import mlp as classifiers_mlp
from equitools.evals.classifiers.mlp import logits, named
from equitools.evals.robustness import perturbations
from equitools.evals.robustness.perturbations import Column, scaled
from equitools.features import encoders
from equitools.features.extract import choose_layers, extract, subset
from equitools.features.labels import check_head, require_labels
from equitools.features.table import Table, part
from equitools.features.transform import evaluation_transform
from equitools.nn import serialization

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
    judge: Callable[[Table], dict[str, float]]


def of_probe(
    document: dict[str, Any], encoder: Any, probe: dict[str, Any], settings: dict[str, Any],
    out: Path, progress: Callable[..., Any],
) -> Judge:  # fmt: skip
    """The saved heads of the document's probe, or else its nearest neighbors in the train split."""
    kept = encoders.features_folder(document, probe["encoder"], out)
    shape = {key: probe[key] for key in ("size", "crop_pct", "interpolation")}
    made = partial(Judge, encoder, probe["layers"], shape, kept)
    if "probe.heads" in document["files"]:
        path = manifest.verify(document["files"]["probe.heads"], "probe.heads")
        heads = serialization.load_tensors(path)
        return made(partial(judge, heads=heads, slicing=probe["split"]))
    index = open_split(document, "train")
    with progress(len(index), "features of train", "image") as bar:
        train = extract(
            encoder, index, transform=evaluation_transform(encoder, **shape),
            layers=probe["layers"], device=settings["device"], workers=settings["workers"],
            batch_size=settings["extract_batch_size"], limit=probe["limit"], cache=kept,
            progress=bar.advance,
        )  # fmt: skip
    if train.read:
        said.info("features of train: %s", train.read)
    require_labels(train, "train")

    def neighbors(table: Table) -> dict[str, float]:
        knobs = {"k": [settings["k"]], "temperature": probe["temperature"][:1]}
        found = knn(train, table, probe["parts"], probe["split"], **knobs).scores
        return {f"{key.split('/')[0]}/{key.split('/')[-1]}": v for key, v in found.items()}

    return made(neighbors)


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
    data = open_data(document, tuning)
    if data.splits is not None:
        return data.splits["val"]
    packed = manifest.locate(document["files"]["transfer.heads"], "transfer.heads").parent
    path = packed / "shards" / "manifest.yaml"
    if not path.is_file():
        raise DataError(f"no {path}: the shards that were made of {tuning['data']} are gone")
    return open_split(manifest.load_file(path)[-1], "val")


def of_tuning(document: dict[str, Any], tuning: dict[str, Any], out: Path) -> list[Judge]:
    """Every network that fine-tuning left, each with its own head."""
    heads = serialization.load_tensors(
        manifest.verify(document["files"]["transfer.heads"], "transfer.heads")
    )
    shape, found = {key: tuning[key] for key in ("size", "crop_pct", "interpolation")}, []
    for key in tuning["networks"]:
        path, name = manifest.verify(document["files"][key], key), key.removeprefix(ENCODER)
        encoder = checkpoint.load_encoder(path)
        layers = choose_layers(encoder, tuning["layers"], "cls4")
        mine = {k: value for k, value in heads.items() if k.startswith(f"{name}/")}
        kept = encoders.features_folder(document, str(path), out)
        right = partial(judge, heads=mine, slicing=tuning["split"])
        found.append(Judge(encoder, layers, shape, kept, right))
    return found


def measure(
    judges: Sequence[Judge], index: Any, tests: Sequence[tuple[str, str, perturbations.Column]],
    settings: dict[str, Any], progress: Callable[..., Any],
) -> dict[str, float]:  # fmt: skip
    """Every score: `perturb/<test>/<column>/<part>/draw<k>/<metric>`, and mean and sd of draws.

    tests: (test, column, what is done). What several judges say of one part is averaged, draw by
    draw. settings: those of `perturb`.
    """
    limit = settings["limit"]
    passes = sum(settings["draws"] if column.operations else 1 for _, _, column in tests)
    total = len(subset(len(index), limit)) * passes * len(judges)
    scores: dict[str, float] = {}
    read = 0
    with progress(total, "changed pictures", "image") as bar:
        for test, name, column in tests:
            draws = []
            for draw in range(settings["draws"] if column.operations else 1):
                tables = [_table(j, index, column, draw, settings, bar.advance) for j in judges]
                draws.append(_mean([j.judge(t) for j, t in zip(judges, tables, strict=True)]))
                read += sum(table.reused for table in tables)
            scores |= summary(f"perturb/{test}/{name}", draws)
    if read:
        said.info("changed pictures: features of %d of %d read from disk", read, total)
    return scores


def _table(
    judge: Judge, index: Any, column: perturbations.Column, draw: int, settings: dict[str, Any],
    progress: Callable[[int], Any],
) -> Table:  # fmt: skip
    """What one judge's encoder says of one draw of changed pictures."""
    shape = {**judge.shape, "interpolation": column.interpolation}
    transform = evaluation_transform(judge.encoder, **shape)
    asked = column, transform.size, settings["seed"], draw
    table = extract(
        judge.encoder, index, transform=transform, layers=judge.layers, cache=judge.kept,
        device=settings["device"], batch_size=settings["extract_batch_size"],
        workers=settings["workers"], limit=settings["limit"], progress=progress,
        perturb=perturbations.perturbation(*asked), changed=perturbations.told(*asked),
    )  # fmt: skip
    if table.reused == len(table.labels):
        progress(table.reused)
    require_labels(table, "val")
    return table


def _mean(said: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every percent over the judges that have it."""
    names = dict.fromkeys(key for one in said for key in one)
    return {key: statistics.fmean(one[key] for one in said if key in one) for key in names}


def probe_of(document: dict[str, Any]) -> dict[str, Any]:
    """The settings of the probe whose head or neighbors judge; DataError where there is none."""
    probe = document.get("probe") or {}
    needed = {"eval", "encoder", "encoder_seed", "pretrained", "parts", "split", "layers", "size"}
    needed |= {"crop_pct", "interpolation", "limit"}
    if probe and (missing := sorted(needed - probe.keys())):
        raise DataError(f"the document's probe section lacks {', '.join(missing)}; probe again")
    judged = probe and ("probe.heads" in document.get("files", {}) or probe["eval"] == "knn")
    if not judged:
        raise DataError(
            "nothing can judge the changed pictures: the document has no probe heads; run"
            " equi-probe linear (or knn) first, as in equi-probe linear | equi-perturb grid"
        )
    return probe


def judge_of(document: dict[str, Any], k: int) -> str:
    """Who judges, in words: the heads that the document has, else k neighbors."""
    head = "mlp" if document["probe"]["eval"] == "mlp" else "linear"
    return f"{head} head" if "probe.heads" in document["files"] else f"{k}-NN"


def judge(
    table: Table, heads: dict[str, Tensor], slicing: str, chunk: int = 4096
) -> dict[str, float]:
    """Accuracy in percent of saved heads, linear or MLP, on a table, keyed `all/top1`; the mean
    over the heads' seeds. DataError when a head does not fit the features or classes."""
    found: dict[str, list[Tensor]] = {}
    for name, head in named(heads).items():
        vectors = part(table, name.split("/")[0], slicing)
        shape = classifiers_mlp.shape(head)
        # Without names, a small test split may not show every class that the head knows.
        classes = table.classes if table.named else max(table.classes, shape[0])
        check_head(shape, vectors.shape[1], classes, name)
        head = {key: value.to(vectors) for key, value in head.items()}
        right = [
            logits(head, x).topk(min(5, shape[0])).indices == y[:, None].to(x.device)
            for x, y in zip(vectors.split(chunk), table.labels.split(chunk), strict=True)
        ]
        found.setdefault(name.split("/")[0], []).append(torch.cat(right))
    if not found:
        raise DataError("the file of probe heads has no head; run equi-probe linear again")
    scores = {}
    for name, rights in found.items():
        stack = torch.stack(rights).double()
        scores[f"{name}/top1"] = 100 * float(stack[..., 0].mean())
        if table.classes >= 5:
            scores[f"{name}/top5"] = 100 * float(stack.any(-1).double().mean())
    return scores


def summary(prefix: str, draws: list[dict[str, float]]) -> dict[str, float]:
    """Each draw's scores, their mean, and their sample standard deviation (0 for one draw)."""
    scores: dict[str, float] = {}
    for key in draws[0]:
        part, metric = key.split("/")
        values = [draw[key] for draw in draws]
        scores |= {f"{prefix}/{part}/draw{i}/{metric}": v for i, v in enumerate(values)}
        scores[f"{prefix}/{part}/mean/{metric}"] = statistics.fmean(values)
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        scores[f"{prefix}/{part}/sd/{metric}"] = sd
    return scores


def facts(
    encoder: Any, tests: Sequence[tuple[str, str, Column]], probe: dict[str, Any]
) -> dict[str, Any]:
    """What was done to the pictures of each (test, column, what), in words and numbers."""
    shape = {key: probe[key] for key in ("size", "crop_pct")}
    found = {}
    for test, name, column in tests:
        plain = evaluation_transform(encoder, interpolation=column.interpolation, **shape)
        changed = scaled(column.operations, plain.size)
        angle = {} if column.angle is None else {"angle": column.angle}
        found[f"{test}/{name}"] = {"picture": plain.describe(), **angle, **changed}
    return {
        "transform": found,
        "metric": "micro accuracy in percent of all test samples, mean over the seeds of the heads",
    }
