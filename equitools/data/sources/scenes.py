"""Procedural photo-like pictures whose every factor is known: shape, texture, color, pose.

One object hovers over a textured ground under a sky. Horizon, light from above and the shadow below
the object say which way is up, so a picture is upright by construction while its object has a true
angle. No shape has a rotational symmetry, so that the angle can be read off.

Everything comes from one counter-based stream per (seed, split, number): the same call gives the
same bytes in any order and any process. A synthetic set in the spirit of dSprites (Matthey et al.,
2017) and 3DIEBench (Garrido et al., 2023); the drawing is our own.
"""

import colorsys
import math
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from equitools.core.errors import UsageError
from equitools.data.images import encode_png
from equitools.data.sources.source import Sample, Source, by_file

Random = np.random.Generator
TEXTURES = ("plain", "stripes", "checks", "dots", "grain")
SPLITS = {"train": 0, "val": 1}
ANGLE = 60.0  # degrees to either side
_FINE = 4  # the silhouette is drawn at this many times the resolution


def _arc(cx: float, cy: float, radius: float, start: float, end: float, n: int = 24) -> list:
    turns = np.radians(np.linspace(start, end, n))
    return [(cx + radius * math.cos(t), cy + radius * math.sin(t)) for t in turns]


def _mirrored(right: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A right half from top to bottom, and its mirror image on the way back up."""
    return right + [(-x, y) for x, y in reversed(right) if x]


# Outlines in the unit square [-1, 1], x right, y down, standing upright at angle 0.
_SHAPES: dict[str, list[tuple[float, float]]] = {
    "arrow": _mirrored([(0, -1), (0.7, -0.2), (0.28, -0.2), (0.28, 1)]),
    "crescent": _arc(0, 0, 0.95, 40, 320) + _arc(0.35, 0, 0.68, 295, 65),
    "drop": [(0, -1), *_arc(0, 0.35, 0.62, -30, 210)],
    "dome": [*_arc(0, 0.5, 1.0, 180, 360), (1, 0.6), (-1, 0.6)],
    "ell": [(-0.6, -1), (-0.1, -1), (-0.1, 0.5), (0.75, 0.5), (0.75, 1), (-0.6, 1)],
    "heart": [(0, 0.95), *_arc(-0.46, -0.35, 0.5, 140, 330), *_arc(0.46, -0.35, 0.5, 210, 400)],
    "house": _mirrored([(0, -1), (0.85, -0.2), (0.65, -0.2), (0.65, 0.9)]),
    "kite": _mirrored([(0, -0.95), (0.65, -0.35), (0, 1.0)]),
    "mushroom": _arc(0, -0.1, 0.9, 180, 360) + _mirrored([(0.3, -0.1), (0.42, 0.9)]),
    "tee": _mirrored([(0.85, -0.95), (0.85, -0.45), (0.26, -0.45), (0.26, 1)]),
}
CLASSES = tuple(sorted(_SHAPES))


def render(seed: int, split: str, number: int, size: int = 64) -> tuple[bytes, dict[str, Any]]:
    """Picture `number` of a split: PNG bytes and its facts (see `draw`)."""
    pixels, facts = draw(seed, split, number, size)
    return encode_png(pixels), facts


def draw(
    seed: int, split: str, number: int, size: int, **moved: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels (size, size, 3) uint8 and the facts that made them; `moved` are facts that are given
    instead of drawn (center, angle, …), all else being the same.

    Facts: label and shape, texture, hue (degrees), angle (degrees, counter-clockwise as seen),
    center (x, y) and radius in pixels, horizon (share of the height), light (-1 left … 1 right),
    box [x, y, w, h] in pixels, mask (run lengths, see `unpack_mask`).
    """
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS[split], number]))
    facts = _choose(rng, number, size) | moved
    mask = _silhouette(facts, size)
    picture = _ground_and_sky(rng, facts, size)
    picture = _cast_shadow(picture, mask, facts)
    alpha = mask[..., None]
    picture = picture * (1 - alpha) + _surface(rng, mask, facts, size) * alpha
    picture += 0.035 * (rng.random((size, size, 3)) + rng.random((size, size, 3)) - 1)
    solid = mask >= 0.5
    facts |= {"box": _box(solid), "mask": pack_mask(solid)}
    return (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8), facts


def _choose(rng: Random, number: int, size: int) -> dict[str, Any]:
    """The factors of one picture; classes take turns, all else is uniform and independent."""
    label = number % len(CLASSES)
    u = rng.random(9).tolist()
    radius = size * (0.20 + 0.12 * u[0])
    reach = radius + 0.04 * size
    return {
        "label": label,
        "shape": CLASSES[label],
        "texture": TEXTURES[int(u[1] * len(TEXTURES))],
        "hue": round(360 * u[2], 2),
        "angle": round(ANGLE * (2 * u[3] - 1), 2),
        "center": [
            round(reach + (size - 2 * reach) * u[4], 2),
            round(reach + (0.85 * size - 2 * reach) * u[5], 2),
        ],
        "radius": round(radius, 2),
        "horizon": round(0.45 + 0.25 * u[6], 3),
        "light": round(1.6 * u[7] - 0.8, 3),
        "day": round(u[8], 3),
    }


def _silhouette(facts: dict[str, Any], size: int) -> np.ndarray:
    """Coverage of each pixel by the object, size × size in [0, 1]."""
    turn = math.radians(facts["angle"])
    cos, sin, (cx, cy), radius = math.cos(turn), math.sin(turn), facts["center"], facts["radius"]
    outline = [
        (_FINE * (cx + radius * (cos * x + sin * y)), _FINE * (cy + radius * (cos * y - sin * x)))
        for x, y in _SHAPES[facts["shape"]]
    ]
    fine = Image.new("L", (size * _FINE, size * _FINE))
    ImageDraw.Draw(fine).polygon(outline, fill=255)
    return np.asarray(fine.reduce(_FINE), np.float64) / 255


