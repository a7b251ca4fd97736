"""Probe a frozen encoder: nearest neighbors, linear heads, or the features themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from equitools import manifest
from equitools.core.errors import UsageError
from equitools.manifest import run_folder

from .cli.command import command
from .cli.program import Program, Request, log
from .cli.progress import progress

# What may change without changing the scores.
NOT_IDENTITY = ("device", "workers", "extract_batch_size")
# What `layers=auto` means for a ViT; `last` for evaluations that are not here.
AUTO = {"linear": "cls4", "mlp": "cls4"}
SPLITS = ("train", "val")


def common_settings(
    *,
    eval: str = "knn",
    parts: list[str] = ["all"],  # noqa: B006
    split: Literal["official", "per_block"] = "official",
    layers: str = "auto",
    encoder: str | None = None,
    encoder_seed: int = 0,
    pretrained: bool = False,
    size: int | None = None,
    crop_pct: float | None = None,
    interpolation: Literal["bicubic", "bilinear"] = "bicubic",
    cached: bool = True,
    limit: int | None = None,
    extract_batch_size: int = 256,
    device: str = "auto",
    workers: int = 2,
) -> None:
    """The knobs of `probe` that every evaluation shares; the signature is the schema.

    eval: the evaluation. parts: all, ir, ef; split: how ir and ef are cut from concatenated
    blocks. layers: last, cls4 or auto. encoder: a path, timm name, random or pixels instead of
    the document's; encoder_seed: of random weights; pretrained: let timm download. size, crop_pct:
    of the pictures, the encoder's own when null. cached: features of the evaluation transform,
    computed once; else new crops each epoch. limit: so many samples of each split at most.
    """


def run(request: Request) -> dict[str, Any] | None:
    """Check the settings, extract features of both splits, evaluate, and write it all down."""
    settings = resolve(request.settings)
    if request.plan:
        request.print_plan(manifest.dump({"probe": settings}))
        return None
    from equitools import evals
    from equitools.core import devices
    from equitools.data.shards.index import open_split
    from equitools.features import encoders
    from equitools.features.extract import choose_layers
    from equitools.features.labels import same_classes
    from equitools.features.table import channels
    from equitools.features.transform import evaluation_transform
    from equitools.manifest import schema

    splits = {split: open_split(request.document, split) for split in SPLITS}
    same_classes(*splits.values())
    encoder, label = encoders.find(
        request.document, settings["encoder"], seed=settings["encoder_seed"],
        pretrained=settings["pretrained"],
    )  # fmt: skip
    default = AUTO.get(settings["eval"], "last")
    settings["layers"] = choose_layers(encoder, settings["layers"], default)
    settings["device"] = devices.pick_device(settings["device"])
    transform = evaluation_transform(
        encoder, **{key: settings[key] for key in ("size", "crop_pct", "interpolation")}
    )
    for part in settings["parts"]:
        channels(1, encoder.dim, encoder.split, part, settings["split"])
    weights = encoders.fingerprint(encoder)
    digests = {split: index.digest for split, index in splits.items()}
    matters = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    identity = manifest.identity("probe", matters, weights, digests)
    out = request.out or request.choose_out(
        encoders.folder(
            request.document, settings["encoder"], f"probe-{settings['eval']}-{identity[:8]}"
        )
    )
    if (done := run_folder.finished(out, identity)) is not None:
        request.say(f"{out} is finished already: this is its manifest")
        return done
    request.choose_out(out)
    run_folder.lock(out)
    kept = encoders.features_folder(request.document, settings["encoder"], out)
    train, test = extract(encoder, splits, transform, settings, kept)
    if not settings["cached"]:
        train.stream = augmented(encoder, splits["train"], transform, settings)
    evaluation = schema.pick(evals, settings["eval"], "evaluation")
    knobs = {key: settings[key] for key in schema.own_knobs(evaluation)}
    with training(train, knobs) as train.progress:
        outcome = evaluation(train, test, settings["parts"], settings["split"], **knobs)
    facts = {
        "encoder": label,
        "weights": weights,
        "features": f"{settings['layers']}, {train.features.shape[1]} dimensions, fp32",
        "slicing": f"{settings['split']}; invariant are {encoder.split} of {encoder.dim}",
        "transform": transform.describe(),
        "metric": "micro accuracy in percent of all test samples",
        "train_samples": len(train.labels),
        "test_samples": len(test.labels),
        "classes": train.classes,
        "data": digests,
        **outcome.facts,
        **devices.platform(settings["device"]),
    }
    document = write(request.document, settings, outcome, weights, out)
    return request.record(document, identity, **facts)


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with every default written back: the shared ones, then the evaluation's."""
    from equitools import evals
    from equitools.manifest import schema

    evaluation = schema.pick(evals, given.get("eval", "knn"), "evaluation")
    settings = schema.knobs(schema.together(common_settings, evaluation), given, "probe")
    if not settings["cached"] and "epochs" not in settings:
        name = settings["eval"]
        raise UsageError(f"probe.cached=false is for evaluations that train; {name} does not")
    if settings["workers"] < 0 or settings["extract_batch_size"] < 1:
        raise UsageError("probe.workers is at least 0 and probe.extract_batch_size at least 1")
    return settings


