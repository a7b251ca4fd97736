"""Features of a split as vectors, labels and keys; an evaluation's outcome.

Parts of a split representation follow Song et al. (2024, "CLeVER"), in the slicing of the released
probe or by block."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from equitools.core.errors import UsageError

# (batches of row numbers, seed, epoch) → features b d of each batch
Stream = Callable[[Iterable[Tensor], int, int], Iterator[Tensor]]
Perturbation = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass
class FeatureTable:
    """Features n d (fp32), labels n (int64, -1 is none) and keys of a split's samples.

    d is `blocks` concatenated blocks of `width`, oldest first; the invariant part of a block is
    its first `split` channels (None: the encoder does not split). `named`: the data say which
    classes there are; else `classes` is what the labels show. `stream(blocks, seed, epoch)` gives
    new features for batches of row numbers where the protocol augments, else it is None.
    `progress` is told of training samples as evaluations that train go through them. `read` says,
    for people, what of it was on disk already, and `reused` how many rows.
    """

    features: Tensor
    labels: Tensor
    keys: list[str]
    classes: int
    blocks: int = 1
    width: int = 0
    split: int | None = None
    named: bool = True
    stream: Stream | None = None
    progress: Callable[[int], Any] | None = None
    read: str = ""
    reused: int = 0


@dataclass
class Outcome:
    """What an evaluation says: percents by path, trained heads, arrays to keep, entries of files
    that it wrote, and how it was done, in words."""

    scores: dict[str, float]
    heads: dict[str, Tensor] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def part(
    table: FeatureTable, name: str, slicing: str = "official", *, index: bool = False
) -> Tensor:
    """The features n c of a part (all, ir, ef), or with `index` the numbers of its channels."""
    chosen = channels(table.blocks, table.width, table.split, name, slicing)
    return chosen if index else table.features[:, chosen.to(table.features.device)]


def channels(blocks: int, width: int, split: int | None, name: str, slicing: str) -> Tensor:
    """Channel numbers of a part of `blocks` concatenated blocks of `width`.

    official: EF is the EF of the last block alone, IR is everything else, earlier blocks' EF
    included (the released probe). per_block: IR and EF of every block.
    """
    every = torch.arange(blocks * width).reshape(blocks, width)
    if slicing not in ("official", "per_block"):
        raise UsageError(f"probe.split is '{slicing}'; it is official or per_block")
    if name == "all":
        return every.flatten()
    if name not in ("ir", "ef"):
        raise UsageError(f"probe.parts has '{name}'; parts are all, ir, ef")
    if split is None:
        raise UsageError(f"this encoder does not split its output, so it has no {name}; parts=all")
    if slicing == "per_block":
        return (every[:, :split] if name == "ir" else every[:, split:]).flatten()
    border = blocks * width - (width - split)
    return every.flatten()[:border] if name == "ir" else every.flatten()[border:]
