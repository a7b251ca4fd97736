"""Pictures with masks of what stands out: ECSSD, DUTS, DUT-OMRON and folders like theirs.

A picture's mask has the same name before its ending and the same size; any value above 0 is
foreground (some masks went through JPEG). How a network sees a picture is keys.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equitools import manifest
from equitools.backbones.encoder import Encoder
from equitools.core.errors import DataError, UsageError
from equitools.core.files import write_atomic
from equitools.data import images
from equitools.data.workers import read
from equitools.features import encoders
from equitools.features.extract import subset
from equitools.features.keys import LEAST, KeyReader, Keys, refuse, side_of_patch
from equitools.manifest.files import digest_file

# Folders of pictures and of masks, in the order in which they are looked for.
LAYOUTS = [("img", "gt"), ("images", "masks"), ("images", "ground_truth_mask")]
LAYOUTS += [(f"DUTS-{split}-Image", f"DUTS-{split}-Mask") for split in ("TE", "TR")]
LAYOUTS += [("DUT-OMRON-image", "pixelwiseGT-new-PNG")]
PICTURES = (".jpg", ".jpeg", ".png", ".bmp")

Files = dict[str, tuple[Path, Path]]  # name: picture and mask


def settings_of(*, tokens: int = 2500) -> None:
    """The knobs of the data; the signature is the schema.

    tokens: pictures with more patches are made smaller first. 2500 are a 400-px square in 8-px
    patches, which ECSSD, DUTS and DUT-OMRON do not exceed. `size` is the short side in pixels to
    which every picture is brought before it is stretched; null leaves it as it is.
    """


@dataclass
class Scene:
    """A picture uint8 h w 3 and its true mask h w, booleans, by its name."""

    name: str
    image: np.ndarray
    truth: np.ndarray


def open_data(document: dict[str, Any], settings: dict[str, Any]) -> MaskedPictures:
    """The pictures and masks of the folder `data`, or `limit` of them drawn with a fixed seed.

    Raises DataError for a folder of another layout, a picture without a mask or with one of another
    size, what cannot be decoded, and two pictures of one name.
    """
    if settings["data"] is None:
        raise UsageError("saliency needs data=FOLDER with pictures and masks, in ECSSD's layout")
    if settings["tokens"] < LEAST**2:
        raise UsageError(f"transfer.tokens is {settings['tokens']}; it is at least 4")
    folder = Path(settings["data"])
    pairs, unused = pair(*find(folder))
    chosen = subset(len(pairs), settings["limit"])
    pairs = {name: pairs[name] for name in np.array(list(pairs))[chosen].tolist()}
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(check_pair, pairs.values()):
            pass
    return MaskedPictures(document, folder, pairs, unused, digest(pairs))


def find(folder: Path) -> tuple[Path, Path]:
    """The folders of pictures and masks in a data set's folder; DataError names what is known."""
    for pictures, masks in LAYOUTS:
        if (folder / pictures).is_dir() and (folder / masks).is_dir():
            return folder / pictures, folder / masks
    known = ", ".join(f"{pictures} and {masks}" for pictures, masks in LAYOUTS)
    what = "has no two folders of pictures and masks" if folder.is_dir() else "is no folder"
    raise DataError(f"{folder} {what}; known are {known}")


def pair(pictures: Path, masks: Path) -> tuple[Files, int]:
    """Pictures and masks by name, in order, and how many masks have no picture."""
    paths, known = named(pictures), named(masks)
    if not paths:
        raise DataError(f"{pictures} has no picture ({', '.join(PICTURES)})")
    if lost := sorted(paths.keys() - known.keys()):
        more = f" ({len(lost)} pictures have none)" if len(lost) > 1 else ""
        raise DataError(f"no mask of {paths[lost[0]]} in {masks}{more}")
    return {name: (paths[name], known[name]) for name in sorted(paths)}, len(known) - len(paths)