def extract(
    encoder: Any, splits: dict[str, Any], transform: Any, settings: dict[str, Any], kept: Path
) -> list[Any]:
    """The tables of both splits; what `kept` has of them is read, what it lacks goes there."""
    from equitools.features import extract as features_extract
    from equitools.features.extract import subset
    from equitools.features.labels import require_labels

    tables = []
    for split, index in splits.items():
        total = len(subset(len(index), settings["limit"]))
        with progress(total, f"features of {split}", "image") as bar:
            table = features_extract.extract(
                encoder, index, transform=transform, layers=settings["layers"],
                device=settings["device"], batch_size=settings["extract_batch_size"],
                workers=settings["workers"], limit=settings["limit"], cache=kept,
                progress=bar.advance,
            )  # fmt: skip
        if table.read:
            log.info("features of %s: %s", split, table.read)
        if settings["eval"] != "embed":
            require_labels(table, split)
            table.features = table.features.to(settings["device"])
        tables.append(table)
    for table in tables:
        table.classes = max(other.classes for other in tables)
    return tables


@contextmanager
def training(train: Any, knobs: dict[str, Any]) -> Iterator[Any]:
    """A progress display of the samples that an evaluation trains on; None where none does."""
    if "epochs" not in knobs:
        yield None
        return
    total = len(train.labels) * knobs["epochs"] * len(knobs.get("seeds", [0]))
    with progress(total, "training heads", "sample") as bar:
        yield bar.advance


def augmented(encoder: Any, index: Any, transform: Any, settings: dict[str, Any]) -> Any:
    """New crops and flips of the training pictures each epoch, through the frozen encoder."""
    from equitools.features.extract import stream, subset

    return stream(
        encoder, index, subset(len(index), settings["limit"]), transform=transform,
        layers=settings["layers"], device=settings["device"], workers=settings["workers"],
    )  # fmt: skip


def write(
    document: dict[str, Any], settings: dict[str, Any], outcome: Any, weights: str, out: Path
) -> dict[str, Any]:
    """Save heads and arrays, and put settings, files and scores into the document."""
    from equitools.evals.embedding.embed import write_csv
    from equitools.nn import serialization

    name = settings["eval"]
    files, scores = dict(document.get("files", {})), dict(document.get("scores", {}))
    if settings["encoder"] is not None:
        files.pop("encoder", None)
        asked = [record["weights"] for record in document.get("history", []) if "weights" in record]
        if asked[-1:] != [weights]:
            scores = {}  # what is said of another encoder says nothing of this one
    files.pop("probe.heads", None)
    if outcome.heads:
        path = out / "probe-heads.safetensors"
        serialization.save_tensors(path, outcome.heads)
        files["probe.heads"] = manifest.entry(path)
    if outcome.arrays:
        serialization.save_tensors(out / "embeddings.safetensors", outcome.arrays)
        write_csv(out / "embeddings.csv", outcome.arrays)
        files["embeddings"] = manifest.entry(out / "embeddings.safetensors")
        files["embeddings.csv"] = manifest.entry(out / "embeddings.csv")
    scores |= {f"probe/{name}/{key}": value for key, value in outcome.scores.items()}
    return {**document, "kind": "scores", "probe": settings, "files": files, "scores": scores}


def check(section: dict[str, Any]) -> None:
    """Refuse wrong words before the pipe is waited for."""
    if "eval" in section:
        resolve(section)


def menu() -> Any:
    """The evaluations to choose from."""
    from equitools import evals

    return evals


PROGRAM = Program(
    name="probe",
    section="probe",
    reads=("shards", "checkpoint", "scores"),
    folders=("probe", "backbone"),
    run=run,
    check=check,
    menus={"evaluations (eval=…)": menu},
    help="""Probe a frozen encoder on labeled shards.

    Weighted nearest neighbors (knn), a linear head with many learning rates in one pass (linear),
    a three-layer one (mlp), or the features themselves for other tools (embed). The encoder is
    that of the manifest, or encoder=PATH, a timm name, random (the recipe's backbone without
    training) or pixels. Features are kept in features/ beside the encoder's weights (else beside
    the output), so that no evaluation computes them twice; that folder may be deleted.
    """,
)
main = command(PROGRAM)
