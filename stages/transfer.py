"""Transfer an encoder to other data: labels, foreground masks, the objects of a video."""

from pathlib import Path
from typing import Any

from equitools import manifest
from equitools.core.errors import UsageError
from equitools.manifest import files

from .cli.command import command
from .cli.program import Program, Request
from .cli.progress import progress


def own_settings(*, eval: str, data: str | None = None, label: str | None = None) -> None:
    """eval: the evaluation. data: the folder or manifest that it looks at; label: what tables call
    them, where the path does not say it."""


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with every default written back, and `data` as a path from the root."""
    from equitools import evals
    from equitools.evals import run
    from equitools.manifest import schema

    if given.get("eval") is None:
        names = ", ".join(evals.TRANSFER)
        raise UsageError(f"no evaluation is asked for; name one: {names}")
    evaluation = schema.pick(evals.TRANSFER, given["eval"], "evaluation")
    shared = (run.encoder_settings, run.reading_settings, evaluation.data.settings_of)
    whole = schema.together(own_settings, *shared, evaluation.evaluate)
    settings = schema.knobs(whole, given, "transfer")
    run.check_reading(settings, "transfer")
    for key in ("limit", "size"):
        if settings[key] is not None and settings[key] < 1:
            raise UsageError(f"transfer.{key} is {settings[key]}; it is at least 1")
    if evaluation.check is not None:
        evaluation.check(settings)
    if settings["data"] is not None:
        settings["data"] = str(files.absolute(settings["data"]))
    return settings


def run(request: Request) -> dict[str, Any] | None:
    """Find data and encoder, evaluate, and write it all down."""
    settings = resolve(request.settings)
    if request.plan:
        request.print_plan(manifest.dump({"transfer": settings}))
        return None
    from equitools import evals
    from equitools.evals import run as runs
    from equitools.features import encoders
    from equitools.features.table import Outcome

    document, name = request.document, settings["eval"]
    evaluation, prefix = evals.TRANSFER[name], f"transfer/{name}/"
    data = evaluation.data.open_data(document, settings)
    subject = runs.find(document, settings)

    def evaluate(out: Path) -> Outcome:
        outcome = evaluation(settings, data.source(subject.encoder, settings, out, progress))
        for what, why in outcome.facts.get("left_out", {}).items():
            request.warn(f"left out: {what}, because {why}")
        outcome.scores = {prefix + key: value for key, value in outcome.scores.items()}
        return outcome

    return runs.run(
        request,
        "transfer",
        settings,
        evaluate,
        folder=encoders.folder(document, settings["encoder"], f"transfer-{name}"),
        depends=(subject.weights, data.digest),
        facts={"encoder": subject.label, "weights": subject.weights, "data": data.digest},
        replaces=prefix,
    )


def check(section: dict[str, Any]) -> None:
    """Refuse wrong words before the pipe is waited for."""
    if "eval" in section:
        resolve(section)


def menu() -> list[tuple[str, str]]:
    """The evaluations to choose from, with what they say."""
    from equitools import evals

    return evals.menu(evals.TRANSFER)


PROGRAM = Program(
    name="transfer",
    section="transfer",
    reads=("shards", "checkpoint", "scores"),
    folders=("transfer", "backbone"),
    run=run,
    required=False,
    check=check,
    menus={"evaluations (eval=…)": menu},
    help="""Transfer an encoder to other data (data=PATH).

    linear trains a linear classifier on frozen features of other data (shards, or an image folder
    with train/ and val/), finetune the whole encoder, semi does so with few of the labels
    (fraction=0.01, or list=FILE). saliency finds the foreground of pictures by TokenCut;
    video follows the objects of a video's first frame. The encoder is that of the manifest, or
    encoder=PATH, a timm name, or random (the recipe's backbone without training).
    """,
)
main = command(PROGRAM)
if __name__ == "__main__":
    main()
