"""Accuracy of a head trained on clean pictures when only the test pictures change.

`grid` is Song et al. (2025, "CLeVER"), Tables 3 and 4: after Resize (bilinear; bicubic for the
untouched column) and CenterCrop come flip → rotation → color jitter → elastic warp; rotation is
nearest with black corners, jitter has saturation 0.4 (training has 0.2), and everything is always
applied. `rotation` and `elastic` sweep the strength of one operation alone. `invariance` is their
Table 5: rotation within ±90 and ±180 degrees without jitter; curves over a fixed angle and alpha.
Parameters depend on (seed, draw, sample key) alone, so that all encoders see the same pictures.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from equitools import augment, classifiers, preprocess
from equitools.errors import DataError
from equitools.features import Perturbation, Table, part
from equitools.label_checks import check_head

TURNS = [30.0 * step for step in range(1, 12)]  # a curve around the circle, 0 left out
REFERENCE = 224  # the size of picture for which alpha and sigma are stated


@dataclass(frozen=True)
class Column:
    """One perturbed test set: what is done to a picture, by operation, and how it is resized.

    angle: first every picture is turned by so many degrees, the same for all; None is not.
    """

    operations: dict[str, Any] = field(default_factory=dict)
    interpolation: str = "bilinear"
    angle: float | None = None


def grid(
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
    degrees: float = 90.0,
    wide: float = 180.0,
    alpha: float = 100.0,
    sigma: float = 5.0,
    scale: float | None = None,
) -> dict[str, Column]:
    """Orig, CJ, CJ+Flip, CJ+Ro, CJ+Ro(180) and CJ+Ro+ET.

    brightness, contrast, saturation, hue: of the color jitter. degrees, wide: rotation within ± so
    many. alpha, sigma: of the elastic warp at 224 px; times `scale`, size/224 when null.
    """
    jitter = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    turn = {"rotation": {"degrees": degrees}, "jitter": jitter}
    return {
        "orig": Column(interpolation="bicubic"),
        "cj": Column({"jitter": jitter}),
        "cj+flip": Column({"flip": {"p": 1.0}, "jitter": jitter}),
        "cj+ro": Column(turn),
        f"cj+ro{wide:g}": Column({**turn, "rotation": {"degrees": wide}}),
        "cj+ro+et": Column({**turn, "elastic": {"alpha": alpha, "sigma": sigma, "scale": scale}}),
    }


def rotation(
    *,
    degrees: list[float] = [15.0, 30.0, 45.0, 60.0, 90.0, 120.0, 150.0, 180.0],  # noqa: B006
) -> dict[str, Column]:
    """Rotation alone, within ± each of several ranges of degrees."""
    return {f"ro{angle:g}": Column({"rotation": {"degrees": angle}}) for angle in degrees}


def elastic(
    *,
    alpha: list[float] = [25.0, 50.0, 100.0, 150.0, 200.0],  # noqa: B006
    sigma: float = 5.0,
    scale: float | None = None,
) -> dict[str, Column]:
    """Elastic warps alone, of several strengths alpha."""
    return {
        f"et{a:g}": Column({"elastic": {"alpha": a, "sigma": sigma, "scale": scale}}) for a in alpha
    }


def invariance(
    *,
    degrees: list[float] = [90.0, 180.0],  # noqa: B006
    angles: list[float] = TURNS,
    alpha: list[float] = [25.0, 50.0, 100.0, 150.0, 200.0],  # noqa: B006
    sigma: float = 5.0,
    scale: float | None = None,
    jitter: bool = False,
) -> dict[str, Column]:
    """The untouched pictures, rotation within ± each of degrees, and two curves.

    angles: every picture turned by the same angle, counter-clockwise. alpha: elastic warps of
    several strengths. jitter: the grid's color jitter on top, in all but the untouched column.
    """
    found = {
        **rotation(degrees=degrees),
        **{f"at{angle:g}": Column(angle=angle) for angle in angles},
        **elastic(alpha=alpha, sigma=sigma, scale=scale),
    }
    over = grid()["cj"].operations if jitter else {}
    return {"orig": Column(interpolation="bicubic")} | {
        name: Column({**column.operations, **over}, "bicubic", column.angle)
        for name, column in found.items()
    }


def scaled(operations: dict[str, Any], size: int) -> dict[str, Any]:
    """The operations at pictures of `size`: alpha and sigma in pixels, times size/224 unless the
    settings give another scale."""
    warp = operations.get("elastic")
    if warp is None:
        return operations
    scale = size / REFERENCE if warp["scale"] is None else warp["scale"]
    return {**operations, "elastic": {key: warp[key] * scale for key in ("alpha", "sigma")}}


def perturbation(column: Column, size: int, seed: int, draw: int) -> Perturbation | None:
    """What `features.extract` does to pictures of `size` in one draw; None for nothing."""
    if not column.operations and column.angle is None:
        return None
    settings = scaled(column.operations, size)

    def change(pixels: Tensor, keys: Sequence[str]) -> Tensor:
        if column.angle is not None:
            angles = torch.full((len(pixels), 1), column.angle, dtype=torch.float64)
            pixels = augment.rotation.apply(pixels, angles)
        return augment.perturb(pixels, settings, keys, seed, draw) if settings else pixels

    return change


def told(column: Column, size: int, seed: int, draw: int) -> Any:
    """All that `perturbation` depends on, as JSON has it; None for nothing."""
    if not column.operations and column.angle is None:
        return None
    return [scaled(column.operations, size), column.angle, seed, draw]


def probe_of(document: dict[str, Any]) -> dict[str, Any]:
    """The settings of the probe whose head or neighbors judge; DataError where there is none."""
    probe = document.get("probe") or {}
    needed = {"eval", "encoder", "encoder_seed", "pretrained", "parts", "split", "layers", "size"}
    needed |= {"crop_pct", "interpolation", "limit"}
    if probe and (missing := sorted(needed - probe.keys())):
        raise DataError(f"the document's probe section lacks {', '.join(missing)}; probe again")
    judged = probe and ("probe.heads" in document.get("files", {}) or probe["eval"] == "knn")
    if not judged:
        raise DataError(
            "nothing can judge the changed pictures: the document has no probe heads; run"
            " equi-probe linear (or knn) first, as in equi-probe linear | equi-perturb grid"
        )
    return probe


def judge_of(document: dict[str, Any], k: int) -> str:
    """Who judges, in words: the heads that the document has, else k neighbors."""
    head = "mlp" if document["probe"]["eval"] == "mlp" else "linear"
    return f"{head} head" if "probe.heads" in document["files"] else f"{k}-NN"


def judge(
    table: Table, heads: dict[str, Tensor], slicing: str, chunk: int = 4096
) -> dict[str, float]:
    """Accuracy in percent of saved heads, linear or MLP, on a table, keyed `all/top1`; the mean
    over the heads' seeds. DataError when a head does not fit the features or classes."""
    found: dict[str, list[Tensor]] = {}
    for name, head in classifiers.named(heads).items():
        vectors = part(table, name.split("/")[0], slicing)
        shape = classifiers.shape(head)
        # Without names, a small test split may not show every class that the head knows.
        classes = table.classes if table.named else max(table.classes, shape[0])
        check_head(shape, vectors.shape[1], classes, name)
        head = {key: value.to(vectors) for key, value in head.items()}
        right = [
            classifiers.logits(head, x).topk(min(5, shape[0])).indices == y[:, None].to(x.device)
            for x, y in zip(vectors.split(chunk), table.labels.split(chunk), strict=True)
        ]
        found.setdefault(name.split("/")[0], []).append(torch.cat(right))
    if not found:
        raise DataError("the file of probe heads has no head; run equi-probe linear again")
    scores = {}
    for name, rights in found.items():
        stack = torch.stack(rights).double()
        scores[f"{name}/top1"] = 100 * float(stack[..., 0].mean())
        if table.classes >= 5:
            scores[f"{name}/top5"] = 100 * float(stack.any(-1).double().mean())
    return scores


