"""Region and contour scores of video object segmentation, in the semi-supervised protocol.

    J = |M ∩ G| / |M ∪ G|,    F = 2 P R / (P + R)

(Perazzi et al., 2016, Section 3; Pont-Tuset et al., 2017, for several objects). P is the share of
the found contour within ⌈0.008 · diagonal⌉ pixels of the true one, R the share of the true contour
near the found one; a contour pixel differs from its right, lower or lower-right neighbor. The first
and the last frame are left out. All of it is counting, so that the numbers are those of the
official code to the last digit; it needs no library for images.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from equitools.core.errors import DataError
from equitools.evals.segmentation.palette_png import VOID

NEAR = 0.008  # how far contours may be apart, as a share of the diagonal
RECALL = 0.5  # frames above it are found
BINS = 4


@dataclass(frozen=True)
class Statistics:
    """mean; recall: the share of frames above 0.5; decay: how much better the first quarter of the
    frames is than the last."""

    mean: float
    recall: float
    decay: float


def region(predicted: np.ndarray, truth: np.ndarray) -> float:
    """J of two masks h w of booleans; 1 where both are empty."""
    union = np.count_nonzero(predicted | truth)
    return np.count_nonzero(predicted & truth) / union if union else 1.0


def contour(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask h w whose right, lower or lower-right neighbor differs; in the last row
    and column only the neighbor that there is."""
    edge = np.zeros_like(mask)
    right = mask[:, :-1] != mask[:, 1:]
    below = mask[:-1] != mask[1:]
    edge[:, :-1] = right
    edge[:-1] |= below
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def boundary(predicted: np.ndarray, truth: np.ndarray) -> float:
    """F of two masks h w of booleans; 0 where one has no contour, 1 where neither has."""
    radius = math.ceil(NEAR * math.hypot(*truth.shape))
    window = _around(predicted | truth, 1)
    edges = contour(predicted[window]), contour(truth[window])
    counts = [np.count_nonzero(edge) for edge in edges]
    if not all(counts):
        return 0.0 if any(counts) else 1.0
    precision = _near(edges[0], edges[1], radius) / counts[0]
    recall = _near(edges[1], edges[0], radius) / counts[1]
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def _around(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The rows and columns that hold a mask and so many more on each side, inside the frame.

    Contours need one: what lies beyond is background on both sides.
    """
    spans = []
    for axis in (1, 0):
        hit = np.flatnonzero(mask.any(axis))
        first, last = (hit[0], hit[-1]) if len(hit) else (0, 0)
        spans.append(slice(max(first - margin, 0), last + margin + 1))
    return spans[0], spans[1]


def _near(edge: np.ndarray, other: np.ndarray, radius: int) -> int:
    """How many pixels of one contour have a pixel of the other within a disk of the radius.

    A disk is one run of pixels in each of its rows, and a running sum along the rows says in two
    look-ups whether a run holds a pixel: nothing is dilated.
    """
    height, width = other.shape
    sums = np.zeros((height + 2 * radius, width + 2 * radius + 1), np.int32)
    inner = sums[radius : radius + height]
    np.cumsum(other, axis=1, dtype=np.int32, out=inner[:, radius + 1 : radius + 1 + width])
    inner[:, radius + 1 + width :] = inner[:, radius + width, None]
    rows, columns = np.nonzero(edge)
    steps = np.arange(-radius, radius + 1)
    reach = np.array([math.isqrt(radius**2 - int(step) ** 2) for step in steps])
    # Everything is moved by the radius, so that no look-up leaves the array.
    line = (rows[:, None] + steps + radius) * sums.shape[1] + columns[:, None] + radius
    flat = sums.ravel()
    hits = flat[line + reach + 1] > flat[line - reach]
    return int(np.count_nonzero(hits.any(1)))


def objects(first: np.ndarray) -> int:
    """How many objects a sequence has: the largest label of its first frame. Void, here and in
    every other frame, counts as background."""
    return int(first[first != VOID].max(initial=0))


def frame(predicted: np.ndarray, truth: np.ndarray, count: int, where: str) -> np.ndarray:
    """J and F of every object of one frame, from labels h w: (count, 2).

    An object that is not found has an empty mask. Raises DataError, which names `where`, for masks
    of another size and for found labels beyond `count`.
    """
    if predicted.shape != truth.shape:
        sizes = " and ".join(f"{mask.shape[1]}×{mask.shape[0]}" for mask in (predicted, truth))
        raise DataError(f"{where}: the found and the true mask are {sizes}; they must be the same")
    if (most := int(predicted.max(initial=0))) > count:
        raise DataError(f"{where} has label {most}, but the sequence has {count} objects")
    scores = np.empty((count, 2))
    for label in range(1, count + 1):
        masks = predicted == label, truth == label
        scores[label - 1] = region(*masks), boundary(*masks)
    return scores


def statistics(values: np.ndarray) -> Statistics:
    """Mean, recall and decay of one object's scores in its frames.

    The quarters overlap by a frame, as they do in the official code. Raises DataError when there
    is no frame.
    """
    if not len(values):
        raise DataError("no frame is left to score; a sequence has at least three")
    ends = np.round(np.linspace(1, len(values), BINS + 1) + 1e-10).astype(int) - 1
    bins = [values[a : b + 1].mean() for a, b in pairwise(ends)]
    recall = float((values > RECALL).mean())
    return Statistics(float(values.mean()), recall, float(bins[0] - bins[-1]))


def summary(sequences: dict[str, np.ndarray]) -> dict[str, float]:
    """Scores of a data set from J and F of its sequences, (frames, objects, 2) each.

    {j,f}/{mean,recall,decay} and jf/mean are means over the objects of all sequences, so that one
    with two objects counts twice; sequences/<name>/… are those of one sequence.
    """
    by_video: dict[str, list[dict[str, float]]] = {}
    for name, values in sequences.items():
        by_video[name] = [_of_object(values[:, label]) for label in range(values.shape[1])]
    every = _means([one for objects in by_video.values() for one in objects])
    for name, objects in by_video.items():
        every |= {f"sequences/{name}/{key}": value for key, value in _means(objects).items()}
    return every


def _of_object(values: np.ndarray) -> dict[str, float]:
    """The six statistics of one object, from (frames, 2)."""
    named = {"j": statistics(values[:, 0]), "f": statistics(values[:, 1])}
    return {f"{key}/{name}": v for key, stat in named.items() for name, v in vars(stat).items()}


def _means(objects: list[dict[str, float]]) -> dict[str, float]:
    """Each statistic averaged over objects, and the mean of J and F."""
    mean = {key: float(np.mean([one[key] for one in objects])) for key in objects[0]}
    return {"jf/mean": (mean["j/mean"] + mean["f/mean"]) / 2, **mean}
