"""One evaluation from start to record: what equi-probe, equi-perturb and equi-transfer share.

An evaluation reads what a frozen encoder says of pictures, and answers with an Outcome. The steps
around it are always the same: find the encoder, name the run by all that its scores depend on, say
so if it is finished already, lock its folder, evaluate, and put scores, heads and files into the
document.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from equitools import manifest
from equitools.backbones.encoder import Encoder
from equitools.core import devices
from equitools.core.errors import UsageError
from equitools.features import encoders
from equitools.features.table import Outcome
from equitools.manifest import run_folder
from equitools.manifest.document import SCHEMA
from equitools.manifest.schema import own_knobs
from equitools.nn import serialization

# What may change without changing the scores; data are known by their digest.
NOT_IDENTITY = ("data", "device", "workers", "extract_batch_size")
Document = dict[str, Any]
Reads = Literal["features", "changes", "maps", "vectors", "labels", "masks", "videos"]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as the menus of equitools.evals have it.

    evaluate  what it reads, and its own knobs by keyword → an Outcome; the signature is the schema
    reads     features of both splits; maps or vectors of any pictures; labels, masks or videos of
              other data. changes: it says how pictures are changed for a head that is there already
    data      the module that finds other data: `settings_of` has its knobs, and
              `open_data(document, settings)` gives the data, checked, with their `digest` and
              `source(encoder, settings, out, progress)`, which is what the evaluation reads
    check     refuses settings that cannot be, before any picture is looked at
    layers    of which its features are where nobody says it: last, or cls4 for a ViT
    limits    {split: the knob that says how many of its pictures are read at most}
    """

    evaluate: Callable[..., Any]
    reads: Reads
    data: Any = None
    check: Callable[[dict[str, Any]], None] | None = None
    layers: str = "last"
    limits: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, settings: dict[str, Any], *source: Any) -> Any:
        """What it says of what it reads, with its own knobs among the settings."""
        return self.evaluate(*source, **{key: settings[key] for key in own_knobs(self.evaluate)})


# --- The settings that all share: a program's schema is made of these and of its own ----------


def encoder_settings(
    *,
    encoder: str | None = None,
    encoder_seed: int = 0,
    pretrained: bool = False,
    size: int | None = None,
) -> None:
    """encoder: a path, timm name, random or pixels instead of the document's; encoder_seed: of
    random weights; pretrained: let timm download. size: of the pictures that the network sees; when
    null the encoder's own, or as the evaluation says."""


def picture_settings(
    *, crop_pct: float | None = None, interpolation: Literal["bicubic", "bilinear"] = "bicubic"
) -> None:
    """crop_pct: of the pictures, the encoder's own when null."""


def reading_settings(
    *,
    limit: int | None = None,
    extract_batch_size: int = 256,
    device: str = "auto",
    workers: int = 2,
) -> None:
    """limit: so many samples of each split (or sequences) at most."""


def check_reading(settings: dict[str, Any], section: str) -> None:
    """UsageError for numbers of workers and of pictures at once that cannot be."""
    if settings["workers"] < 0 or settings["extract_batch_size"] < 1:
        raise UsageError(
            f"{section}.workers is at least 0 and {section}.extract_batch_size at least 1"
        )


# --- A run ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """The encoder that is asked about, its name for people, and the digest of its weights."""

    encoder: Encoder
    label: str
    weights: str


def find(document: Document, settings: dict[str, Any]) -> Subject:
    """The encoder that the settings ask for."""
    seed, pretrained = settings["encoder_seed"], settings["pretrained"]
    encoder, label = encoders.find(document, settings["encoder"], seed=seed, pretrained=pretrained)
    return Subject(encoder, label, encoders.fingerprint(encoder))


class Request(Protocol):
    """What a run needs of the program that was asked."""

    document: Document
    out: Path | None

    def choose_out(self, path: str | Path) -> Path:
        """The output folder, created: the one asked for, else `path`."""

    def say(self, text: str) -> None:
        """Tell people something."""

    def record(self, document: Document, id: str, **facts: Any) -> Document:
        """The document with a record at the end of its history."""


def run(
    request: Request,
    section: str,
    settings: dict[str, Any],
    evaluate: Callable[[Path], Outcome],
    *,
    folder: Path,
    depends: tuple[Any, ...],
    facts: dict[str, Any],
    replaces: str = "",
) -> Document:
    """The document with what `evaluate(out)` says; what its folder has already, if it is that.

    section: of the document, for the settings. folder: where the output goes unless the request
    says it, with the run's identity after its name. depends: what the scores depend on beside the
    settings. facts: what the record says beside what the outcome does. replaces: how the scores
    begin that an earlier run left and that go, where there are such.
    """
    settings["device"] = devices.pick_device(settings["device"])
    matters = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    identity = manifest.identity(section, matters, *depends)
    out = request.out or request.choose_out(folder.with_name(f"{folder.name}-{identity[:8]}"))
    if (done := run_folder.finished(out, identity)) is not None:
        request.say(f"{out} is finished already: this is its manifest")
        return done
    request.choose_out(out)
    run_folder.lock(out)
    outcome = evaluate(out)
    document = about(request.document, settings["encoder"], facts.get("weights"))
    if replaces:
        known = document.get("scores", {}).items()
        scores = {key: value for key, value in known if not key.startswith(replaces)}
        document = {**document, "scores": scores}
    facts = facts | outcome.facts | devices.platform(settings["device"])
    return request.record(filled(document, section, settings, outcome, out), identity, **facts)


def about(document: Document, wanted: str | None, weights: str | None) -> Document:
    """The document without what it says of an encoder that is not the one asked about."""
    if wanted is None:
        return document
    files = {key: entry for key, entry in document.get("files", {}).items() if key != "encoder"}
    judged = [record["weights"] for record in document.get("history", []) if "weights" in record]
    if judged[-1:] == [weights]:  # an earlier run was given the same encoder
        return {**document, "files": files}
    files.pop("probe.heads", None)
    rest = {key: value for key, value in document.items() if key != "probe"}
    return {**rest, "files": files, "scores": {}}


def filled(
    document: Document, section: str, settings: dict[str, Any], outcome: Outcome, out: Path
) -> Document:
    """The document with settings, scores, files and heads, which are saved, in place of the files
    that an earlier run of the same program left there."""
    files = {k: v for k, v in document.get("files", {}).items() if not k.startswith(f"{section}.")}
    files |= outcome.files
    if outcome.heads:
        path = out / f"{section}-heads.safetensors"
        serialization.save_tensors(path, outcome.heads)
        files[f"{section}.heads"] = manifest.entry(path)
    scores = document.get("scores", {}) | outcome.scores
    changed = {"equitools": SCHEMA, "kind": "scores", section: settings, "files": files}
    return {**document, **changed, "scores": scores}
