"""Changed pictures: is a probe's head still right, and do the encoder's maps move with them?"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from equitools import frame, manifest
from equitools.errors import DataError, UsageError
from equitools.frame import Program, Request

# What may change without changing the scores.
NOT_IDENTITY = ("device", "workers", "extract_batch_size")


def settings_of(
    *,
    tests: dict = {},  # noqa: B006
    draws: int = 3,
    seed: int = 0,
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
    random parameters; seed: of them. k: neighbors, where there is no head. limit: so many samples
    of a split at most. Of equivariance and layers alone: layers, blocks or stages from 1, -1 is the
    last (null: all, or the first and each quarter); norm: a ViT's final norm on every block. Of
    these and sensitivity: encoder, encoder_seed, pretrained, size, crop_pct, interpolation as
    equi-probe has them, by default those of the probe or of the document.
    """


# Settings that only the tests without a probe have.
UNJUDGED = ("layers", "encoder", "size", "crop_pct", "interpolation")
TRAINED = {"layers", "sensitivity"}  # tests that train a classifier of their own
ASKED = ("images", "test_pairs", "test_pictures")  # knobs that limit the test pictures


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with every default written back, those of the tests too."""
    from equitools import evals, names
    from equitools.evals import perturbed

    settings = names.knobs(settings_of, given, "perturb")
    if settings["draws"] < 1:
        raise UsageError(f"perturb.draws is {settings['draws']}; it is at least 1")
    menu = perturbed.TESTS | evals.DIAGNOSES
    settings["tests"] = {
        name: names.knobs(
            names.pick(menu, name, "perturbation"), knobs or {}, f"perturb.tests.{name}"
        )
        for name, knobs in settings["tests"].items()
    }
    judged = [name for name in settings["tests"] if name in perturbed.TESTS]
    said = [key for key in UNJUDGED if settings[key] is not None]
    if judged and said:
        raise UsageError(
            f"{judged[0]} asks the encoder of the probe as the probe saw it, so perturb.{said[0]}"
            f" is for {' and '.join(evals.DIAGNOSES)} alone; run them apart"
        )
    return settings


def columns(settings: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(test, column, what is done) of every column of the tests that a probe judges."""
    from equitools.evals import DIAGNOSES, perturbed

    if not settings["tests"]:
        names = ", ".join([*perturbed.TESTS, *DIAGNOSES])
        raise UsageError(f"no perturbation is asked for; name one: {names}")
    return [
        (test, name, column)
        for test, knobs in settings["tests"].items()
        if test in perturbed.TESTS
        for name, column in perturbed.TESTS[test](**knobs).items()
    ]


def run(request: Request) -> dict[str, Any] | None:
    """Find the encoder, judge every changed test set, diagnose its maps, and write it all down."""
    settings = resolve(request.settings)
    tests = columns(settings)
    if request.plan:
        request.print_plan(manifest.dump({"perturb": settings}))
        return None
    from equitools import encoders, features, maps, shards
    from equitools.evals import DIAGNOSES, perturbed

    document = request.document
    probe = perturbed.probe_of(document) if tests else encoders.shown(document, settings)
    diagnoses = [name for name in settings["tests"] if name in DIAGNOSES]
    index = shards.open_split(document, "val")
    splits = {"val": index}
    if TRAINED & set(diagnoses):
        splits["train"] = apart(shards.open_split(document, "train"), index)
    encoder, label = encoders.find(
        document, probe["encoder"], seed=probe["encoder_seed"], pretrained=probe["pretrained"]
    )
    if diagnoses:
        maps.choose(encoder, settings["layers"])
    settings["device"] = encoders.pick_device(settings["device"])
    weights = features.fingerprint(encoder)
    digests = {split: found.digest for split, found in splits.items()}
    matters = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    heads = document["files"].get("probe.heads", {}).get("digest")
    identity = manifest.identity("perturb", matters, probe, weights, digests, heads)
    out = request.out or request.choose_out(
        encoders.folder(document, probe["encoder"], f"perturb-{identity[:8]}")
    )
    if (done := frame.finished(out, identity)) is not None:
        request.say(f"{out} is finished already: this is its manifest")
        return done
    request.choose_out(out)
    frame.lock(out)
    scores: dict[str, float] = {}
    facts: dict[str, Any] = {"encoder": label, "weights": weights, "data": digests}
    if tests:
        kept = encoders.features_folder(document, probe["encoder"], out)
        judge = find_judge(document, encoder, probe, settings, kept)
        scores |= measure(encoder, index, judge, tests, probe, settings, kept)
        facts |= perturbed.facts(encoder, tests, probe)
        facts |= {
            "judge": f"{perturbed.judge_of(document, settings['k'])} of clean pictures,"
            f" {probe['layers']}, slicing {probe['split']}",
            "draws": settings["draws"],
            "test_samples": len(features.subset(len(index), settings["limit"])),
        }
    for name in diagnoses:
        outcome = diagnose(name, encoder, splits, probe, settings)
        scores |= {f"perturb/{name}/{key}": value for key, value in outcome.scores.items()}
        facts[name] = outcome.facts
        for what, why in outcome.facts.get("left_out", {}).items():
            request.said.warning("%s of %s is left out: %s", what, label, why)
    facts |= encoders.platform(settings["device"])
    return request.record(finish(document, settings, scores), identity, **facts)


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
    settings: dict[str, Any],
) -> Any:  # fmt: skip
    """What one evaluation of maps says of an encoder, and how it was done."""
    from equitools import encoders, features, maps, preprocess
    from equitools.evals import DIAGNOSES

    knobs = settings["tests"][name]
    default = maps.quarters(encoder.depth) if name == "layers" else None
    layers = maps.choose(encoder, settings["layers"] or default)
    shape = {key: probe[key] for key in ("size", "crop_pct", "interpolation")}
    transform = preprocess.evaluation_transform(encoder, **shape)
    limits = {"val": maps.fewest(*(knobs.get(what) for what in ASKED))}
    if name in TRAINED:
        limits["train"] = maps.fewest(knobs.get("train_pairs"), knobs.get("train_pictures"))
    total = sum(
        len(features.subset(len(splits[split]), maps.fewest(limit, settings["limit"])))
        for split, limit in limits.items()
    )
    with frame.progress(total, name, "image") as bar:
        source = maps.source(
            encoder, splits, transform, layers, norm=settings["norm"], seed=settings["seed"],
            untrained=lambda: encoders.untrained(encoder, probe["encoder_seed"]),
            limit=settings["limit"], device=settings["device"], workers=settings["workers"],
            batch_size=settings["extract_batch_size"], progress=bar.advance,
        )  # fmt: skip
        evaluation: Any = DIAGNOSES[name]
        outcome = evaluation(source, **knobs)
    normed = "its final norm on every block" if settings["norm"] else "as the block leaves them"
    outcome.facts["transform"] = transform.describe()
    if name != "sensitivity":
        what = f"patch tokens, {normed}" if encoder.is_vit else "maps of the stages"
        outcome.facts |= {"layers": layers, "maps": what}
    return outcome


