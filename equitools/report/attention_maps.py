"""The attention of several checkpoints on the same pictures, plain, rotated and jittered: measured
and drawn, for the report of that name and the page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from equitools import augment
from equitools.backbones.encoder import Encoder
from equitools.core import devices
from equitools.core.errors import DataError, UsageError
from equitools.data.shards.index import ShardIndex, open_split
from equitools.evals.segmentation import saliency_data
from equitools.features import attention, encoders
from equitools.features.attention import entropy, jaccard, mass_mask, overlap, turned
from equitools.features.extract import pictures
from equitools.features.transform import Transform, evaluation_transform
from equitools.report.describe import named
from equitools.report.documents import Document, Documents
from equitools.report.formats import figures

CHANGES = ("original", "rotated", "jittered")
JITTER = {"jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LABELS = ("method", "picture", "head")
MEASURES = ("entropy", "60 % mask", "class token", "overlap", "foreground")


@dataclass(frozen=True)
class Options:
    """Which pictures are shown: so many of a split or folder, from `first` on, and which changes of
    them (of CHANGES), turned by `angle` degrees, jittered by `seed`; how large (None: the encoder's
    own size); and where networks run."""

    images: int = 2
    first: int = 0
    split: str = "val"
    folder: str | None = None
    changes: Sequence[str] = CHANGES
    angle: float = 90.0
    size: int | None = None
    seed: int = 0
    device: str = "auto"


@dataclass
class HeadMaps:
    """The last block of one network on one change of the pictures: pixels b 3 h w in [0, 1]; maps
    b heads h w; and b heads of entropy, share of cells in the 60 % mask, the class token's own
    share, overlap with the unchanged pictures' masks, and, where the foreground is known, the
    Jaccard index of the 60 % mask with it."""

    method: str
    change: str
    pixels: Tensor
    maps: Tensor
    measures: list[Tensor]


class Folder:
    """The pictures of a folder, in the order of their names, as a split of shards is."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise DataError(f"no folder {path}")
        self.paths = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not self.paths:
            raise DataError(f"{path} has no pictures ({', '.join(SUFFIXES)})")
        self.keys = [file.name for file in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int) -> bytes:
        """The bytes of a picture."""
        return self.paths[i].read_bytes()

    def where(self, i: int) -> str:
        """Its path, for messages."""
        return str(self.paths[i])


Pictures = ShardIndex | Folder
Masks = list[np.ndarray]  # h w booleans


def open_pictures(document: Document, options: Options) -> Pictures:
    """The split of a document's shards, or a folder that was named instead."""
    if options.folder is None:
        return open_split(document, options.split)
    return Folder(Path(options.folder))


def measure(
    documents: Documents, index: Pictures, options: Options, masks: str | None = None
) -> tuple[list[str], list[HeadMaps]]:
    """The keys of the pictures, and the maps of every document's encoder.

    masks: a folder with the true foreground of each picture, a file of its name and size. Raises
    UsageError for pictures or changes that are not there, and for an encoder without attention,
    DataError for a picture without a mask.
    """
    for change in options.changes:
        if change not in CHANGES:
            raise UsageError(f"no change '{change}'; changes are {', '.join(CHANGES)}")
    first, last = options.first, options.first + options.images
    if options.images < 1 or not 0 <= first < len(index):
        raise UsageError(f"pictures {first} to {last} of {len(index)} cannot be shown")
    rows = list(range(first, min(last, len(index))))
    keys = [index.keys[i] for i in rows]
    truths = None if masks is None else _truths(Path(masks), keys)
    options = replace(options, device=devices.pick_device(options.device))
    return keys, [
        maps for document in documents for maps in _measure(document, index, rows, options, truths)
    ]


def _measure(
    document: Document, index: Pictures, rows: list[int], options: Options, truths: Masks | None
) -> list[HeadMaps]:
    encoder, transform = _encoder(document, options)
    changes: list[HeadMaps] = []
    plain: Tensor | None = None  # masks of the unchanged pictures: every change is compared
    for change in ["original", *(change for change in options.changes if change != "original")]:
        batches = []
        for pixels, keys in pictures(
            cast(ShardIndex, index), rows, transform, device=options.device
        ):
            changed = _changed(pixels, keys, change, options)
            maps, own = attention.maps(encoder, transform.normalized(changed))
            batches.append((changed.cpu(), maps.cpu(), own.cpu()))
        image, maps, own = map(torch.cat, zip(*batches, strict=True))
        mask = mass_mask(maps)
        plain = mask if plain is None else plain
        angle = options.angle if change == "rotated" else 0.0
        measures = [entropy(maps), mask.float().mean((2, 3)), own, overlap(plain, mask, angle)]
        if truths is not None:
            measures.append(jaccard(mask, _foreground(truths, transform, angle)))
        name = f"rotated {angle:g}°" if change == "rotated" else change
        changes.append(HeadMaps(named(document), name, image, maps, measures))
    return changes if "original" in options.changes else changes[1:]