def _ground_and_sky(rng: Random, facts: dict[str, Any], size: int) -> np.ndarray:
    """A cloudy sky that brightens to the horizon, over a ground that gets finer towards it."""
    rows = (np.arange(size) + 0.5) / size
    horizon, day = facts["horizon"], facts["day"]
    height = (rows / horizon).clip(0, 1)[:, None, None]
    top, low = _rgb(200 + 30 * day, 0.65, 0.55 + 0.35 * day), _rgb(30, 0.25, 0.85 + 0.1 * day)
    clouds = (_noise(rng, size, 3, 5) + 0.5 * _noise(rng, size, 7, 11))[..., None]
    sky = top * (1 - height) + low * height + 0.22 * (clouds - 0.9).clip(0, 1)
    depth = ((rows - horizon) / (1 - horizon)).clip(0.02, 1)
    earth = _rgb(25 + 110 * rng.random(), 0.35 + 0.2 * rng.random(), 0.35 + 0.3 * rng.random())
    field = _perspective(_noise(rng, 4 * size, 48, 48), depth, size)
    ground = earth * (0.65 + 0.25 * depth[:, None, None] + 0.5 * (field[..., None] - 0.5))
    return np.where((rows >= horizon)[:, None, None], ground, sky)


def _perspective(field: np.ndarray, depth: np.ndarray, size: int) -> np.ndarray:
    """A flat field seen from above it: row at depth d shows the field at distance 1 / d."""
    far = 1 / (0.15 + depth)
    across = (np.arange(size) + 0.5) / size - 0.5
    n = len(field)
    row = (far * 0.55 * n).astype(np.int64) % n
    column = ((across[None, :] * far[:, None] * 0.4 + 0.5) * n).astype(np.int64) % n
    return field[row[:, None], column]


def _cast_shadow(picture: np.ndarray, mask: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """The silhouette squashed onto the ground below the object, blurred, away from the light."""
    size, (_, cy), radius = len(mask), facts["center"], facts["radius"]
    ground = min(max(cy + 1.15 * radius, (facts["horizon"] + 0.08) * size), 0.95 * size)
    shift = -facts["light"] * 0.35 * radius
    squash = (1, 0, -shift, 0, 4, cy - 4 * ground)
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    flat = Image.fromarray((mask * 255).astype(np.uint8))
    flat = flat.transform((size, size), affine, squash, bilinear)
    flat = flat.filter(ImageFilter.GaussianBlur(0.06 * radius))
    dark = np.asarray(flat, np.float64)[..., None] / 255
    dark[: int(facts["horizon"] * size)] = 0
    return picture * (1 - 0.6 * dark)


def _surface(rng: Random, mask: np.ndarray, facts: dict[str, Any], size: int) -> np.ndarray:
    """The object's color and texture, which turn with it, in light from above, which does not."""
    y, x = np.mgrid[:size, :size] + 0.5
    x, y = (x - facts["center"][0]) / facts["radius"], (y - facts["center"][1]) / facts["radius"]
    turn = math.radians(facts["angle"])
    u, v = math.cos(turn) * x - math.sin(turn) * y, math.sin(turn) * x + math.cos(turn) * y
    amount = _texture(rng, facts["texture"], u, v, size)[..., None]
    bright, dim = _rgb(facts["hue"], 0.75, 0.95), _rgb(facts["hue"] + 25, 0.85, 0.45)
    light = 0.78 - 0.26 * y + 0.22 * facts["light"] * x
    return (bright * amount + dim * (1 - amount)) * light[..., None]


def _texture(rng: Random, name: str, u: np.ndarray, v: np.ndarray, size: int) -> np.ndarray:
    phase, rate = rng.random(2) * 2 * math.pi, 7 + 5 * rng.random()
    across, along = np.sin(rate * u + phase[0]), np.sin(rate * v + phase[1])
    grain = _noise(rng, size, 12, 12)
    if name == "stripes":
        return 1 / (1 + np.exp(-6 * along))
    if name == "checks":
        return 1 / (1 + np.exp(-8 * across * along))
    if name == "dots":
        return 1 / (1 + np.exp(-8 * (0.6 - across - along)))
    return grain if name == "grain" else 0.85 + 0.3 * (grain - 0.5)


def _noise(rng: Random, size: int, rows: int, columns: int) -> np.ndarray:
    """Smooth noise in about [0, 1]: a random grid, enlarged."""
    grid = Image.fromarray(rng.random((rows, columns)).astype(np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), np.float64)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value))


def _box(solid: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def pack_mask(mask: np.ndarray) -> dict[str, list[int]]:
    """Booleans (h, w) as COCO's uncompressed run lengths: column by column, zeros first."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask[-1, -1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0).tolist()}


def unpack_mask(packed: dict[str, list[int]]) -> np.ndarray:
    """The booleans (h, w) of `pack_mask`."""
    height, width = packed["size"]
    values = np.arange(len(packed["counts"])) % 2 == 1
    return np.repeat(values, packed["counts"]).reshape(width, height).T


def drawn_scenes(size: int, train: int, val: int, seed: int) -> Source:
    """The procedural pictures of `scenes`, in as many samples as wanted."""
    if size < 16:
        raise UsageError(f"shard.size={size}; a scene needs at least 16 px")
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            label, make = i % len(CLASSES), partial(render, seed, split, i, size)
            splits[split].append(Sample(f"{CLASSES[label]}/{i:06d}.png", label, make=make))
    return by_file(Source("scenes", splits, list(CLASSES)))
