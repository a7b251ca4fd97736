"""Pictures of shards and the maps that an encoder has of them, as one evaluation reads them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from equitools import manifest
from equitools.core.errors import DataError
from equitools.data.shards.index import ShardIndex, open_split
from equitools.evals.classifiers.finetuning import ResumePoint
from equitools.evals.equivariance import sensitivity
from equitools.evals.run import Document, Evaluation, Subject
from equitools.features import encoders, maps
from equitools.features.extract import subset
from equitools.features.table import Outcome
from equitools.features.transform import evaluation_transform

SHAPE = ("size", "crop_pct", "interpolation")


def open_splits(document: Document, evaluations: list[Evaluation]) -> dict[str, ShardIndex]:
    """The splits that evaluations read; DataError where train is val once more."""
    splits = {"val": open_split(document, "val")}
    if any("train" in evaluation.limits for evaluation in evaluations):
        splits["train"] = open_split(document, "train")
        if splits["train"].digest == splits["val"].digest:
            raise DataError(
                "the train and the val split are the same shards; a classifier would be judged on"
                " pictures that it has learned"
            )
    return splits


def evaluate(
    evaluation: Evaluation,
    name: str,
    subject: Subject,
    splits: dict[str, ShardIndex],
    settings: dict[str, Any],
    shown: dict[str, Any],
    document: Document,
    out: Path,
    progress: Callable[..., Any],
) -> Outcome:
    """What one evaluation says of an encoder, and how it was done.

    settings: those of perturb; shown: which encoder, and how pictures are shown to it. Networks
    that it trains are saved in resume/ below `out` until it has ended.
    """
    encoder, knobs = subject.encoder, settings["tests"][name]
    default = maps.quarters(encoder.depth) if evaluation.layers == "quarters" else None
    layers = maps.choose(encoder, settings["layers"] or default)
    shape = {key: shown[key] for key in SHAPE}
    transform = evaluation_transform(encoder, **shape)
    counts = {
        split: len(subset(len(splits[split]), maps.fewest(knobs[limit], settings["limit"])))
        for split, limit in evaluation.limits.items()
    }
    total = sum(counts.values())
    if evaluation.reads == "vectors":
        total *= sensitivity.passes(knobs, encoder.split)

    def resume(what: str, *matters: Any) -> ResumePoint:
        (out / "resume").mkdir(exist_ok=True)
        digests = [index.digest for index in splits.values()]
        named = (subject.weights, digests, settings["limit"], shape)
        path = out / "resume" / f"{name}-{what}.safetensors"
        return ResumePoint(path, manifest.identity(name, what, matters, named))

    with progress(total, name, "image") as bar:
        source = maps.frozen(
            encoder,
            splits,
            transform,
            layers,
            settings,
            untrained=lambda: encoders.untrained(encoder, shown["encoder_seed"]),
            progress=bar.advance,
            cache=encoders.features_folder(document, shown["encoder"], out),
            resume=resume,
        )
        outcome = evaluation(knobs, source)
    shutil.rmtree(out / "resume", ignore_errors=True)
    outcome.facts["transform"] = transform.describe()
    if evaluation.reads == "maps":
        normed = "its final norm on every block" if settings["norm"] else "as the block leaves them"
        what = f"patch tokens, {normed}" if encoder.is_vit else "maps of the stages"
        outcome.facts |= {"layers": layers, "maps": what}
    return outcome
