"""Who judges changed pictures: the head or neighbors of a probe, or networks that were fine-tuned.

A judge is an encoder and a function from a table of its test features to percents, with the way in
which pictures are shown to it. A probe is one judge; fine-tuning left one for each part and seed.
"""

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equitools import manifest
from equitools.backbones import checkpoint
from equitools.backbones.encoder import Encoder
from equitools.core.errors import DataError
from equitools.data.shards.index import ShardIndex, open_split
from equitools.evals.classification.datasets import open_data
from equitools.evals.classification.knn import evaluate as knn
from equitools.evals.classification.labeled import SHAPE, Labeled
from equitools.evals.classifiers import mlp
from equitools.evals.classifiers.protocol import spread
from equitools.evals.robustness import perturbations
from equitools.evals.robustness.perturbations import Column, scaled
from equitools.evals.run import Evaluation
from equitools.features import encoders
from equitools.features.extract import choose_layers, extract, loading, subset
from equitools.features.labels import check_head, require_labels
from equitools.features.table import FeatureTable, Outcome, part
from equitools.features.transform import evaluation_transform
from equitools.nn import serialization

log = logging.getLogger(__name__)
ENCODER = "transfer.encoder/"
READING = ("device", "workers", "extract_batch_size")
Test = tuple[str, str, Column]  # test, column, what is done to the pictures


@dataclass
class Judge:
    """An encoder, and what its features of test pictures are worth: {part/metric: percent}.

    layers: which features it reads. shape: size, crop_pct and interpolation of the pictures. name:
    who judges, in words; slicing: of the parts. cache: the folder of features.
    """

    encoder: Encoder
    layers: str
    shape: dict[str, Any]
    name: str
    slicing: str
    cache: Path
    judge: Callable[[FeatureTable], dict[str, float]]


def of_probe(
    document: dict[str, Any],
    encoder: Encoder,
    probe: dict[str, Any],
    settings: dict[str, Any],
    out: Path,
    progress: Callable[..., Any],
) -> Judge:
    """The saved heads of the document's probe, or else its nearest neighbors in the train split."""
    cache = encoders.features_folder(document, probe["encoder"], out)
    shape = {key: probe[key] for key in SHAPE}
    name = f"{judge_of(document, settings['k'])} of clean pictures"
    made = partial(Judge, encoder, probe["layers"], shape, name, probe["split"], cache)
    if "probe.heads" in document["files"]:
        path = manifest.verify(document["files"]["probe.heads"], "probe.heads")
        heads = serialization.load_tensors(path)
        return made(partial(judge, heads=heads, slicing=probe["split"]))
    asked = {**probe, **{key: settings[key] for key in READING}}
    bank = {"train": open_split(document, "train")}
    (train,) = Labeled(encoder, bank, asked, document, out, progress).tables()
    require_labels(train, "train")

    def neighbors(table: FeatureTable) -> dict[str, float]:
        knobs = {"k": [settings["k"]], "temperature": probe["temperature"][:1]}
        scores = knn(train, table, probe["parts"], probe["split"], **knobs).scores
        return {f"{key.split('/')[0]}/{key.split('/')[-1]}": v for key, v in scores.items()}

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


def tested_on(document: dict[str, Any], tuning: dict[str, Any]) -> ShardIndex:
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
    shape, judges = {key: tuning[key] for key in SHAPE}, []
    who = f"{len(tuning['networks'])} fine-tuned networks with their heads"
    for key in tuning["networks"]:
        path, name = manifest.verify(document["files"][key], key), key.removeprefix(ENCODER)
        encoder = checkpoint.load_encoder(path)
        layers = choose_layers(encoder, tuning["layers"], "cls4")
        mine = {k: value for k, value in heads.items() if k.startswith(f"{name}/")}
        cache = encoders.features_folder(document, str(path), out)
        right = partial(judge, heads=mine, slicing=tuning["split"])
        judges.append(Judge(encoder, layers, shape, who, tuning["split"], cache, right))
    return judges


def columns(
    menu: Mapping[str, Evaluation], settings: dict[str, Any], prefix: str = ""
) -> list[Test]:
    """Every column of the tests that a judge is asked about."""
    return [
        (prefix + test, name, column)
        for test, knobs in settings["tests"].items()
        if menu[test].reads == "changes"
        for name, column in menu[test](knobs).items()
    ]


