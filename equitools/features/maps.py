"""Maps of the layers of a frozen encoder: what evaluations of equivariance see instead of a model.

A ViT's map is its patch tokens after a block, normed by its final norm as DINO's
get_intermediate_layers does (Caron et al., 2021); a CNN's is what a stage gives.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equitools.backbones.encoder import Encoder
from equitools.core.errors import DataError, UsageError
from equitools.data.shards.index import ShardIndex
from equitools.features import encoders, extract
from equitools.features.cache import Blocks
from equitools.features.extract import choose_layers, encode, fill, subset
from equitools.features.transform import Transform

Maps = Callable[[Tensor], dict[int, Tensor]]  # uint8 or [0, 1] b 3 h w → {layer: b d h w}
Rows = Callable[[Tensor, Sequence[str]], Tensor]  # uint8 b 3 h w, keys → b width
log = logging.getLogger(__name__)
COARSEST = 7  # cells of a picture's side, where a CNN's stride would leave fewer


@dataclass
class Vectors:
    """One vector for a picture: `of` takes pictures b 3 h w to b (blocks · width), fp32. layers,
    blocks, width and split are those of a FeatureTable. normalized prepares pictures for copy(),
    which is the encoder once more, for those who train it on the device."""

    of: Callable[[Tensor], Tensor]
    layers: str
    blocks: int
    width: int
    split: int | None
    normalized: Callable[[Tensor], Tensor] | None = None
    copy: Callable[[], Encoder] | None = None
    device: str = "cpu"


@dataclass
class FrozenMaps:
    """Pictures of the splits, and maps of any pictures.

    pictures(split, limit, batch_size, order=None) gives uint8 b 3 size size and keys, and says how
    far it is; order: numbers among the pictures within the limit, instead of all as they come.
    maps: of the encoder at `layers`; untrained() gives those of the same network with random
    weights. cell: the side in pixels of which pictures of other shapes are multiples. other_shapes:
    why they cannot be had, or None. seed: of what is drawn for each picture. batch_size: where an
    evaluation has none of its own. vectors(layers): what a probe would read, `auto` as it would.
    keep: `table` from disk. resume(what, *matters): a ResumePoint for training a network.
    """

    pictures: Callable[..., Iterator[tuple[Tensor, list[str]]]]
    maps: Maps
    untrained: Callable[[], Maps]
    layers: list[int]
    cell: int
    other_shapes: str | None = None
    seed: int = 0
    batch_size: int = 256
    vectors: Callable[[str], Vectors] | None = None
    keep: Callable[[str, int | None, Any, int, Rows], tuple[Tensor, list[str]]] | None = None
    resume: Callable[..., Any] | None = None

    def table(
        self, split: str, most: int | None, what: Any, width: int, of: Rows
    ) -> tuple[Tensor, list[str]]:
        """of(pixels, keys) b width of every picture, n width, and the keys; computed once where
        there is a place to keep it. what: all that `of` depends on but the network and the data.
        DataError for a split without pictures."""
        if self.keep is not None:
            rows, names = self.keep(split, most, what, width, of)
        else:
            batches = self.pictures(split, most, self.batch_size)
            parts = [(of(pixels, keys).cpu(), keys) for pixels, keys in batches]
            rows = torch.cat([torch.empty(0, width), *(vectors for vectors, _ in parts)])
            names = [key for _, keys in parts for key in keys]
        if not names:
            raise DataError(f"the {split} split has no pictures")
        return rows, names


def choose(encoder: Encoder, wanted: Sequence[int] | None) -> list[int]:
    """Layers counted from 1, negative ones from the end; None is all that have maps.

    Raises UsageError for a network without maps, and for a layer that it does not have.
    """
    if not hasattr(encoder, "channels"):
        raise UsageError("raw pixels have no layers; name an encoder that has maps")
    encoder.channels(1)
    depth = encoder.depth
    layers = range(1, depth + 1) if wanted is None else wanted
    chosen = sorted({layer + depth + 1 if layer < 0 else layer for layer in layers})
    if not chosen:
        raise UsageError("perturb.layers is empty; say null for all")
    for layer in chosen:
        encoder.channels(layer)
    return chosen


def quarters(depth: int) -> list[int]:
    """The first layer, then one each quarter of the depth: 1, 3, 6, 9, 12 of 12."""
    return sorted({1, *(max(1, round(depth * share / 4)) for share in (1, 2, 3, 4))})


def maps_of(encoder: Encoder, transform: Transform, layers: Sequence[int], *, norm: bool) -> Maps:
    """A function from pictures (uint8, or floats in [0, 1]) to the encoder's maps, fp32.

    norm: a ViT's final norm on the tokens of every block.
    """
    blocks = tuple(layer - 1 for layer in layers)
    last = getattr(encoder.trunk, "norm", None) if norm and encoder.is_vit else None

    @torch.no_grad()
    def maps(image: Tensor) -> dict[int, Tensor]:
        cells = encoder(transform.normalized(image), maps=blocks).maps
        return {block + 1: _normed(cells[block], last).float() for block in blocks}

    return maps


def _normed(cells: Tensor, norm: nn.Module | None) -> Tensor:
    return cells if norm is None else norm(cells.movedim(1, -1)).movedim(-1, 1)


def cell(encoder: Encoder, size: int) -> int:
    """Of how many pixels the sides of other pictures are multiples: a ViT's patch, a CNN's
    coarsest stride (but a seventh of small pictures, which it would leave no map)."""
    if encoder.patch_size:
        return int(encoder.patch_size)
    stride = int(encoder.trunk.feature_info[-1].get("reduction", 1))
    return max(1, min(stride, size // COARSEST))


def refuses_other_shapes(maps: Maps, size: int, cell: int, device: str) -> str | None:
    """Why a network cannot see a picture one cell less high and one wider; None when it can."""
    try:
        maps(torch.zeros(1, 3, size - cell, size + cell, device=device))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError, UsageError) as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return None


def frozen(
    encoder: Encoder,
    splits: dict[str, ShardIndex],
    transform: Transform,
    layers: list[int],
    settings: dict[str, Any],
    *,
    untrained: Callable[[], Encoder],
    progress: Callable[[int], Any],
    cache: Path | None = None,
    resume: Callable[..., Any] | None = None,
) -> FrozenMaps:
    """What evaluations see of an encoder (`untrained()`: another with random weights) and of the
    index of every split. settings: norm, seed, limit (of the pictures of a split), device, workers
    and extract_batch_size. cache: a folder for what is computed once (encoders.features_folder)."""
    norm, limit, device = settings["norm"], settings["limit"], settings["device"]
    batch_size = settings["extract_batch_size"]
    load = {"device": device, "workers": settings["workers"]}
    encoders.freeze(encoder, device)
    maps = maps_of(encoder, transform, layers, norm=norm)
    side = cell(encoder, transform.size)

    def pictures(
        split: str, most: int | None, size: int, order: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, list[str]]]:
        index = splits[split]
        rows = subset(len(index), fewest(most, limit))
        rows = rows if order is None else [rows[i] for i in order]
        for pixels, keys in extract.pictures(index, rows, transform, batch_size=size, **load):
            yield pixels, keys
            progress(len(pixels))

    def keep(
        split: str, most: int | None, what: Any, width: int, of: Rows
    ) -> tuple[Tensor, list[str]]:
        index = splits[split]
        rows = subset(len(index), fewest(most, limit))
        key = [encoders.fingerprint(encoder), asdict(transform), norm, index.digest, len(rows)]
        blocks = Blocks(cache, [*key, what], len(rows), width)
        if blocks.read:
            log.info("%d of %d of %s read from %s", blocks.read, len(rows), split, blocks.folder)
            progress(blocks.read)
        fill(blocks, index, rows, of, transform, batch_size=batch_size, progress=progress, **load)
        return blocks.features, [index.keys[i] for i in rows]

    def random_maps() -> Maps:
        other = untrained()
        encoders.freeze(other, device)
        return maps_of(other, transform, layers, norm=norm)

    def vectors(wanted: str) -> Vectors:
        chosen = choose_layers(encoder, wanted, "cls4")
        blocks = 1 if chosen == "last" else int(chosen.removeprefix("cls"))
        return Vectors(
            lambda image: encode(encoder, transform.normalized(image), chosen),
            chosen,
            blocks,
            encoder.dim,
            encoder.split,
            transform.normalized,
            lambda: deepcopy(encoder),
            device,
        )

    refused = refuses_other_shapes(maps, transform.size, side, device)
    known = layers, side, refused, settings["seed"], batch_size
    return FrozenMaps(pictures, maps, random_maps, *known, vectors, keep, resume)


def fewest(*limits: int | None) -> int | None:
    """The smallest of the limits that are set."""
    return min((limit for limit in limits if limit is not None), default=None)
