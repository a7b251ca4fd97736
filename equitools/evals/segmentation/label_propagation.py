"""Labels of the first frame of a video are carried on by the likeness of patches.

    y_q = Σ_k a_qk y_k / Σ_k a_qk,   a_qk = exp(cos(f_q, f_k) / τ)

over the k of all context frames that are the five likest of those within 12 cells of q (Jabri et
al., 2020, Section 3.2; Caron et al., 2021, "DINO", Section 4.2.2). The context is the first frame
and the seven before this one, with their soft labels. Five are five: where others are exactly as
like as the fifth, the released code takes them too.

The affinities of a whole frame are (hw) × (8 hw) numbers, most of them outside the window. Here a
few rows of queries at a time, in a few columns, meet only the cells that one of them can see, and
the exponential is taken of what is kept.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from equitools.core.errors import UsageError
from equitools.evals.segmentation.davis import EncodedVideos
from equitools.features.table import Outcome

TALL, WIDE = 10, 13  # rows and columns of a tile of queries, about
FLAT = 1e-6  # a soft map that varies by less is the same everywhere


def evaluate(
    source: EncodedVideos,
    *,
    context: int = 7,
    neighborhood: int = 12,
    topk: int = 5,
    temperature: float = 0.1,
    random: bool = False,
) -> Outcome:
    """J and F, in percent, of labels that are carried from the first frame to all others, and
    beside them `copy/…`, of the first mask left as it is.

    context: so many frames before each are looked at beside the first; neighborhood: so many cells
    to each side; topk: the likest that count; temperature: of their weights. random: also
    `random/…`, of the same network with random weights. source: see davis.py.
    """
    knobs: dict[str, Any] = {
        "context": context,
        "neighborhood": neighborhood,
        "topk": topk,
        "temperature": temperature,
    }
    check(context, neighborhood, topk, temperature)
    labels = partial(predict, **knobs)
    scores = dict(source.judge(labels, knobs))
    beside = {"copy": source.copy()}
    if random:
        beside["random"] = source.judge(labels, knobs, untrained=True)
    for name, values in beside.items():
        scores |= {f"{name}/{key}": value for key, value in values.items()}
    scores = {key: 100 * value for key, value in scores.items()}
    facts = {
        "propagation": f"cosine of cells, soft labels of the first frame and {context} before,"
        f" {neighborhood} cells to each side, {topk} likest, temperature {temperature:g}",
        **source.facts(),
    }
    return Outcome(scores, files=source.files(), facts=facts)


def predict(
    features: Iterable[Tensor], first: np.ndarray, size: tuple[int, int], **knobs: Any
) -> Iterator[np.ndarray]:
    """Labels h w of every frame after the first, of the size of the first one's labels.

    features: maps d h w of all frames; size: of the frames as the network saw them.
    """
    maps = iter(features)
    start = next(maps)
    known = one_hot(first, (start.shape[1], start.shape[2]))
    for soft in follow(chain([start], maps), known, **knobs):
        yield decode(soft, size, (first.shape[0], first.shape[1]))


def one_hot(labels: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Labels h w (0 is background) as one map for each, on a grid (nearest): c rows columns."""
    small = Image.fromarray(labels).resize(grid[::-1], Image.Resampling.NEAREST)
    cells = torch.from_numpy(np.array(small)).long()
    return F.one_hot(cells, int(labels.max()) + 1).permute(2, 0, 1).float()


def follow(
    features: Iterable[Tensor],
    first: Tensor,
    *,
    context: int = 7,
    neighborhood: int = 12,
    topk: int = 5,
    temperature: float = 0.1,
) -> Iterator[Tensor]:
    """Soft labels c h w of every frame after the first, from maps d h w of all frames in order.

    first: of the first frame. context: so many frames before this one are looked at beside the
    first; neighborhood: so many cells to each side; topk: the likest that count; temperature: τ.
    Raises UsageError for knobs that leave nothing.
    """
    check(context, neighborhood, topk, temperature)
    memory: Memory | None = None
    for number, cells in enumerate(features):
        cells = F.normalize(cells.float(), dim=0).movedim(0, -1).contiguous()
        if memory is None:
            memory = Memory(cells, len(first), context, neighborhood)
            soft = first.to(cells.device)
        else:
            soft = memory.carry(cells, topk, temperature)
            yield soft
        memory.keep(number, cells, soft)


def check(context: int, neighborhood: int, topk: int, temperature: float) -> None:
    """UsageError for knobs that leave nothing to carry labels from."""
    if context < 0 or neighborhood < 0 or topk < 1 or not temperature > 0:
        raise UsageError(
            f"context={context}, neighborhood={neighborhood}, topk={topk},"
            f" temperature={temperature:g}: the first two are at least 0, topk is at least 1 and"
            " temperature above 0"
        )