def named(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by name without ending; DataError for two of one name."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURES and not path.name.startswith("."):
            if path.stem in paths:
                raise DataError(f"{path} and {paths[path.stem].name} have the same name")
            paths[path.stem] = path
    return paths


def check_pair(both: tuple[Path, Path]) -> None:
    """DataError when a picture or its mask cannot be decoded, or they differ in size: before
    anything is written."""
    picture, mask = both
    (height, width), (tall, wide) = (
        images.decode(path.read_bytes(), str(path)).shape[:2] for path in both
    )
    if (height, width) != (tall, wide):
        raise DataError(f"{mask} is {wide}×{tall} px, and {picture.name} is {width}×{height}")


def digest(pairs: Files) -> str:
    """The digest of a set of pictures and masks: sha256 of their names and bytes."""
    total = hashlib.sha256()
    for name, both in pairs.items():
        total.update(f"{name} {' '.join(digest_file(path) for path in both)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def read_mask(path: Path) -> np.ndarray:
    """The true mask h w, booleans; DataError when it cannot be decoded."""
    return images.decode(path.read_bytes(), str(path)).max(axis=2) > 0


def read_scene(item: tuple[str, tuple[Path, Path]]) -> Scene:
    """A picture and its mask; DataError when one cannot be decoded."""
    name, (picture, mask) = item
    return Scene(name, images.decode(picture.read_bytes(), str(picture)), read_mask(mask))


@dataclass
class MaskedPictures:
    """Pictures and masks on disk. unused: masks without a picture."""

    document: dict[str, Any]
    folder: Path
    pairs: Files
    unused: int
    digest: str

    def source(
        self, encoder: Encoder, settings: dict[str, Any], out: Path, progress: Callable[..., Any]
    ) -> EncodedPictures:
        """What the evaluation sees of an encoder and these pictures."""
        cache = encoders.features_folder(self.document, settings["encoder"], out)
        reader = KeyReader(settings["size"], settings["tokens"], settings["device"], cache)
        seed, workers = settings["encoder_seed"], settings["workers"]
        return EncodedPictures(self, encoder, seed, reader, out, progress, workers)


@dataclass
class EncodedPictures:
    """Pictures with masks, the keys that an encoder has for pictures, and a folder for PNGs."""

    data: MaskedPictures
    encoder: Encoder
    seed: int
    reader: KeyReader
    out: Path
    progress: Callable[..., Any]
    workers: int = 0
    empty: int = 0

    def __post_init__(self) -> None:
        self.name, self.ways = str(self.data.folder), dict[str, None]()
        refuse(self.encoder, self.reader)
        self.keys = self.reader.keys(self.encoder)

    def untrained(self) -> Keys:
        """Keys of the same network with random weights."""
        return self.reader.keys(encoders.untrained(self.encoder, self.seed))

    def scenes(self) -> Iterator[Scene]:
        """The pictures with a foreground, one by one; the others are counted in `empty`."""
        with self.progress(len(self.data.pairs), "foreground", "image") as bar:
            for scene in read(self.data.pairs.items(), read_scene, self.workers):
                if scene.truth.any():
                    yield scene
                else:
                    self.empty += 1
                bar.advance(1)

    def keep(self, scene: Scene, mask: np.ndarray, way: str) -> None:
        """Write masks/<way>/<name>.png, 0 or 255, and overlays/<way>/<name>.png."""
        self.ways[way] = None
        for kind, pixels in (("masks", mask * np.uint8(255)), ("overlays", overlay(scene, mask))):
            path = self.out / kind / way / f"{scene.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, images.encode_png(pixels))

    def files(self) -> dict[str, Any]:
        """Entries of the folders of PNGs, for a manifest."""
        folders = [self.out / kind / way for kind in ("masks", "overlays") for way in self.ways]
        return {f"transfer.{path.relative_to(self.out)}": manifest.entry(path) for path in folders}

    def facts(self) -> dict[str, Any]:
        """How pictures were shown and which were left out, in words and numbers."""
        patch = side_of_patch(self.encoder)
        short = f"short side {self.reader.size} px" if self.reader.size else "own size"
        vit = "keys of the last block's attention, all heads, no prefix tokens"
        facts = {
            "features": vit if self.encoder.has_keys else "map of the last stage",
            "transform": f"{short}, at most {self.reader.tokens} patches, stretched to multiples of"
            f" {patch} px (Lanczos, 8-bit)",
            "masks_without_picture": self.data.unused,
            "empty_masks": self.empty,
        }
        if self.empty:
            facts["left_out"] = {f"{self.empty} of the pictures": "the true mask is empty"}
        return facts


def overlay(scene: Scene, mask: np.ndarray) -> np.ndarray:
    """The picture uint8 h w 3, half red where the mask is, green along the true mask's border."""
    pixels = scene.image.copy()
    pixels[mask] = pixels[mask] // 2 + np.array([127, 0, 0], np.uint8)
    inner = scene.truth.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(scene.truth, step, axis)
    pixels[scene.truth & ~inner] = (0, 255, 0)
    return pixels
