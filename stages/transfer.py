"""Transfer an encoder to other data: labels, foreground masks, the objects of a video."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from equitools import manifest
from equitools.core.errors import UsageError
from equitools.manifest import files, run_folder
from equitools.manifest.schema import knobs, own_knobs, pick, together

from .cli.command import command
from .cli.program import Program, Request
from .cli.progress import progress

# What may change without changing the scores; data are known by their digest.
NOT_IDENTITY = ("data", "device", "workers", "extract_batch_size")
# The module of equitools that finds an evaluation's data and shows them to an encoder. Each offers
#   settings_of(*, ...)             knobs of its own, beside `common_settings` and the evaluation's
#   open_data(document, settings)   the data, checked: an object with a `digest`, and with
#   .source(encoder, settings, out, progress)   what the evaluation gets; `out` is a folder for
#                                   files, progress(total, what, unit) is frame.progress
DATA = {
    "linear": "classification.datasets", "finetune": "classification.datasets",
    "semi": "classification.few_labels", "saliency": "segmentation.saliency_data",
    "video": "segmentation.davis",
}  # fmt: skip
# The module of evals/ whose check(settings) refuses what cannot be.
CHECKED = {
    "linear": "classification.downstream_linear", "finetune": "classification.finetune",
    "semi": "classification.finetune", "saliency": "segmentation.saliency",
}  # fmt: skip


def common_settings(
    *,
    eval: str,
    data: str | None = None,
    label: str | None = None,
    encoder: str | None = None,
    encoder_seed: int = 0,
    pretrained: bool = False,
    size: int | None = None,
    limit: int | None = None,
    extract_batch_size: int = 256,
    device: str = "auto",
    workers: int = 2,
) -> None:
    """The knobs of `transfer` that every evaluation shares; the signature is the schema.

    eval: the evaluation. data: the folder or manifest that it looks at; label: what tables call
    them, where the path does not say it. encoder: a path, timm name,
    random or pixels instead of the document's; encoder_seed: of random weights; pretrained: let
    timm download. size: of the pictures that the network sees, by the evaluation's own rule when
    null. limit: so many pictures (or sequences) at most.
    """


def schema(name: str) -> Any:
    """The signature with every knob of an evaluation."""
    from equitools import evals

    evaluation = pick(evals.TRANSFERS, name, "evaluation")
    return together(common_settings, module(name).settings_of, evaluation)


def module(name: str) -> Any:
    """The module that finds an evaluation's data."""
    return importlib.import_module(f"equitools.evals.{DATA[name]}")


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with every default written back, and `data` as a path from the root."""
    if given.get("eval") is None:
        raise UsageError(f"no evaluation is asked for; name one: {', '.join(DATA)}")
    settings = knobs(schema(given["eval"]), given, "transfer")
    if settings["workers"] < 0 or settings["extract_batch_size"] < 1:
        raise UsageError(
            "transfer.workers is at least 0 and transfer.extract_batch_size at least 1"
        )
    for key in ("limit", "size"):
        if settings[key] is not None and settings[key] < 1:
            raise UsageError(f"transfer.{key} is {settings[key]}; it is at least 1")
    if (checked := CHECKED.get(settings["eval"])) is not None:
        importlib.import_module(f"equitools.evals.{checked}").check(settings)
    if settings["eval"] == "linear" and settings["head"] == "logistic":
        settings["crop_pct"] = settings["crop_pct"] or 1.0  # the whole short side, as its protocol
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
    from equitools.core import devices
    from equitools.features import encoders

    document, name = request.document, settings["eval"]
    data = module(name).open_data(document, settings)
    encoder, label = encoders.find(
        document, settings["encoder"], seed=settings["encoder_seed"],
        pretrained=settings["pretrained"],
    )  # fmt: skip
    settings["device"] = devices.pick_device(settings["device"])
    weights = encoders.fingerprint(encoder)
    matters = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    identity = manifest.identity("transfer", matters, weights, data.digest)
    out = request.out or request.choose_out(
        encoders.folder(document, settings["encoder"], f"transfer-{name}-{identity[:8]}")
    )
    if (done := run_folder.finished(out, identity)) is not None:
        request.say(f"{out} is finished already: this is its manifest")
        return done
    request.choose_out(out)
    run_folder.lock(out)
    evaluation = evals.TRANSFERS[name]
    source = data.source(encoder, settings, out, progress)
    outcome = evaluation(source, **{key: settings[key] for key in own_knobs(evaluation)})
    for what, why in outcome.facts.get("left_out", {}).items():
        request.warn(f"left out: {what}, because {why}")
    facts = {"encoder": label, "weights": weights, "data": data.digest, **outcome.facts}
    facts |= devices.platform(settings["device"])
    return request.record(write(document, settings, outcome, out), identity, **facts)


def write(
    document: dict[str, Any], settings: dict[str, Any], outcome: Any, out: Path
) -> dict[str, Any]:
    """Save trained heads, and put settings, files and scores into the document, in place of what an
    earlier transfer left there.

    What is said of another encoder than the document's own says nothing of this one.
    """
    known, entries = dict(document.get("scores", {})), dict(document.get("files", {}))
    if settings["encoder"] is not None:
        known = {}
        entries = {key: v for key, v in entries.items() if key not in ("encoder", "probe.heads")}
        document = {key: value for key, value in document.items() if key != "probe"}
    entries = {key: entry for key, entry in entries.items() if not key.startswith("transfer.")}
    entries |= outcome.files
    if outcome.heads:
        from equitools.nn import serialization

        path = out / "transfer-heads.safetensors"
        serialization.save_tensors(path, outcome.heads)
        entries["transfer.heads"] = manifest.entry(path)
    mine = f"transfer/{settings['eval']}/"
    known = {key: value for key, value in known.items() if not key.startswith(mine)}
    scores = known | {f"{mine}{key}": value for key, value in outcome.scores.items()}
    changed = {"equitools": manifest.SCHEMA, "kind": "scores", "transfer": settings}
    return {**document, **changed, "files": entries, "scores": scores}


def check(section: dict[str, Any]) -> None:
    """Refuse wrong words before the pipe is waited for."""
    if "eval" in section:
        resolve(section)


def menu() -> Any:
    """The evaluations to choose from."""
    from equitools import evals

    return evals.TRANSFERS


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
