"""Changed pictures: is a probe's head still right, and do the encoder's maps move with them?"""

from pathlib import Path
from typing import Any, Literal

from equitools import manifest
from equitools.core.errors import UsageError

from .cli.command import command
from .cli.program import Program, Request
from .cli.progress import progress

# Settings that only the tests without a probe have.
UNJUDGED = ("layers", "encoder", "size", "crop_pct", "interpolation")


def own_settings(
    *,
    tests: dict = {},  # noqa: B006
    draws: int = 3,
    seed: int = 0,
    judge: Literal["probe", "finetuned"] = "probe",
    k: int = 20,
    layers: list[int] | None = None,
    norm: bool = True,
) -> None:
    """tests: {grid: {...}, sensitivity: {...}} with each one's own knobs. draws: passes with other
    random parameters; seed: of them. judge: the document's probe, or the networks that
    equi-transfer finetune left, on their test data. k: neighbors, where there is no head. Of
    equivariance and layers alone: layers, blocks or stages from 1, -1 is the last (null: all, or
    the first and each quarter); norm: a ViT's final norm on every block."""


def picture_settings(
    *, crop_pct: float | None = None, interpolation: Literal["bicubic", "bilinear"] | None = None
) -> None:
    """Of the tests without a judge, as the encoder's settings are; by default those of the probe or
    of the document."""


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with every default written back, those of the tests too."""
    from equitools.evals import PERTURB, run
    from equitools.manifest import schema

    parts = (run.encoder_settings, picture_settings, run.reading_settings)
    whole = schema.together(own_settings, *parts)
    for key in given.keys() - set(schema.own_knobs(whole)):
        for name in given.get("tests") or {}:
            if name in PERTURB and key in schema.own_knobs(PERTURB[name].evaluate):
                raise UsageError(f"{key} is of {name}: say tests.{name}.{key}={given[key]}")
    settings = schema.knobs(whole, given, "perturb")
    run.check_reading(settings, "perturb")
    if settings["draws"] < 1:
        raise UsageError(f"perturb.draws is {settings['draws']}; it is at least 1")
    settings["tests"] = {
        name: schema.knobs(
            schema.pick(PERTURB, name, "perturbation").evaluate,
            knobs or {},
            f"perturb.tests.{name}",
        )
        for name, knobs in settings["tests"].items()
    }
    check_together(settings)
    return settings


def check_together(settings: dict[str, Any]) -> None:
    """UsageError for tests and settings that do not go together."""
    from equitools.evals import PERTURB

    judged, others = split_tests(settings)
    given = [key for key in UNJUDGED if settings[key] is not None]
    if judged and given:
        unjudged = " and ".join(name for name in PERTURB if PERTURB[name].reads != "changes")
        raise UsageError(
            f"{judged[0]} asks the encoder of the probe as the probe saw it, so perturb.{given[0]}"
            f" is for {unjudged} alone; run them apart"
        )
    if settings["judge"] == "finetuned" and others:
        raise UsageError(f"judge=finetuned does not go with {others[0]}; run them apart")


def split_tests(settings: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The names of the tests that need a judge, and of those that look at the encoder itself."""
    from equitools.evals import PERTURB

    judged = [name for name in settings["tests"] if PERTURB[name].reads == "changes"]
    return judged, [name for name in settings["tests"] if name not in judged]


def run(request: Request) -> dict[str, Any] | None:
    """Judge every changed test set, look at the encoder's maps, and write it all down."""
    from equitools.evals import PERTURB

    settings = resolve(request.settings)
    if not settings["tests"]:
        raise UsageError(f"no perturbation is asked for; name one: {', '.join(PERTURB)}")
    if request.plan:
        request.print_plan(manifest.dump({"perturb": settings}))
        return None
    return (by_networks if settings["judge"] == "finetuned" else by_probe)(request, settings)


def by_probe(request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    """The tests of one encoder: that of the document's probe, or the one that is asked for."""
    from equitools.evals import PERTURB, run
    from equitools.evals.equivariance import shard_maps
    from equitools.evals.robustness import judges
    from equitools.features import encoders, maps
    from equitools.features.table import Outcome

    document = request.document
    judged, others = split_tests(settings)
    seen = judges.probe_of(document) if judged else encoders.reading(document, settings)
    splits = shard_maps.open_splits(document, [PERTURB[name] for name in others])
    subject = run.find(document, seen)
    if others:
        maps.choose(subject.encoder, settings["layers"])

    def evaluate(out: Path) -> Outcome:
        outcome = Outcome({})
        if judged:
            judge = judges.of_probe(document, subject.encoder, seen, settings, out, progress)
            tests = judges.columns(PERTURB, settings)
            outcome = judges.judged([judge], splits["val"], tests, settings, progress)
        for name in others:
            one = shard_maps.evaluate(
                PERTURB[name], name, subject, splits, settings, seen, document, out, progress
            )
            outcome.scores |= {f"perturb/{name}/{key}": v for key, v in one.scores.items()}
            outcome.facts[name] = one.facts
            for what, why in one.facts.get("left_out", {}).items():
                request.warn(f"{what} of {subject.label} is left out: {why}")
        return outcome

    digests = {split: index.digest for split, index in splits.items()}
    heads = document["files"].get("probe.heads", {}).get("digest")
    return run.run(
        request,
        "perturb",
        settings,
        evaluate,
        folder=encoders.folder(document, seen["encoder"], "perturb"),
        depends=(seen, subject.weights, digests, heads),
        facts={"encoder": subject.label, "weights": subject.weights, "data": digests},
    )


def by_networks(request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    """Judge every changed test set by the networks that a transfer fine-tuned, on its test data."""
    from equitools.evals import PERTURB, run
    from equitools.evals.robustness import judges
    from equitools.features.table import Outcome

    document = request.document
    tuning = judges.tuning_of(document)
    index = judges.tested_on(document, tuning)
    settings["limit"] = tuning["limit"] if settings["limit"] is None else settings["limit"]

    def evaluate(out: Path) -> Outcome:
        networks = judges.of_tuning(document, tuning, out)
        tests = judges.columns(PERTURB, settings, "finetuned-")
        return judges.judged(networks, index, tests, settings, progress)

    home = manifest.locate(document["files"]["transfer.heads"], "transfer.heads").parent
    return run.run(
        request,
        "perturb",
        settings,
        evaluate,
        folder=home / "perturb",
        depends=(tuning, index.digest),
        facts={"networks": tuning["networks"], "data": {"val": index.digest}},
    )


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
if __name__ == "__main__":
    main()
