"""Changed pictures: is a probe's head still right, and do the encoder's maps move with them?"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from equitools import manifest
from equitools.core.errors import DataError, UsageError
from equitools.manifest import run_folder

from .cli.command import command
from .cli.program import Program, Request
from .cli.progress import progress

# What may change without changing the scores.
NOT_IDENTITY = ("device", "workers", "extract_batch_size")


def settings_of(
    *,
    tests: dict = {},  # noqa: B006
    draws: int = 3,
    seed: int = 0,
    judge: Literal["probe", "finetuned"] = "probe",
    k: int = 20,
    layers: list[int] | None = None,
    norm: bool = True,
    encoder: str | None = None,
    encoder_seed: int = 0,
    pretrained: bool = False,
    size: int | None = None,
    crop_pct: float | None = None,
    interpolation: Literal["bicubic", "bilinear"] | None = None,
    limit: int | None = None,
    extract_batch_size: int = 256,
    device: str = "auto",
    workers: int = 2,
) -> None:
    """The knobs of `perturb`; the signature is the schema.

    tests: {grid: {...}, sensitivity: {...}} with each one's own knobs. draws: passes with other
    random parameters; seed: of them. judge: the document's probe, or the networks that
    equi-transfer finetune left, on their test data. k: neighbors, where there is no head. limit: so
    many samples of a split at most. Of equivariance and layers alone: layers, blocks or stages from
    1, -1 is the last (null: all, or the first and each quarter); norm: a ViT's final norm on every
    block. Of these and sensitivity: encoder, encoder_seed, pretrained, size, crop_pct,
    interpolation as equi-probe has them, by default those of the probe or of the document.
    """


# Settings that only the tests without a probe have.
UNJUDGED = ("layers", "encoder", "size", "crop_pct", "interpolation")
TRAINED = {"layers", "sensitivity"}  # tests that train a classifier of their own
ASKED = ("images", "test_pairs", "test_pictures")  # knobs that limit the test pictures


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with every default written back, those of the tests too."""
    from equitools import evals
    from equitools.evals.robustness import perturbations
    from equitools.manifest import schema

    for key in given.keys() - set(schema.own_knobs(settings_of)):
        for name in given.get("tests") or {}:
            test: Any = (perturbations.TESTS | evals.DIAGNOSES).get(name)
            if test is not None and key in schema.own_knobs(test):
                raise UsageError(f"{key} is of {name}: say tests.{name}.{key}={given[key]}")
    settings = schema.knobs(settings_of, given, "perturb")
    if settings["draws"] < 1:
        raise UsageError(f"perturb.draws is {settings['draws']}; it is at least 1")
    menu = perturbations.TESTS | evals.DIAGNOSES
    settings["tests"] = {
        name: schema.knobs(
            schema.pick(menu, name, "perturbation"), knobs or {}, f"perturb.tests.{name}"
        )
        for name, knobs in settings["tests"].items()
    }
    judged = [name for name in settings["tests"] if name in perturbations.TESTS]
    said = [key for key in UNJUDGED if settings[key] is not None]
    if judged and said:
        raise UsageError(
            f"{judged[0]} asks the encoder of the probe as the probe saw it, so perturb.{said[0]}"
            f" is for {' and '.join(evals.DIAGNOSES)} alone; run them apart"
        )
    others = [name for name in settings["tests"] if name not in perturbations.TESTS]
    if settings["judge"] == "finetuned" and others:
        raise UsageError(f"judge=finetuned does not go with {others[0]}; run them apart")
    return settings