def judged(
    judges: Sequence[Judge],
    index: ShardIndex,
    tests: Sequence[Test],
    settings: dict[str, Any],
    progress: Callable[..., Any],
) -> Outcome:
    """What judges say of every changed test set, and how it was done.

    Scores are `perturb/<test>/<column>/<part>/draw<k>/<metric>`, and mean and sd of draws; what
    several judges say of one part is averaged, draw by draw. settings: those of `perturb`.
    """
    first, samples = judges[0], len(subset(len(index), settings["limit"]))
    passes = sum(settings["draws"] if column.operations else 1 for _, _, column in tests)
    total = samples * passes * len(judges)
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
        log.info("changed pictures: features of %d of %d read from disk", read, total)
    outcome = Outcome(scores, facts=facts(first.encoder, tests, first.shape))
    outcome.facts["judge"] = f"{first.name}, {first.layers}, slicing {first.slicing}"
    outcome.facts |= {"draws": settings["draws"], "test_samples": samples}
    return outcome


def _table(
    judge: Judge,
    index: ShardIndex,
    column: perturbations.Column,
    draw: int,
    settings: dict[str, Any],
    progress: Callable[[int], Any],
) -> FeatureTable:
    """What one judge's encoder says of one draw of changed pictures."""
    shape = {**judge.shape, "interpolation": column.interpolation}
    transform = evaluation_transform(judge.encoder, **shape)
    change = column, transform.size, settings["seed"], draw
    table = extract(
        judge.encoder,
        index,
        transform=transform,
        layers=judge.layers,
        cache=judge.cache,
        progress=progress,
        perturb=perturbations.perturbation(*change),
        changed=perturbations.cache_key(*change),
        **loading(settings),
    )
    if table.reused == len(table.labels):
        progress(table.reused)
    require_labels(table, "val")
    return table


def _mean(verdicts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every percent over the judges that have it."""
    names = dict.fromkeys(key for one in verdicts for key in one)
    return {key: statistics.fmean(one[key] for one in verdicts if key in one) for key in names}


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
    table: FeatureTable, heads: dict[str, Tensor], slicing: str, chunk: int = 4096
) -> dict[str, float]:
    """Accuracy in percent of saved heads, linear or MLP, on a table, keyed `all/top1`; the mean
    over the heads' seeds. DataError when a head does not fit the features or classes."""
    hits: dict[str, list[Tensor]] = {}
    for name, head in mlp.named(heads).items():
        vectors = part(table, name.split("/")[0], slicing)
        shape = mlp.shape(head)
        # Without names, a small test split may not show every class that the head knows.
        classes = table.classes if table.named else max(table.classes, shape[0])
        check_head(shape, vectors.shape[1], classes, name)
        head = {key: value.to(vectors) for key, value in head.items()}
        right = [
            mlp.logits(head, x).topk(min(5, shape[0])).indices == y[:, None].to(x.device)
            for x, y in zip(vectors.split(chunk), table.labels.split(chunk), strict=True)
        ]
        hits.setdefault(name.split("/")[0], []).append(torch.cat(right))
    if not hits:
        raise DataError("the file of probe heads has no head; run equi-probe linear again")
    scores = {}
    for name, rights in hits.items():
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
        runs = {f"draw{i}": {metric: draw[key]} for i, draw in enumerate(draws)}
        scores |= spread(runs, f"{prefix}/{part}")
    return scores


def facts(encoder: Encoder, tests: Sequence[Test], shape: dict[str, Any]) -> dict[str, Any]:
    """What was done to the pictures of each (test, column, what), in words and numbers."""
    changes = {}
    for test, name, column in tests:
        plain = evaluation_transform(encoder, **{**shape, "interpolation": column.interpolation})
        changed = scaled(column.operations, plain.size)
        angle = {} if column.angle is None else {"angle": column.angle}
        changes[f"{test}/{name}"] = {"picture": plain.describe(), **angle, **changed}
    return {
        "transform": changes,
        "metric": "micro accuracy in percent of all test samples, mean over the seeds of the heads",
    }
