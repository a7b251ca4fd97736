"""Does a network's last layer tell the foreground of a picture from the rest, without training?

A mask m by TokenCut (tokencut.py), with and without a bilateral solver after it (bilateral_solver),
beside the true one g. Each is taken of a picture and averaged over pictures:

    IoU = |m ∧ g| / |m ∨ g|,   accuracy = share of pixels with m = g,
    F_β(t) = (1 + β²) P R / (β² P + R) of the mask s > t,  β² = 0.3,  t = 0, 1/255, …, 254/255

and max F is the highest point of the mean curve F_β(t) (Achanta et al., 2009; Wang et al., 2022).
s is the solver's soft output, of which m is s > 0.5; without the solver s is m itself.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from PIL import Image

from equitools.core.errors import DataError, UsageError
from equitools.evals.segmentation import tokencut
from equitools.evals.segmentation.bilateral_solver import solve
from equitools.evals.segmentation.saliency_data import EncodedPictures
from equitools.features.keys import Keys
from equitools.features.table import Outcome

BETA2 = 0.3
BINS = 255
CENTER = 0.5  # the sides of the middle box, as shares of the picture's


def evaluate(
    source: EncodedPictures, *, tau: float = 0.2, bilateral: bool = True, random: bool = False
) -> Outcome:
    """IoU, accuracy and max F in percent of TokenCut's masks, without training.

    Beside them `center/…`, of a box in the middle with half the picture's height and width.

    tau: the cosine above which two patches are alike. bilateral: also `bilateral/…`, after the
    solver. random: also `random/…`, of the same network with random weights. Masks and overlays of
    them (red, the true border green) are kept as PNG. A picture whose true mask is empty is left
    out, and counted. DataError when no picture is left.
    """
    tables: dict[str, _Means] = defaultdict(_Means)
    clustered, alike = 0, 0.0
    others = {"random/": source.untrained()} if random else {}
    for scene in source.scenes():
        for name, keys in {"": source.keys, **others}.items():
            soft_masks, cut = masks(keys, scene.image, tau, bilateral)
            if not name:
                clustered, alike = clustered + (not cut.sure), alike + cut.alike
            for way, soft in soft_masks.items():
                tables[name + way].add(soft, scene.truth)
                if not name:
                    source.keep(scene, soft > 0.5, way.strip("/"))
        tables["center/"].add(center(scene.truth.shape), scene.truth)
    if not tables:
        raise DataError(f"no picture of {source.name} has a foreground in its mask")
    scores = {
        f"{name}{key}": v for name, table in tables.items() for key, v in table.done().items()
    }
    facts = {
        "test_samples": len(tables[""].iou),
        "iou_standard_error": tables[""].error(),
        "metric": "IoU and accuracy per picture, then averaged; max F of the mean curve of"
        f" {BINS} thresholds, beta² {BETA2}; foreground is any mask value above 0",
        "method": f"TokenCut, tau {tau:g}; cosine graph, second vector by Lanczos",
        "eigenvalues_clustered": clustered,
        "pairs_of_patches_above_tau": alike / len(tables[""].iou),
        "center": f"a box of {CENTER:g} of the picture's height and width in its middle",
        **source.facts(),
    }
    return Outcome(scores, files=source.files(), facts=facts)


def check(settings: dict[str, Any]) -> None:
    """UsageError for what no cosine can be."""
    if not -1 <= settings["tau"] <= 1:
        raise UsageError(f"transfer.tau is {settings['tau']:g}; it is a cosine, from -1 to 1")


def masks(
    keys: Keys, image: np.ndarray, tau: float, bilateral: bool
) -> tuple[dict[str, np.ndarray], tokencut.Cut]:
    """Soft masks h w in [0, 1] of an image uint8 h w 3 by the way they were made, and the cut that
    they come from. Every pixel has the value of the patch that it lies in."""
    cut = tokencut.cut(keys(image), tau)
    height, width = image.shape[:2]
    small = Image.fromarray(cut.mask.astype(np.uint8))
    plain = np.asarray(small.resize((width, height), Image.Resampling.NEAREST), np.float64)
    soft_masks = {"": plain}
    if bilateral:
        soft_masks["bilateral/"] = solve(image, plain)
    return soft_masks, cut


def center(shape: tuple[int, ...]) -> np.ndarray:
    """The box in the middle of a mask h w, 0 or 1."""
    mask = np.zeros(shape)
    first = [round(side * (1 - CENTER) / 2) for side in shape]
    mask[tuple(slice(a, side - a) for a, side in zip(first, shape, strict=True))] = 1
    return mask


def overlap(mask: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """IoU and accuracy of boolean masks h w; the true one is not empty."""
    return float((mask & truth).sum() / (mask | truth).sum()), float((mask == truth).mean())


def f_curve(soft: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """F_β of soft > t, 255 thresholds, with precision 0 where nothing is above t.

    soft h w in [0, 1] (values outside count as 0 or 1), truth h w booleans with a foreground.
    """
    # k thresholds t = 0, 1/255, …, (k - 1)/255 lie below a value in (k - 1, k] / 255.
    level = np.ceil(soft.clip(0, 1) * BINS).astype(np.int64)
    above = [
        np.bincount(level[chosen], minlength=BINS + 1)[::-1].cumsum()[::-1][1:]
        for chosen in (truth, np.ones_like(truth))
    ]
    hits, marked = above
    precision, recall = hits / np.maximum(marked, 1), hits / truth.sum()
    below = BETA2 * precision + recall
    return (1 + BETA2) * precision * recall / np.where(below > 0, below, 1)


class _Means:
    """The three measures of pictures that come one by one."""

    def __init__(self) -> None:
        self.iou: list[float] = []
        self.accuracy: list[float] = []
        self.curve: Any = np.zeros(BINS)

    def add(self, soft: np.ndarray, truth: np.ndarray) -> None:
        iou, accuracy = overlap(soft > 0.5, truth)
        self.iou.append(iou)
        self.accuracy.append(accuracy)
        self.curve = self.curve + f_curve(soft, truth)

    def done(self) -> dict[str, float]:
        """In percent."""
        count = len(self.iou)
        return {
            "iou": 100 * sum(self.iou) / count,
            "accuracy": 100 * sum(self.accuracy) / count,
            "max_f": 100 * float(self.curve.max()) / count,
        }

    def error(self) -> float:
        """The standard error of the mean IoU, in percent; 0 of a single picture."""
        count = len(self.iou)
        return 100 * float(np.std(self.iou, ddof=1)) / count**0.5 if count > 1 else 0.0