def columns(settings: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(test, column, what is done) of every column of the tests that a probe judges."""
    from equitools.evals import DIAGNOSES
    from equitools.evals.robustness import perturbations

    if not settings["tests"]:
        names = ", ".join([*perturbations.TESTS, *DIAGNOSES])
        raise UsageError(f"no perturbation is asked for; name one: {names}")
    return [
        (test, name, column)
        for test, knobs in settings["tests"].items()
        if test in perturbations.TESTS
        for name, column in perturbations.TESTS[test](**knobs).items()
    ]


def run(request: Request) -> dict[str, Any] | None:
    """Find the encoder, judge every changed test set, diagnose its maps, and write it all down."""
    settings = resolve(request.settings)
    tests = columns(settings)
    if request.plan:
        request.print_plan(manifest.dump({"perturb": settings}))
        return None
    if settings["judge"] == "finetuned":
        return run_finetuned(request, settings, tests)
    from equitools.core import devices
    from equitools.data.shards.index import open_split
    from equitools.evals import DIAGNOSES
    from equitools.evals.robustness import judges
    from equitools.features import encoders, maps

    document = request.document
    probe = judges.probe_of(document) if tests else encoders.shown(document, settings)
    diagnoses = [name for name in settings["tests"] if name in DIAGNOSES]
    index = open_split(document, "val")
    splits = {"val": index}
    if TRAINED & set(diagnoses):
        splits["train"] = apart(open_split(document, "train"), index)
    encoder, label = encoders.find(
        document, probe["encoder"], seed=probe["encoder_seed"], pretrained=probe["pretrained"]
    )
    if diagnoses:
        maps.choose(encoder, settings["layers"])
    settings["device"] = devices.pick_device(settings["device"])
    weights = encoders.fingerprint(encoder)
    digests = {split: found.digest for split, found in splits.items()}
    matters = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    heads = document["files"].get("probe.heads", {}).get("digest")
    identity = manifest.identity("perturb", matters, probe, weights, digests, heads)
    name = f"perturb-{identity[:8]}"
    out, done = begin(request, identity, encoders.folder(document, probe["encoder"], name))
    if done is not None:
        return done
    scores: dict[str, float] = {}
    facts: dict[str, Any] = {"encoder": label, "weights": weights, "data": digests}
    if tests:
        judge = judges.of_probe(document, encoder, probe, settings, out, progress)
        scores |= judges.measure([judge], index, tests, settings, progress)
        facts |= judges.facts(encoder, tests, probe)
        who = judges.judge_of(document, settings["k"])
        facts |= judged(f"{who} of clean pictures", judge, probe["split"], index, settings)
    for name in diagnoses:
        kept = encoders.features_folder(document, probe["encoder"], out)
        outcome = diagnose(name, encoder, splits, probe, settings, out, kept)
        scores |= {f"perturb/{name}/{key}": value for key, value in outcome.scores.items()}
        facts[name] = outcome.facts
        for what, why in outcome.facts.get("left_out", {}).items():
            request.warn(f"{what} of {label} is left out: {why}")
    facts |= devices.platform(settings["device"])
    return request.record(finish(document, settings, scores), identity, **facts)


def run_finetuned(
    request: Request, settings: dict[str, Any], tests: list[tuple[str, str, Any]]
) -> dict[str, Any]:
    """Judge every changed test set by the networks that a transfer fine-tuned, on its test data."""
    from equitools.core import devices
    from equitools.evals.robustness import judges

    document = request.document
    tuning = judges.tuning_of(document)
    index = judges.tested_on(document, tuning)
    settings["device"] = devices.pick_device(settings["device"])
    settings["limit"] = tuning["limit"] if settings["limit"] is None else settings["limit"]
    matters = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    identity = manifest.identity("perturb", matters, tuning, index.digest)
    home = manifest.locate(document["files"]["transfer.heads"], "transfer.heads").parent
    out, done = begin(request, identity, home / f"perturb-{identity[:8]}")
    if done is not None:
        return done
    found = judges.of_tuning(document, tuning, out)
    named = [(f"finetuned-{test}", name, column) for test, name, column in tests]
    scores = judges.measure(found, index, named, settings, progress)
    who = f"{len(found)} fine-tuned networks with their heads"
    facts = {"networks": tuning["networks"], "data": {"val": index.digest}}
    facts |= judges.facts(found[0].encoder, named, tuning)
    facts |= judged(who, found[0], tuning["split"], index, settings)
    facts |= devices.platform(settings["device"])
    return request.record(finish(document, settings, scores), identity, **facts)


def begin(request: Request, identity: str, default: Path) -> tuple[Path, Any]:
    """The output folder, locked, and the manifest of what is finished there or None."""
    out = request.out or request.choose_out(default)
    if (done := run_folder.finished(out, identity)) is not None:
        request.say(f"{out} is finished already: this is its manifest")
        return out, done
    out = request.choose_out(out)
    run_folder.lock(out)
    return out, None


def judged(
    who: str, judge: Any, slicing: str, index: Any, settings: dict[str, Any]
) -> dict[str, Any]:
    """What a record says of judges and test pictures."""
    from equitools.features.extract import subset

    return {
        "judge": f"{who}, {judge.layers}, slicing {slicing}",
        "draws": settings["draws"],
        "test_samples": len(subset(len(index), settings["limit"])),
    }


def finish(
    document: dict[str, Any], settings: dict[str, Any], scores: dict[str, float]
) -> dict[str, Any]:
    """The document with settings and scores; what is said of another encoder than its own says
    nothing of this one."""
    known, files = document.get("scores", {}), dict(document.get("files", {}))
    if settings["encoder"] is not None:
        known = {}
        files = {key: v for key, v in files.items() if key not in ("encoder", "probe.heads")}
        document = {key: value for key, value in document.items() if key != "probe"}
    changed = {"kind": "scores", "perturb": settings, "files": files}
    return {**document, **changed, "scores": {**known, **scores}}


def apart(train: Any, val: Any) -> Any:
    """The train split; DataError where it is the val split once more."""
    if train.digest == val.digest:
        raise DataError(
            "the train and the val split are the same shards; a classifier would be judged on"
            " pictures that it has learned"
        )
    return train


def diagnose(
    name: str, encoder: Any, splits: dict[str, Any], probe: dict[str, Any],
    settings: dict[str, Any], out: Path, kept: Path,
) -> Any:  # fmt: skip
    """What one evaluation of maps says of an encoder, and how it was done.

    kept: the folder of features. Networks that it trains are saved in resume/ below `out` until it
    has ended.
    """
    from equitools.evals import DIAGNOSES
    from equitools.evals.classifiers import finetuning
    from equitools.evals.equivariance import sensitivity
    from equitools.features import encoders, maps
    from equitools.features.extract import subset
    from equitools.features.transform import evaluation_transform

    knobs = settings["tests"][name]
    default = maps.quarters(encoder.depth) if name == "layers" else None
    layers = maps.choose(encoder, settings["layers"] or default)
    shape = {key: probe[key] for key in ("size", "crop_pct", "interpolation")}
    transform = evaluation_transform(encoder, **shape)
    limits = {"val": maps.fewest(*(knobs.get(what) for what in ASKED))}
    if name in TRAINED:
        limits["train"] = maps.fewest(knobs.get("train_pairs"), knobs.get("train_pictures"))
    shown = {
        split: len(subset(len(splits[split]), maps.fewest(limit, settings["limit"])))
        for split, limit in limits.items()
    }
    total = sum(shown.values())
    if name == "sensitivity":
        total = sensitivity.pictures_read(knobs, encoder.split, shown["train"], shown["val"])

    def resume(what: str, *matters: Any) -> finetuning.Kept:
        (out / "resume").mkdir(exist_ok=True)
        digests = [index.digest for index in splits.values()]
        named = (encoders.fingerprint(encoder), digests, settings["limit"], shape)
        path = out / "resume" / f"{name}-{what}.safetensors"
        return finetuning.Kept(path, manifest.identity(name, what, matters, named))

    with progress(total, name, "image") as bar:
        source = maps.source(
            encoder, splits, transform, layers, norm=settings["norm"], seed=settings["seed"],
            untrained=lambda: encoders.untrained(encoder, probe["encoder_seed"]),
            limit=settings["limit"], device=settings["device"], workers=settings["workers"],
            batch_size=settings["extract_batch_size"], progress=bar.advance, cache=kept,
            resume=resume,
        )  # fmt: skip
        evaluation: Any = DIAGNOSES[name]
        outcome = evaluation(source, **knobs)
    shutil.rmtree(out / "resume", ignore_errors=True)
    normed = "its final norm on every block" if settings["norm"] else "as the block leaves them"
    outcome.facts["transform"] = transform.describe()
    if name != "sensitivity":
        what = f"patch tokens, {normed}" if encoder.is_vit else "maps of the stages"
        outcome.facts |= {"layers": layers, "maps": what}
    return outcome


PROGRAM = Program(
    name="perturb",
    section="perturb",
    reads=("shards", "checkpoint", "scores"),
    folders=("perturb", "backbone"),
    run=run,
    check=resolve,
    help="""Judge changed test pictures with the head (or neighbors) of a probe, or look at the
    encoder's maps of them.

    grid is the Orig / CJ / CJ+Flip / CJ+Ro / CJ+Ro(180) / CJ+Ro+ET comparison; rotation and elastic
    sweep the strength of one change; invariance is rotation alone and curves over angle and alpha.
    equivariance scores how each layer's map moves with turned, flipped and scaled pictures, its
    controls beside it; layers asks a classifier how pairs were turned or flipped, sensitivity a
    linear one how single pictures were turned: these need no probe, and take encoder= as equi-probe
    does. A change depends on the picture's key and the seed alone: all encoders see the same.
    """,
)
main = command(PROGRAM)