def summary(prefix: str, draws: list[dict[str, float]]) -> dict[str, float]:
    """Each draw's scores, their mean, and their sample standard deviation (0 for one draw)."""
    scores: dict[str, float] = {}
    for key in draws[0]:
        part, metric = key.split("/")
        values = [draw[key] for draw in draws]
        scores |= {f"{prefix}/{part}/draw{i}/{metric}": v for i, v in enumerate(values)}
        scores[f"{prefix}/{part}/mean/{metric}"] = statistics.fmean(values)
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        scores[f"{prefix}/{part}/sd/{metric}"] = sd
    return scores


def facts(
    encoder: Any, tests: Sequence[tuple[str, str, Column]], probe: dict[str, Any]
) -> dict[str, Any]:
    """What was done to the pictures of each (test, column, what), in words and numbers."""
    shape = {key: probe[key] for key in ("size", "crop_pct")}
    found = {}
    for test, name, column in tests:
        plain = preprocess.evaluation_transform(
            encoder, interpolation=column.interpolation, **shape
        )
        changed = scaled(column.operations, plain.size)
        angle = {} if column.angle is None else {"angle": column.angle}
        found[f"{test}/{name}"] = {"picture": plain.describe(), **angle, **changed}
    return {
        "transform": found,
        "metric": "micro accuracy in percent of all test samples, mean over the seeds of the heads",
    }


TESTS: dict[str, Callable[..., dict[str, Column]]] = {
    "grid": grid,
    "rotation": rotation,
    "elastic": elastic,
    "invariance": invariance,
}
