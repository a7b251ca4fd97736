"""Frozen features of every picture of a split: a table of vectors, labels and keys.

Evaluations see features, never models. The encoder is in evaluation mode with no gradient, its
buffers included. CLS tokens of the last blocks are normed and concatenated oldest first, as in
Caron et al. (2021, "DINO"); parts of a split representation follow Song et al. (2024, "CLeVER"),
in the slicing of the released probe or by block.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equitools.backbones.encoder import Encoder
from equitools.core.errors import UsageError
from equitools.data.shards.index import ShardIndex
from equitools.features.cache import Blocks
from equitools.features.encoders import fingerprint, freeze
from equitools.features.labels import classes_of
from equitools.features.table import FeatureTable, Perturbation, Stream
from equitools.features.transform import Transform, load


def choose_layers(encoder: Encoder, layers: str, default: str) -> str:
    """`last` (pooled) or `clsN` (CLS of the last N blocks, normed); `auto` is the default.

    A convolutional net has no CLS tokens and gives `last`, whatever the default.
    """
    chosen = layers
    if layers == "auto":
        chosen = default if encoder.is_vit else "last"
    if chosen == "last":
        return chosen
    number = chosen.removeprefix("cls")
    if not (chosen.startswith("cls") and number.isdigit() and int(number)):
        raise UsageError(f"probe.layers is '{layers}'; it is auto, last, or cls4 (any number)")
    if not encoder.is_vit:
        raise UsageError(f"probe.layers={layers} needs a ViT; this encoder only has layers=last")
    if int(number) > encoder.cls_depth and layers != "auto":
        raise UsageError(
            f"probe.layers={layers}, but the encoder has {encoder.cls_depth} blocks with a class"
            " token"
        )
    return f"cls{min(int(number), encoder.cls_depth)}"


def subset(count: int, limit: int | None) -> list[int]:
    """`limit` positions drawn with a fixed seed, in order; all of them when limit is None."""
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise UsageError(f"limit is {limit}; it must be at least 1")
    return sorted(
        torch.randperm(count, generator=torch.Generator().manual_seed(0))[:limit].tolist()
    )


def loading(settings: dict[str, Any]) -> dict[str, Any]:
    """The knobs of `extract` that a program's settings have."""
    knobs = {key: settings[key] for key in ("device", "workers", "limit")}
    return {**knobs, "batch_size": settings["extract_batch_size"]}


def extract(
    encoder: Encoder,
    index: ShardIndex,
    *,
    transform: Transform,
    layers: str = "last",
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    limit: int | None = None,
    perturb: Perturbation | None = None,
    changed: Any = None,
    cache: Path | None = None,
    progress: Callable[[int], Any] | None = None,
) -> FeatureTable:
    """Features of a split (an index with labels, keys, classes, digest and `image(i)`).

    layers: `last` or `clsN`. perturb(uint8 b 3 h w, keys) changes pictures after the crop; changed:
    all that it depends on, as JSON has it. cache: a folder (encoders.features_folder); what was
    extracted before from the same weights, transform, change, layers and data is read from there.
    progress is told how many pictures were done.
    Raises DataError for a picture that cannot be decoded, naming it.
    """
    freeze(encoder, device)
    rows = subset(len(index), limit)
    table = FeatureTable(
        torch.empty(0),
        torch.as_tensor(np.asarray(index.labels)[rows], dtype=torch.int64),
        [index.keys[i] for i in rows],
        classes_of(index),
        blocks=1 if layers == "last" else int(layers.removeprefix("cls")),
        width=encoder.dim,
        split=encoder.split,
        named=bool(index.classes),
    )
    if not index.digest or (perturb is not None and changed is None):  # nothing to know them by
        cache = None
    key = cache and [fingerprint(encoder), asdict(transform), layers, index.digest, len(rows)]
    key = key and (key if changed is None else [*key, changed])
    blocks = Blocks(cache, key, len(rows), table.blocks * table.width)
    table.reused = blocks.read
    if blocks.read:
        table.read = f"{blocks.read} of {len(rows)} read from {blocks.folder}"
        if blocks.missing and progress is not None:
            progress(blocks.read)

    def rows_of(pixels: Tensor, keys: Sequence[str]) -> Tensor:
        changed = pixels if perturb is None else perturb(pixels, keys)
        return encode(encoder, transform.normalized(changed), layers)

    load: dict[str, Any] = {"device": device, "batch_size": batch_size, "workers": workers}
    fill(blocks, index, rows, rows_of, transform, progress=progress, **load)
    table.features = blocks.features
    return table


def fill(
    blocks: Blocks,
    index: ShardIndex,
    rows: Sequence[int],
    of: Callable[[Tensor, Sequence[str]], Tensor],
    transform: Transform,
    *,
    device: str | torch.device,
    batch_size: int,
    workers: int,
    progress: Callable[[int], Any] | None = None,
) -> None:
    """Compute the blocks that are missing: of(pixels uint8 b 3 size size, keys) gives b width.

    rows: the positions of the split that the blocks' rows stand for.
    """
    wanted = [[rows[i] for i in blocks.rows(number)] for number in blocks.missing]
    batches = [part[i : i + batch_size] for part in wanted for i in range(0, len(part), batch_size)]
    shown = _shown(index, batches, transform, device=device, workers=workers)
    for number, part in zip(blocks.missing, wanted, strict=True):
        done: list[Tensor] = []
        while sum(map(len, done)) < len(part):
            pixels, keys = next(shown)
            done.append(of(pixels, keys).cpu())
            if progress is not None:
                progress(len(pixels))
        blocks.keep(number, torch.cat(done))


def pictures(
    index: ShardIndex,
    rows: Sequence[int],
    transform: Transform,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    workers: int = 0,
) -> Iterator[tuple[Tensor, list[str]]]:
    """Batches of the pictures at some positions of a split, uint8 b 3 size size, and their keys."""
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return _shown(index, batches, transform, device=device, workers=workers)


def _shown(
    index: ShardIndex, batches: Sequence[Sequence[int]], transform: Transform, **knobs: Any
) -> Iterator[tuple[Tensor, list[str]]]:
    for batch, pixels in zip(batches, load(index, batches, transform, **knobs), strict=True):
        yield pixels, [index.keys[i] for i in batch]


@torch.no_grad()
def encode(encoder: Encoder, image: Tensor, layers: str) -> Tensor:
    """Features b d of normalized pictures, fp32, without a gradient."""
    return vectors(encoder, image, layers)


def vectors(encoder: Encoder, image: Tensor, layers: str) -> Tensor:
    """Features b d of normalized pictures, fp32."""
    if layers == "last":
        return encoder(image).pooled.float()
    count = int(layers.removeprefix("cls"))
    tokens = encoder(image, cls=count).cls
    return torch.cat([tokens[block].float() for block in sorted(tokens)], dim=1)


def stream(
    encoder: Encoder,
    index: ShardIndex,
    rows: Sequence[int],
    *,
    transform: Transform,
    layers: str,
    augment: bool = True,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> Stream:
    """`FeatureTable.stream`: features of new crops each epoch, or (not `augment`) of the same
    pictures.

    rows: the split's positions that the table's rows stand for. batches of row numbers come in,
    features of as many pictures go out.
    """
    freeze(encoder, device)

    def features(blocks: Iterable[Tensor], seed: int, epoch: int) -> Iterator[Tensor]:
        batches = [[rows[i] for i in block.tolist()] for block in blocks]
        drawn = (seed, epoch) if augment else None
        for pixels in load(index, batches, transform, drawn, device=device, workers=workers):
            yield encode(encoder, transform.normalized(pixels), layers)

    return features
