"""Probe a frozen encoder: nearest neighbors, linear heads, or the features themselves."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from equitools import manifest
from equitools.core.errors import UsageError

from .cli.command import command
from .cli.program import Program, Request
from .cli.progress import progress


def own_settings(*, eval: str = "knn") -> None:
    """eval: the evaluation."""


def cached_settings(*, cached: bool = True) -> None:
    """cached: features of the evaluation transform, computed once; else new crops each epoch."""


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with every default written back: the shared ones, then the evaluation's."""
    from equitools import evals
    from equitools.evals import run
    from equitools.evals.classification.datasets import part_settings
    from equitools.manifest import schema

    evaluation = schema.pick(evals.PROBE, given.get("eval", "knn"), "evaluation").evaluate
    shared = (run.encoder_settings, run.picture_settings, cached_settings, run.reading_settings)
    whole = schema.together(own_settings, part_settings, *shared, evaluation)
    settings = schema.knobs(whole, given, "probe")
    if not settings["cached"] and "epochs" not in settings:
        name = settings["eval"]
        raise UsageError(f"probe.cached=false is for evaluations that train; {name} does not")
    run.check_reading(settings, "probe")
    return settings


def run(request: Request) -> dict[str, Any] | None:
    """Check the settings, extract features of both splits, evaluate, and write it all down."""
    settings = resolve(request.settings)
    if request.plan:
        request.print_plan(manifest.dump({"probe": settings}))
        return None
    from equitools import evals
    from equitools.evals import run as runs
    from equitools.evals.classification import datasets, labeled
    from equitools.evals.embedding import embed
    from equitools.features import encoders
    from equitools.features.extract import choose_layers
    from equitools.features.labels import same_classes
    from equitools.features.table import Outcome

    document, name = request.document, settings["eval"]
    evaluation = evals.PROBE[name]
    splits = datasets.open_splits(document)
    same_classes(*splits.values())
    subject = runs.find(document, settings)
    settings["layers"] = choose_layers(subject.encoder, settings["layers"], evaluation.layers)
    labeled.view_of(subject.encoder, settings)

    def evaluate(out: Path) -> Outcome:
        source = labeled.Labeled(subject.encoder, splits, settings, document, out, progress)
        if name != "embed":
            source.require_labels()
        train, test = source.tables()
        train.stream = None if settings["cached"] else source.stream()
        with source.training(train) if "epochs" in settings else nullcontext():
            outcome = evaluation(settings, train, test, settings["parts"], settings["split"])
        outcome.scores = {f"probe/{name}/{key}": v for key, v in outcome.scores.items()}
        outcome.files |= embed.write(out, outcome.arrays)
        outcome.facts = {
            **source.facts(),
            "features": f"{settings['layers']}, {train.features.shape[1]} dimensions, fp32",
            "metric": "micro accuracy in percent of all test samples",
            **outcome.facts,
        }
        return outcome

    return runs.run(
        request,
        "probe",
        settings,
        evaluate,
        folder=encoders.folder(document, settings["encoder"], f"probe-{name}"),
        depends=(subject.weights, labeled.digests(splits)),
        facts={"encoder": subject.label, "weights": subject.weights},
    )


def check(section: dict[str, Any]) -> None:
    """Refuse wrong words before the pipe is waited for."""
    if "eval" in section:
        resolve(section)


def menu() -> list[tuple[str, str]]:
    """The evaluations to choose from, with what they say."""
    from equitools import evals

    return evals.menu(evals.PROBE)


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
if __name__ == "__main__":
    main()