def _encoder(document: Document, options: Options) -> tuple[Encoder, Transform]:
    """The frozen ViT of a document, and how pictures are shown to it."""
    none = dict.fromkeys(("encoder", "size", "crop_pct", "interpolation"))
    probe = encoders.reading(document, {**none, "encoder_seed": 0, "pretrained": False})
    encoder, _ = encoders.find(
        document, probe["encoder"], seed=probe["encoder_seed"], pretrained=probe["pretrained"]
    )
    if not encoder.is_vit:
        attention.maps(encoder, torch.zeros(1, 3, 8, 8))  # says why not
    encoders.freeze(encoder, options.device)
    return encoder, evaluation_transform(encoder, size=options.size or probe["size"])


def _truths(folder: Path, keys: Sequence[str]) -> Masks:
    """The true masks h w of some pictures; DataError for one that is not there."""
    if not folder.is_dir():
        raise DataError(f"masks: no folder {folder}")
    known = saliency_data.named(folder)
    stems = [Path(key).stem for key in keys]
    if missing := [stem for stem in stems if stem not in known]:
        raise DataError(f"no mask of {missing[0]} in {folder}")
    return [saliency_data.read_mask(known[stem]) for stem in stems]


def _foreground(truths: Masks, transform: Transform, angle: float) -> Tensor:
    """Masks as the transform shows pictures, turned; b size size booleans."""
    plain = replace(transform, interpolation="bilinear")
    masks = [plain.pixels(np.stack([mask * np.uint8(255)] * 3, axis=-1)) for mask in truths]
    return turned(torch.stack(masks).float(), angle)[:, 0] > 127


def _changed(pixels: Tensor, keys: list[str], change: str, options: Options) -> Tensor:
    if change == "rotated":
        pixels = turned(pixels, options.angle)
    if change == "jittered":
        return augment.perturb(pixels, JITTER, keys, options.seed)
    return pixels.float() / 255


# --- For people ------------------------------------------------------------------------------


def columns(maps: Sequence[HeadMaps]) -> list[str]:
    """The names of the columns of `rows`; the foreground's where masks are known."""
    return [*LABELS, *MEASURES[: max(len(each.measures) for each in maps)]]


def rows(maps: Sequence[HeadMaps]) -> list[list[str | int]]:
    """A row for each network, change and head, means over pictures; then one over all heads, but
    of the foreground that of each picture's best head."""
    lines: list[list[str | int]] = []
    for each in maps:
        means = torch.stack([values.mean(0) for values in each.measures])
        whole = means.mean(1)
        if len(each.measures) == len(MEASURES):
            whole[-1] = each.measures[-1].amax(1).mean()
        heads = [*range(1, means.shape[1] + 1), "all"]
        for head, values in zip(heads, [*means.T.tolist(), whole.tolist()], strict=True):
            lines.append([each.method, each.change, head, *(f"{value:.3f}" for value in values)])
    return lines


def draw(keys: Sequence[str], maps: Sequence[HeadMaps], heads: str, path: Path) -> Path:
    """Draw the maps over the pictures: a row for each picture, change and network, a column for
    each head; or with heads=`mean` a row for each picture and change, a column for each network.

    Colors go from 0 to the largest weight of the row, so that a dead head looks dead.
    """
    sheet: list[figures.SheetRow] = []
    for i, key in enumerate(keys):
        if heads == "each":
            for each in maps:
                title = f"{key}\n{each.method}\n{each.change}"
                sheet.append((title, _picture(each.pixels[i]), _panels(each, i)))
            continue
        for change in dict.fromkeys(each.change for each in maps):
            those = [each for each in maps if each.change == change]
            panels = [(m.method, *_overlay(m.pixels[i], m.maps[i].mean(0))) for m in those]
            sheet.append((f"{key}\n{change}", _picture(those[0].pixels[i]), panels))
    return figures.contact_sheet(sheet, path)


def _panels(maps: HeadMaps, i: int) -> list[figures.Panel]:
    top = float(maps.maps[i].max())
    return [
        (f"head {head}", *_overlay(maps.pixels[i], cells, top))
        for head, cells in enumerate(maps.maps[i], 1)
    ]


def _overlay(picture: Tensor, cells: Tensor, top: float | None = None) -> tuple[np.ndarray, str]:
    """The map's cells (nearest) over the grayed picture; and its entropy."""
    size = picture.shape[-2:]
    large = torch.nn.functional.interpolate(cells[None, None], size, mode="nearest")[0, 0]
    heat = figures.heat((large / max(top or float(cells.max()), 1e-30)).numpy())
    gray = _picture(picture).mean(2, keepdims=True)
    return 0.45 * gray + 0.55 * heat, f"entropy {float(entropy(cells)):.3f}"


def _picture(pixels: Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).clamp(0, 1).numpy()
