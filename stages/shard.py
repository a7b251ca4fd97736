"""Any source of images becomes WebDataset tars, byte-identical for identical input."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from equitools import manifest
from equitools.core.errors import DataError
from equitools.data.shards.settings import identity, settle, write
from equitools.manifest import Document, files, run_folder

from .cli.command import command
from .cli.program import Program, Request
from .cli.progress import progress

if TYPE_CHECKING:
    from equitools.data.shards.packing import Written
    from equitools.data.sources.source import Source

LAYERS = ("source",)
PARTIAL = ".partial"  # unfinished shards lie here, below the output folder
NAMED = 10  # files of each kind of finding on stderr; report.tsv has them all


def run(request: Request) -> Document | None:
    """List, select, check and pack a source; or describe tars that are there already."""
    from equitools.data.shards import foreign
    from equitools.data.sources import subsets

    settings = settle(request.settings)
    if "layout" in settings:
        draw(request, settings)
        return None
    if foreign.is_shards(settings["source"]):
        return adopt(request, settings)
    source = subsets.select(settings)
    for line in source.notes:
        request.say(line)
    if request.plan:
        request.print_plan(describe(source, settings))
        return None
    return pack(request, settings, source)


def draw(request: Request, settings: Document) -> None:
    """Scenes as a folder of pictures and masks, whole or not at all; no shards, so no manifest."""
    from equitools.data.sources import scene_folders

    layout = scene_folders.LAYOUTS[settings["layout"]]
    out = request.out or Path("scenes") / settings["layout"]
    if out.exists():
        raise DataError(f"{out} is there already; remove it, or choose another -o")
    if not request.plan:
        partial = out.with_name(f"{out.name}~")
        shutil.rmtree(partial, ignore_errors=True)
        layout(partial, seed=settings["seed"]).rename(out)
    request.say(f"{settings['layout']} of scenes in {out}")


def pack(request: Request, settings: Document, source: Source) -> Document:
    """Write the shards, or answer with the manifest of those that are there."""
    id = identity(settings, source)
    out = request.choose_out(request.out or Path("shards") / default_name(settings, source))
    run_folder.lock(out)
    if (done := finished(request, out, id)) is not None:
        return done
    refuse_tars(out)
    total = sum(len(samples) for samples in source.splits.values())
    with progress(total, "shard", "image") as bar:
        entries, report, written = write(source, settings, out, bar.advance)
    if report is not None:
        name_findings(request, written, out)
    return record(request, settings | {"report": report}, entries, id)


def record(request: Request, section: Document, entries: Document, id: str) -> Document:
    """The manifest of shards with these entries, and the section that says how they were made."""
    document = request.document | {"kind": "shards", "shard": section}
    document["files"] = {**document.get("files", {}), **entries}
    return request.record(document, id)


def default_name(settings: Document, source: Source) -> str:
    """The folder's name without -o: the source's, with what was taken of it."""
    words = [source.name]
    if isinstance(settings["classes"], str) and settings["classes"].isalnum():
        words.append(settings["classes"])
    if settings["fraction"] != 1:
        words.append(f"{settings['fraction']:g}")
    return "-".join(words)


def finished(request: Request, out: Path, id: str) -> Document | None:
    """The manifest that is in `out` already, if it is of this very run and its shards are whole.

    Raises DataError when it is of another run: nothing of the user's is overwritten.
    """
    from equitools.data.shards.inventory import whole

    path = out / "manifest.yaml"
    if not path.exists():
        return None
    document = manifest.load_file(path)[0]
    if manifest.last_record(document).get("id") != id:
        raise DataError(
            f"{out} holds other shards or settings; choose another -o, or remove it first"
        )
    if all(whole(entry) for entry in document["files"].values()):
        request.say(f"{out} is finished already: this is its manifest")
        return document
    request.say(f"{out} is not as its manifest says; packing it again")
    path.unlink()
    (out / PARTIAL).mkdir(exist_ok=True)
    return None


def refuse_tars(out: Path) -> None:
    """Raise DataError for tars in the folder that neither a manifest nor a broken run explains."""
    if not (out / PARTIAL).exists() and any(out.glob("*.tar")):
        raise DataError(f"{out} holds tar files that no manifest describes; choose another -o")


def name_findings(request: Request, written: dict[str, list[Written]], out: Path) -> None:
    """Name what verification found, a few of each kind."""
    from equitools.data.shards.inventory import REPORT
    from equitools.data.shards.packing import DROPPED, KINDS

    findings = [line for shards in written.values() for one in shards for line in one.findings]
    for kind in KINDS:
        names = sorted(file for what, file, _ in findings if what == kind)
        if not names:
            continue
        fate = "dropped" if kind in DROPPED else "kept"
        first = names[: 0 if kind == "below_crop" else NAMED]
        more = f" … all in {out / REPORT}" if len(names) > len(first) else ""
        request.say(f"{len(names)} {kind} ({fate}): {', '.join(first)}{more}")


def describe(source: Source, settings: Document) -> str:
    """What would be packed, for people."""
    lines = [f"source   {settings['source']}"]
    if source.classes is not None:
        lines.append(f"classes  {len(source.classes)}")
    for split, samples in source.splits.items():
        size = sum(one.bytes for one in samples) / 1e6
        megabytes = f", {size:.1f} MB" if size else ""
        lines.append(f"{split:8} {len(samples)} images{megabytes}")
    return "\n".join([*lines, f"listing  {source.digest()}"])


def adopt(request: Request, settings: Document) -> Document | None:
    """A manifest for tars that others have made; val_split names those of the val split."""
    from equitools.data.shards import foreign

    patterns = {"train": settings["source"]}
    if settings["val_split"] is not None:
        val = settings["val_split"]
        patterns["val"] = val if ":" in val else str(files.absolute(val))
    id = manifest.identity(settings | {"workers": None}, foreign.listing(patterns))
    if request.plan:
        request.print_plan("\n".join(f"{split:8} {path}" for split, path in patterns.items()))
        return None
    if request.out is not None:
        run_folder.lock(request.choose_out(request.out))
        if (done := finished(request, request.out, id)) is not None:
            return done
    entries = {}
    with progress(None, "shard", "image") as bar:
        for split, pattern in patterns.items():
            name = f"shards.{split}"
            entries[name], bare = foreign.describe(pattern, name, settings["verify"], bar.advance)
            if bare:
                request.say(f"{bare} samples of {pattern} have no label")
    return record(request, settings | {"report": None}, entries, id)


program = Program(
    name="shard",
    section="shard",
    reads=(),
    folders=LAYERS,
    run=run,
    sources=True,
    check=settle,
    help="""Pack any source of images into WebDataset tars; print their manifest.

    SOURCE is a folder (train/ and val/ below it make both splits; class folders make labels), one
    of the layers digits and scenes, cub200 or torchvision:NAME with root=DIR, or tars that are
    there already (x/train-{000..146}.tar), which are described and not copied.

    \b
    train_split, val_split  the folders or the set's own splits to take ("." is the folder itself)
    classes                 in100, a file with one name a line, or names with commas
    list                    a file of file names to take of train (the lists of SimCLR)
    fraction, holdout       seeded shares of every class: kept of train; moved from train to val
    seed                    of the order, the shares and the scenes
    size, train_samples, val_samples   of digits (size) and scenes
    layout                  of scenes: saliency or video, a folder of pictures and masks as ECSSD's
                            and DAVIS-2017's; no shards
    root, download, args    where cub200 or torchvision's set lies; fetch it, its constructor's
                            arguments
    samples_per_shard, megabytes_per_shard   upper bounds (3000, 500)
    verify                  decode every image once and report (true)
    min_side, crop          drop below min_side px (8); count below crop px (224)
    workers                 processes (all cores)

    Samples are shuffled once, by seed, so that a streaming reader sees mixed classes. Files keep
    their own bytes. Corrupt, truncated and tiny images are dropped; gray, CMYK, EXIF-rotated (the
    orientation is ignored), duplicate and small ones are kept; all are named and counted.

    \b
    Examples: equi-shard /data/imagenet in100 -o shards/in100 > in100.yaml
              equi-shard digits -o sh | equi-pretrain dino clever vit-mini -o run
    """,
)
main = command(program)

if __name__ == "__main__":
    main()
