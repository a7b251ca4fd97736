"""The attention of several checkpoints on the same pictures, plain, rotated and jittered: measured
and drawn, for the report of that name and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equitools import augment
from equitools.core import devices
from equitools.core.errors import DataError, UsageError
from equitools.data.shards.index import open_split
from equitools.evals.segmentation import saliency_data
from equitools.features import attention as features_attention
from equitools.features import encoders
from equitools.features.attention import entropy, jaccard, mass_mask, overlap, turned
from equitools.features.extract import pictures
from equitools.features.transform import evaluation_transform
from equitools.report.describe import named
from equitools.report.formats import figures

CHANGES = ("original", "rotated", "jittered")
JITTER = {"jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
COLUMNS = ("method", "picture", "head", "entropy", "60 % mask", "class token", "overlap")
FOREGROUND = "foreground"  # one more column where masks are known; of `all`, the best heads


@dataclass
class Seen:
    """What one network makes of one change of the pictures: the pictures b 3 h w in [0, 1], maps
    b heads h w, and b heads: entropy, share of cells in the 60 % mask, the class token's own
    share, overlap with the unchanged pictures' masks, and, where the foreground is known, how well
    the 60 % mask meets it."""

    method: str
    change: str
    pixels: Tensor
    maps: Tensor
    numbers: list[Tensor]


class Folder:
    """The pictures of a folder, in the order of their names, as a split of shards is."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise DataError(f"no folder {path}")
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"{path} has no pictures ({', '.join(SUFFIXES)})")
        self.paths, self.keys = found, [file.name for file in found]

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int) -> bytes:
        """The bytes of a picture."""
        return self.paths[i].read_bytes()

    def where(self, i: int) -> str:
        """Its path, for messages."""
        return str(self.paths[i])


def look(
    documents: Sequence[dict[str, Any]], index: Any, *, images: int, first: int,
    changes: Sequence[str], angle: float, size: int | None, seed: int, device: str,
    masks: str | None = None,
) -> tuple[list[str], list[Seen]]:  # fmt: skip
    """The keys of the pictures, and what every document's encoder sees in every change of them.

    index: a split or a Folder; pictures `first` to `first + images` of it. changes: of CHANGES;
    the originals are always looked at. masks: a folder with the true foreground of each picture,
    a file of its name and size. Raises UsageError for pictures or changes that are not there, and
    for an encoder without attention, DataError for a picture without a mask.
    """
    for change in changes:
        if change not in CHANGES:
            raise UsageError(f"no change '{change}'; changes are {', '.join(CHANGES)}")
    if images < 1 or not 0 <= first < len(index):
        raise UsageError(f"pictures {first} to {first + images} of {len(index)} cannot be shown")
    rows = list(range(first, min(first + images, len(index))))
    device = devices.pick_device(device)
    truths = None if masks is None else _truths(Path(masks), [index.keys[i] for i in rows])
    found = [
        seen
        for document in documents
        for seen in _look(document, index, rows, changes, angle, size, seed, device, truths)
    ]
    return [index.keys[i] for i in rows], found


def pictures_of(document: dict[str, Any], split: str, folder: str | None) -> Any:
    """The split of a document's shards, or a folder that was named instead."""
    return open_split(document, split) if folder is None else Folder(Path(folder))


def _look(
    document: dict[str, Any], index: Any, rows: list[int], changes: Sequence[str], angle: float,
    size: int | None, seed: int, device: str, truths: list[np.ndarray] | None,
) -> list[Seen]:  # fmt: skip
    none = dict.fromkeys(("encoder", "size", "crop_pct", "interpolation"))
    probe = encoders.shown(document, {**none, "encoder_seed": 0, "pretrained": False})
    encoder, _ = encoders.find(
        document, probe["encoder"], seed=probe["encoder_seed"], pretrained=probe["pretrained"]
    )
    if not encoder.is_vit:
        features_attention.maps(encoder, torch.zeros(1, 3, 8, 8))
    encoders.freeze(encoder, device)
    transform = evaluation_transform(encoder, size=size or probe["size"])
    method = named(document)
    found: list[Seen] = []
    plain: Tensor | None = None
    for change in ["original", *(change for change in changes if change != "original")]:
        shown, looks, own = [], [], []
        for pixels, keys in pictures(index, rows, transform, device=device):
            changed = _changed(pixels, keys, change, angle, seed)
            maps, rest = features_attention.maps(encoder, transform.normalized(changed))
            shown.append(changed.cpu())
            looks.append(maps.cpu())
            own.append(rest.cpu())
        maps = torch.cat(looks)
        mask = mass_mask(maps)
        plain = mask if plain is None else plain
        turn = angle if change == "rotated" else 0.0
        share = mask.float().mean((2, 3))
        same = overlap(plain, mask, turn)
        numbers = [entropy(maps), share, torch.cat(own), same]
        if truths is not None:
            numbers.append(jaccard(mask, _shown(truths, transform, turn)))
        found.append(Seen(method, _named(change, angle), torch.cat(shown), maps, numbers))
    return found if "original" in changes else found[1:]


