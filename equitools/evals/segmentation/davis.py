"""Videos in the layout of DAVIS 2017, and what an evaluation of an encoder on them gets.

    JPEGImages/480p/<name>/%05d.jpg   Annotations/480p/<name>/%05d.png   ImageSets/2017/val.txt

Masks are palette PNGs: 0 is background, 255 void, an object's label is from 1. As the network sees
it, a frame has a short side of 480 and a long side of ⌊480 · long / short / 64⌋ · 64 pixels
(bilinear; Caron et al., 2021, "DINO"), or less, so that there are whole cells and at most 60 × 107:

    cells = ⌊side · s / cell⌋,   s = min(1, 60 cell / short, 107 cell / long)

A cell is a ViT's patch, or what a CNN's last stage makes one number of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from equitools import manifest
from equitools.backbones.encoder import Encoder
from equitools.core.errors import DataError, UsageError
from equitools.data import images, workers
from equitools.evals.segmentation import video_clip
from equitools.evals.segmentation.j_and_f import summary
from equitools.evals.segmentation.palette_png import labels, made_by, write
from equitools.evals.segmentation.video_clip import Clip, scored
from equitools.features import cache, encoders, maps
from equitools.features.transform import Transform

SHORT, STEP = 480, 64  # the short side in pixels; of what the long side is a multiple
MOST = (60, 107)  # cells of the short and of the long side
MEAN, STD = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)  # 0.228 as in the protocol's code
FEWEST = 3  # frames of a video of which one is scored: the first and the last one are not
# (maps d h w of all frames, labels of the first, frame size) → labels of every later frame
Predict = Callable[[Iterable[Tensor], np.ndarray, tuple[int, int]], Iterable[np.ndarray]]
YEAR, RESOLUTION = "2017", "480p"  # taken where there are several


def settings_of(
    *, annotations: str = "Annotations", sequences: list[str] | None = None, keep_gb: float = 2.0
) -> None:
    """The knobs of the data; the signature is the schema.

    annotations: the folder of the masks. sequences: names, instead of those of val.txt. keep_gb:
    maps of frames are kept on disk unless all of them take more (ViT-S on the 30 videos of DAVIS:
    4.9 with 16-px patches, 20 with 8). `size` is the short side in pixels, 480 when null; `limit`
    so many sequences, the first ones.
    """


@dataclass
class Videos:
    """The clips of a data set, and why some sequences are left out."""

    clips: list[Clip]
    left_out: dict[str, str] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of the names and files of all clips."""
        return manifest.identity([(clip.name, clip.digest) for clip in self.clips])

    def source(
        self, encoder: Encoder, settings: dict[str, Any], out: Path, progress: Any
    ) -> EncodedVideos:
        """What the evaluation gets; see `EncodedVideos`."""
        return EncodedVideos(self, encoder, settings, out, progress)


# --- Reading ---------------------------------------------------------------------------------


def open_data(document: dict[str, Any], settings: dict[str, Any]) -> Videos:
    """The clips that the settings ask for, every file of theirs looked at.

    Videos of fewer than three frames and those without an object are left out. Raises DataError
    for a folder without the layout, an empty list, a missing frame or mask, a mask of another size
    and labels beyond 254, naming the file, and when nothing is left.
    """
    if settings["data"] is None:
        raise UsageError("video needs data=PATH, a folder with JPEGImages, Annotations, ImageSets")
    root = Path(settings["data"])
    frames = _chosen(root / "JPEGImages", RESOLUTION)
    masks = _chosen(root / settings["annotations"], RESOLUTION)
    videos = Videos([], document=document)
    for name in _names(root, settings["sequences"])[: settings["limit"]]:
        clip = video_clip.read(name, frames / name, masks / name)
        if len(clip.frames) < FEWEST:
            videos.left_out[name] = (
                f"frames: {len(clip.frames)}, and the first and the last one are not scored"
            )
        elif not clip.objects:
            videos.left_out[name] = f"its first mask has no object ({clip.masks[0]})"
        else:
            videos.clips.append(clip)
    if not videos.clips:
        why = "; ".join(f"{name}: {why}" for name, why in videos.left_out.items())
        raise DataError(f"no video of {root} can be scored ({why})")
    return videos


