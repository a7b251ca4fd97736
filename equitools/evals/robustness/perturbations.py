"""Accuracy of a head trained on clean pictures when only the test pictures change.

`grid` is Song et al. (2025, "CLeVER"), Tables 3 and 4: after Resize (bilinear; bicubic for the
untouched column) and CenterCrop come flip → rotation → color jitter → elastic warp; rotation is
nearest with black corners, jitter has saturation 0.4 (training has 0.2), and everything is always
applied. `rotation` and `elastic` sweep the strength of one operation alone. `invariance` is their
Table 5: rotation within ±90 and ±180 degrees without jitter; curves over a fixed angle and alpha.
Parameters depend on (seed, draw, sample key) alone, so that all encoders see the same pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from equitools import augment
from equitools.augment.operations import rotation as turning
from equitools.features.table import Perturbation

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
    columns = {
        **rotation(degrees=degrees),
        **{f"at{angle:g}": Column(angle=angle) for angle in angles},
        **elastic(alpha=alpha, sigma=sigma, scale=scale),
    }
    over = grid()["cj"].operations if jitter else {}
    return {"orig": Column(interpolation="bicubic")} | {
        name: Column({**column.operations, **over}, "bicubic", column.angle)
        for name, column in columns.items()
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
            pixels = turning.apply(pixels, angles)
        return augment.perturb(pixels, settings, keys, seed, draw) if settings else pixels

    return change


def cache_key(column: Column, size: int, seed: int, draw: int) -> Any:
    """All that `perturbation` depends on, as JSON has it; None for nothing."""
    if not column.operations and column.angle is None:
        return None
    return [scaled(column.operations, size), column.angle, seed, draw]