def _truths(folder: Path, keys: Sequence[str]) -> list[np.ndarray]:
    """The true masks h w of some pictures; DataError for one that is not there."""
    if not folder.is_dir():
        raise DataError(f"masks: no folder {folder}")
    known = saliency_data.named(folder)
    stems = [Path(key).stem for key in keys]
    if lost := [stem for stem in stems if stem not in known]:
        raise DataError(f"no mask of {lost[0]} in {folder}")
    return [saliency_data.read_mask(known[stem]) for stem in stems]


def _shown(truths: list[np.ndarray], transform: Any, angle: float) -> Tensor:
    """Masks as the transform shows pictures, turned; b size size booleans."""
    plain = replace(transform, interpolation="bilinear")
    shown = [plain.pixels(np.stack([mask * np.uint8(255)] * 3, axis=-1)) for mask in truths]
    return turned(torch.stack(shown).float(), angle)[:, 0] > 127


def _changed(pixels: Tensor, keys: list[str], change: str, angle: float, seed: int) -> Tensor:
    if change == "rotated":
        pixels = turned(pixels, angle)
    if change == "jittered":
        return augment.perturb(pixels, JITTER, keys, seed)
    return pixels.float() / 255


def _named(change: str, angle: float) -> str:
    return f"rotated {angle:g}°" if change == "rotated" else change


# --- For people ------------------------------------------------------------------------------


def rows(found: Sequence[Seen]) -> list[list[Any]]:
    """A row for each network, change and head, means over pictures; then one over all heads, but
    of the foreground that of each picture's best head."""
    lines: list[list[Any]] = []
    for seen in found:
        means = [values.mean(0) for values in seen.numbers]
        for head in range(seen.maps.shape[1]):
            each = [f"{float(values[head]):.3f}" for values in means]
            lines.append([seen.method, seen.change, head + 1, *each])
        whole = [float(values.mean()) for values in means]
        if len(whole) > len(COLUMNS) - 3:
            whole[-1] = float(seen.numbers[-1].amax(1).mean())
        lines.append([seen.method, seen.change, "all", *(f"{value:.3f}" for value in whole)])
    return lines


def columns(found: Sequence[Seen]) -> list[str]:
    """The names of the columns of `rows`."""
    known = any(len(seen.numbers) > len(COLUMNS) - 3 for seen in found)
    return [*COLUMNS, FOREGROUND] if known else list(COLUMNS)


def draw(keys: Sequence[str], found: Sequence[Seen], heads: str, path: Path) -> Path:
    """Draw the maps over the pictures: a row for each picture, change and network, a column for
    each head; or with heads=`mean` a row for each picture and change, a column for each network.

    Colors go from 0 to the largest weight of the row, so that a dead head looks dead.
    """
    sheet = []
    for i, key in enumerate(keys):
        if heads == "each":
            sheet += [
                (f"{key}\n{seen.method}\n{seen.change}", _picture(seen.pixels[i]),
                 _panels(seen, i)) for seen in found
            ]  # fmt: skip
            continue
        for change in dict.fromkeys(seen.change for seen in found):
            those = [seen for seen in found if seen.change == change]
            panels = [(s.method, *_overlay(s.pixels[i], s.maps[i].mean(0))) for s in those]
            sheet.append((f"{key}\n{change}", _picture(those[0].pixels[i]), panels))
    return figures.contact_sheet(sheet, path)


def _panels(seen: Seen, i: int) -> list[tuple[str, np.ndarray, str]]:
    top = float(seen.maps[i].max())
    return [
        (f"head {head + 1}", *_overlay(seen.pixels[i], cells, top))
        for head, cells in enumerate(seen.maps[i])
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