def _chosen(folder: Path, usual: str) -> Path:
    """The folder in a folder: the usual one, or the only one."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; DAVIS 2017 has JPEGImages, Annotations, ImageSets")
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    if (folder / usual).is_dir():
        return folder / usual
    if len(inside) != 1:
        names = ", ".join(path.name for path in inside) or "none"
        raise DataError(f"{folder} has no folder {usual}, and not one folder alone ({names})")
    return inside[0]


def _names(root: Path, wanted: list[str] | None) -> list[str]:
    """The sequences to look at, each once."""
    where: Path | str = "transfer.sequences"
    lines = wanted
    if lines is None:
        where = _chosen(root / "ImageSets", YEAR) / "val.txt"
        if not where.is_file():
            raise DataError(f"no file {where}, which lists the sequences; or say sequences=NAME")
        lines = where.read_text(encoding="utf-8").splitlines()
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise DataError(f"{where} names no sequence")
    if odd := [name for name in names if "/" in name or name.startswith(".")]:
        raise DataError(f"{where} has '{odd[0]}', which is no name of a folder")
    return names


# --- Showing ---------------------------------------------------------------------------------


def frame_size(height: int, width: int, cell: int, short: int = SHORT) -> tuple[int, int]:
    """Height and width of a frame of whole cells as the network sees it, by the rule above."""
    low, high = sorted((height, width))
    sides = [short, max(high * short // low // STEP * STEP, cell)]
    share = min(Fraction(1), *(Fraction(m * cell, s) for m, s in zip(MOST, sides, strict=True)))
    low, high = (max(int(side * share / cell), 1) * cell for side in sides)
    return (low, high) if height <= width else (high, low)


class EncodedVideos:
    """An encoder's view of videos, and the scores of labels that something finds from it.

    Masks go to `out`/masks/<sequence> (random/<sequence> with random weights), a folder at a time;
    what is there already and was made in the same way is read instead.
    """

    def __init__(
        self, videos: Videos, encoder: Encoder, settings: dict[str, Any], out: Path, progress: Any
    ) -> None:
        self.videos, self.encoder, self.settings = videos, encoder, settings
        self.out, self.progress, self.device = out, progress, settings["device"]
        self.layer = maps.choose(encoder, [-1])[0]
        self.transform = Transform(SHORT, SHORT, "bilinear", MEAN, STD)
        show = self._maps(encoder)
        self.cell = encoder.patch_size or int(encoder.trunk.feature_info[-1]["reduction"])
        side = max(encoder.image_size, 8 * self.cell)
        refused = maps.refuses_other_shapes(show, side, self.cell, self.device)
        if refused:
            raise UsageError(f"the network takes no other shape of picture: {refused}")

    def judge(
        self, predict: Predict, knobs: dict[str, Any], *, untrained: bool = False
    ) -> dict[str, float]:
        """Scores of what is predicted, from this encoder or from the same with random weights.

        knobs: how it predicts, for the identity of what is written.
        """
        encoder, where, what = self.encoder, "masks", "videos"
        if untrained:
            encoder = encoders.untrained(encoder, self.settings["encoder_seed"])
            where, what = "random", "videos, random weights"
        show, weights = self._maps(encoder), encoders.fingerprint(encoder)
        values = {}
        total = sum(len(clip.frames) for clip in self.videos.clips)
        with self.progress(total, what, "frame") as bar:
            for clip in self.videos.clips:
                size = self.size(clip)
                made = manifest.identity(weights, knobs, size, clip.digest)
                folder = self.out / where / clip.name
                paths = [folder / f"{path.stem}.png" for path in clip.frames]
                if made_by(folder) == made and all(path.is_file() for path in paths):
                    bar.advance(len(paths))
                else:
                    key = [weights, self.layer, clip.digest, size]
                    store = cache.Single(self._cache(), key, "cells")
                    seen = self._cells(clip, show, size, store, bar.advance)
                    names = [path.name for path in paths]
                    write(folder, made, clip.masks[0], names, predict(seen, clip.first, size))
                values[clip.name] = scored(clip, map(labels, paths[1:-1]))
        return summary(values)

    def files(self) -> dict[str, Any]:
        """Entries of the folders of masks, for a manifest."""
        return {
            f"transfer.{path.parent.name}/{path.name}": manifest.entry(path)
            for where in ("masks", "random")
            for path in sorted((self.out / where).glob("*/"))
            if path.name in {clip.name for clip in self.videos.clips}
        }

    def copy(self) -> dict[str, float]:
        """Scores of the first mask for all frames."""
        return summary(
            {
                clip.name: scored(clip, [clip.first] * (len(clip.masks) - 2))
                for clip in self.videos.clips
            }
        )

    def size(self, clip: Clip) -> tuple[int, int]:
        """Height and width of a clip's frames as the network sees them."""
        height, width = clip.first.shape
        return frame_size(height, width, self.cell, self.settings["size"] or SHORT)

    def facts(self) -> dict[str, Any]:
        """How it was done, in words and numbers."""
        clips = self.videos.clips
        cells = "tokens of the last block, normed" if self.encoder.is_vit else "last stage's map"
        grids = [
            f"{tall // self.cell}×{wide // self.cell} of {tall}×{wide} px"
            for tall, wide in sorted({self.size(clip) for clip in clips})
        ]
        return {
            "features": f"{cells}, unit length, fp32",
            "grid": f"{', '.join(grids)}, cells of {self.cell} px",
            "transform": f"bilinear, no antialias, mean {list(MEAN)}, std {list(STD)}",
            "metric": "J and F of davis2017 semi-supervised, in percent, mean over objects; first"
            " and last frame left out",
            "sequences": len(clips),
            "objects": sum(clip.objects for clip in clips),
            "frames": sum(len(clip.frames) for clip in clips),
            "maps": "kept" if self._cache() else f"not kept: over {self.settings['keep_gb']:g} GB",
            "left_out": self.videos.left_out,
        }

    def _maps(self, encoder: Encoder) -> maps.Maps:
        encoders.freeze(encoder, self.device)
        return maps.maps_of(encoder, self.transform, [self.layer], norm=True)

    def _cache(self) -> Path | None:
        """The folder of kept maps; None where all of them take more than is allowed."""
        cells = sum(math.prod(self.size(c)) * len(c.frames) for c in self.videos.clips)
        numbers = cells // self.cell**2 * self.encoder.channels(self.layer)
        if 4e-9 * numbers > self.settings["keep_gb"]:
            return None
        wanted = self.settings["encoder"]
        return encoders.features_folder(self.videos.document, wanted, self.out)

    def _cells(
        self,
        clip: Clip,
        show: maps.Maps,
        size: tuple[int, int],
        store: cache.Single,
        advance: Callable[[], Any],
    ) -> Iterator[Tensor]:
        """The map d h w of every frame."""

        def picture(path: Path) -> Tensor | None:
            if store.has(path.stem):
                return None
            return _resized(images.decode(path.read_bytes(), str(path)), size)

        pictures = workers.read(clip.frames, picture, self.settings["workers"])
        for path, pixels in zip(clip.frames, pictures, strict=True):

            def compute(pixels: Tensor | None = pixels) -> Tensor:
                assert pixels is not None
                return show(pixels[None].to(self.device))[self.layer][0]

            yield store(path.stem, compute).to(self.device)
            advance()


def _resized(picture: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 h w 3 → uint8 3 size, bilinear without antialiasing, as the protocol's code."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    return F.interpolate(pixels, size=size, mode="bilinear").round().byte()[0]