def find_judge(
    document: dict[str, Any], encoder: Any, probe: dict[str, Any], settings: dict[str, Any],
    kept: Path,
) -> Any:  # fmt: skip
    """A function from a table of test features to {part/metric: percent}."""
    from equitools import checkpoint, features, preprocess, shards
    from equitools.evals import knn, perturbed

    if "probe.heads" in document["files"]:
        path = manifest.verify(document["files"]["probe.heads"], "probe.heads")
        return partial(perturbed.judge, heads=checkpoint.load_tensors(path), slicing=probe["split"])
    index = shards.open_split(document, "train")
    shape = {key: probe[key] for key in ("size", "crop_pct", "interpolation")}
    with frame.progress(len(index), "features of train", "image") as bar:
        train = features.extract(
            encoder, index, transform=preprocess.evaluation_transform(encoder, **shape),
            layers=probe["layers"], device=settings["device"], workers=settings["workers"],
            batch_size=settings["extract_batch_size"], limit=probe["limit"], cache=kept,
            progress=bar.advance,
        )  # fmt: skip
    if train.read:
        frame.said.info("features of train: %s", train.read)
    features.require_labels(train, "train")

    def neighbors(table: Any) -> dict[str, float]:
        knobs = {"k": [settings["k"]], "temperature": probe["temperature"][:1]}
        found = knn(train, table, probe["parts"], probe["split"], **knobs).scores
        return {f"{key.split('/')[0]}/{key.split('/')[-1]}": v for key, v in found.items()}

    return neighbors


def measure(
    encoder: Any, index: Any, judge: Any, tests: list[tuple[str, str, Any]],
    probe: dict[str, Any], settings: dict[str, Any], kept: Path,
) -> dict[str, float]:  # fmt: skip
    """Every score: `perturb/<test>/<column>/<part>/draw<k>/<metric>`, and mean and sd of draws."""
    from equitools import features, preprocess
    from equitools.evals import perturbed

    count = len(features.subset(len(index), settings["limit"]))
    passes = sum(settings["draws"] if column.operations else 1 for _, _, column in tests)
    scores: dict[str, float] = {}
    with frame.progress(count * passes, "changed pictures", "image") as bar:
        for test, name, column in tests:
            transform = preprocess.evaluation_transform(
                encoder, size=probe["size"], crop_pct=probe["crop_pct"],
                interpolation=column.interpolation,
            )  # fmt: skip
            draws = []
            for draw in range(settings["draws"] if column.operations else 1):
                table = features.extract(
                    encoder, index, transform=transform, layers=probe["layers"],
                    device=settings["device"], batch_size=settings["extract_batch_size"],
                    workers=settings["workers"], limit=settings["limit"], progress=bar.advance,
                    cache=kept, perturb=perturbed.perturbation(
                        column, transform.size, settings["seed"], draw
                    ),
                )  # fmt: skip
                features.require_labels(table, "val")
                draws.append(judge(table))
            scores |= perturbed.summary(f"perturb/{test}/{name}", draws)
    return scores


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
main = frame.command(PROGRAM)