class Memory:
    """The first frame and the last `context` ones: unit vectors, and soft labels of their cells.

    Vectors lie in strips of columns, each as wide as its queries see, so that what a tile reads is
    one block of memory.
    """

    def __init__(self, cells: Tensor, labels: int, context: int, reach: int) -> None:
        self.height, self.width, self.reach, self.held = *cells.shape[:2], reach, 0
        device, depth = cells.device, cells.shape[2]
        self.labels = torch.zeros(1 + context, self.height, self.width, labels, device=device)
        self.bands = _spans(self.height, TALL, reach)
        self.strips = [
            (*span, torch.zeros(1 + context, self.height, span[3] - span[2], depth, device=device))
            for span in _spans(self.width, WIDE, reach)
        ]

    def keep(self, number: int, cells: Tensor, soft: Tensor) -> None:
        """Frame `number` (h w d, c h w) takes the place of the oldest; the first one stays."""
        context = len(self.labels) - 1
        if number and not context:
            return
        place = 1 + (number - 1) % context if number else 0
        self.held = max(self.held, place + 1)
        self.labels[place] = soft.movedim(0, -1)
        for _, _, left, right, strip in self.strips:
            strip[place] = cells[:, left:right]

    def carry(self, cells: Tensor, topk: int, temperature: float) -> Tensor:
        """Soft labels c h w of a frame of unit vectors h w d."""
        soft = torch.empty(self.height, self.width, self.labels.shape[-1], device=cells.device)
        for top, bottom, upper, lower in self.bands:
            for start, end, left, right, strip in self.strips:
                queries = cells[top:bottom, start:end].reshape(-1, cells.shape[2])
                keys = strip[: self.held, upper:lower].flatten(1, 2)
                labels = self.labels[: self.held, upper:lower, left:right].flatten(1, 2)
                far = self._far((top, bottom, upper, lower), (start, end, left, right), cells)
                carried = _best(queries, keys, labels, far, topk, temperature)
                soft[top:bottom, start:end] = carried.view(bottom - top, end - start, -1)
        return soft.movedim(-1, 0).contiguous()

    def _far(self, rows: tuple[int, ...], columns: tuple[int, ...], like: Tensor) -> Tensor:
        """-inf where a query of a tile cannot see a cell, else 0: q k."""
        apart = []
        for start, end, first, last in (rows, columns):
            queries = torch.arange(start, end, device=like.device)
            keys = torch.arange(first, last, device=like.device)
            apart.append((queries[:, None] - keys).abs() > self.reach)
        unseen = apart[0][:, None, :, None] | apart[1][None, :, None, :]
        far = torch.zeros(unseen.shape, device=like.device).masked_fill_(unseen, -torch.inf)
        return far.flatten(2).flatten(0, 1)


def _spans(side: int, size: int, reach: int) -> list[tuple[int, int, int, int]]:
    """A side cut into even spans of about `size`: (start, end) of each and of what it sees."""
    count = -(-side // size)
    ends = [side * i // count for i in range(count + 1)]
    return [(a, b, max(a - reach, 0), min(b + reach, side)) for a, b in pairwise(ends)]


def _best(
    queries: Tensor, keys: Tensor, labels: Tensor, far: Tensor, topk: int, temperature: float
) -> Tensor:
    """Labels q c of queries q d, from keys n k d in n frames with labels n k c; far is q k.

    The five likest of all frames lie at the five cells whose likest frame is likest: the window is
    applied, and the cells are sorted, once for all frames.
    """
    likeness = queries @ keys.transpose(1, 2)
    _, cell = (likeness.amax(0) + far).topk(min(topk, far.shape[1]))
    frames, count, width = len(keys), len(queries), cell.shape[1]
    few = likeness.gather(2, cell.expand(frames, -1, -1))
    few = (few + far.gather(1, cell)).movedim(0, 1).reshape(count, -1)
    value, place = few.topk(min(topk, few.shape[1]))
    weight = (value / temperature).softmax(1)
    key = place // width * labels.shape[1] + cell.gather(1, place % width)
    return (labels.flatten(0, 1)[key] * weight[..., None]).sum(1)


def decode(soft: Tensor, size: tuple[int, int], original: tuple[int, int]) -> np.ndarray:
    """Labels of the original size, uint8, from soft labels c h w.

    Bilinear to `size`, each map stretched to [0, 1], the largest wins, nearest to the original. A
    map that is the same everywhere stays as it is.
    """
    large = F.interpolate(soft[None], size=size, mode="bilinear", align_corners=False)[0]
    low, high = large.amin((1, 2), True), large.amax((1, 2), True)
    stretched = (large - low) / (high - low).clamp(min=FLAT)
    labels = torch.where(high - low > FLAT, stretched, large).argmax(0).byte().cpu().numpy()
    return np.array(Image.fromarray(labels).resize(original[::-1], Image.Resampling.NEAREST))
