"""Every picture's operations as a short program, and a batch's programs as few launches on a GPU.

A program has a slot for each change of pixels: flip, rotation, the four of jitter, gray, solarize.
Slots wait for the next operation that needs neighbors (blur, elastic) or for the end, and are then
carried out in one pass: backward for where a pixel comes from, forward for its color.
triton_kernels.py reads the table made here; the CPU knows all of it, and nothing waits for the GPU.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from equitools.augment.operation import Operation, Operations
from equitools.augment.operations import blur, elastic, flip, gray, jitter, rotation, solarize

# Kinds of slots; the first four are numbered as in jitter's order.
BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAY, SOLARIZE, FLIP, ROTATION, NOTHING = range(9)
# Columns of a picture's row of 32-bit words; factors and what a Gaussian begins with are floats.
KINDS, FACTORS, TURN = slice(0, 8), slice(8, 16), slice(16, 22)
BLUR, ELASTIC = slice(22, 24), slice(24, 26)  # sigma and half the kernel, in pixels
DISPLACEMENT, NOISE = 26, slice(27, 29)  # pixels for a unit of noise; the two words of its seed
MEAN = 29  # of the luma, where a pass has found it for contrast
WORDS, JOB = 32, 8  # of the table and of a pass's jobs; multiples of 16 bytes, as GPUs read
Size = tuple[int, int]  # height, width
LIMIT = 1 << 14  # sides in pixels: rotations count in 16.16 fixed point


@dataclass
class PassPlan:
    """A batch's programs while they are written, and the passes over its pictures.

    table: n × WORDS words. passes: their names, and a row of int32 for each picture that they
    visit: picture, source (a place in working memory, -1 for the bytes), first slot of the program
    (for "fetch" the place of the displacements), end, target. places: how many pictures of three
    planes the working memory holds.
    """

    table: np.ndarray
    end: int = 0
    places: int = 0
    passes: list[tuple[str, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source = np.full(len(self.table), -1, np.int32)
        self.start = np.zeros(len(self.table), np.int32)

    def floats(self, columns: slice | int) -> np.ndarray:
        """Columns of the table as float32, to write into."""
        return self.table.view(np.float32)[:, columns]

    def append(self, kind: int | np.ndarray, acts: np.ndarray, factor: float | np.ndarray) -> None:
        """One more slot for every picture; it does nothing where `acts` is False."""
        self.table[:, KINDS.start + self.end] = np.where(acts, kind, NOTHING)
        self.floats(FACTORS)[:, self.end] = factor
        self.end += 1

    def reserve(self, count: int) -> np.ndarray:
        """The numbers of `count` places in working memory that nothing else uses."""
        self.places += count
        return np.arange(self.places - count, self.places)

    def visit(self, name: str, *columns: int | np.ndarray) -> None:
        """One more pass, where there are pictures for it; columns: picture, source, …, target."""
        rows = np.stack(np.broadcast_arrays(*columns), axis=1)
        if len(rows):
            jobs = np.zeros((len(rows), JOB), np.int32)
            jobs[:, : rows.shape[1]] = rows
            self.passes.append((name, jobs))

    def paint(self, name: str, rows: np.ndarray, target: np.ndarray) -> None:
        """Carry out what waits for these pictures; contrast is told the mean beforehand."""
        waiting = self.table[rows, KINDS][:, : self.end] == CONTRAST
        waiting &= np.arange(self.end) >= self.start[rows, None]
        first, slot = waiting.nonzero()
        some = rows[first]
        self.visit("mean", some, self.source[some], self.start[some], slot, 0)
        self.visit(name, rows, self.source[rows], self.start[rows], self.end, target)
        self.source[rows], self.start[rows] = target, self.end


def can(images: Tensor, operations: Operations) -> bool:
    """Does Triton run here, and are operations and pictures (b 3 h w uint8, CUDA) known?"""
    known = all(operation in WRITE for operation in operations)
    once = len(set(operations)) == len(operations)
    bytes_there = images.dtype == torch.uint8 and images.device.type == "cuda"
    fits = images.dim() == 4 and images.shape[1] == 3 and max(images.shape[2:]) < LIMIT
    return known and once and bytes_there and fits and available()


@cache
def available() -> bool:
    """Is Triton installed, and the C compiler that builds its launchers?"""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and importlib.util.find_spec("triton") is not None


def plan(parameters: Sequence[Tensor], operations: Operations, count: int, size: Size) -> PassPlan:
    """The programs of `count` pictures of size (height, width), and the passes they need.

    parameters: count k float64 of each operation, in the order of carrying out.
    """
    made = PassPlan(np.zeros((count, WORDS), np.int32))
    for operation, p in zip(operations, parameters, strict=True):
        WRITE[operation](made, p.numpy(), size)
    everything = np.arange(count)
    made.paint("finish", everything, everything)
    return made


def _switch(kind: int, made: PassPlan, p: np.ndarray, size: Size) -> None:
    made.append(kind, p[:, 0] != 0, 0)


def _rotation(made: PassPlan, p: np.ndarray, size: Size) -> None:
    _switch(ROTATION, made, p, size)
    looked_up = rotation.coefficients(torch.from_numpy(p), *size)
    made.table[:, TURN] = looked_up.flatten(1).numpy()


def _jitter(made: PassPlan, p: np.ndarray, size: Size) -> None:
    order = p[:, 4:].astype(np.int64)
    factors = np.take_along_axis(p[:, :4], order, axis=1)
    acts = factors != np.array(jitter.IDENTITY)[order]
    sixths = 6 * (factors - np.floor(factors + 0.5))
    factors = np.where(order == HUE, sixths, factors)
    for slot in range(4):
        made.append(order[:, slot], acts[:, slot], factors[:, slot])


def _solarize(made: PassPlan, p: np.ndarray, size: Size) -> None:
    made.append(SOLARIZE, p[:, 0] < 1, p[:, 0])


def _gaussian(made: PassPlan, columns: slice, sigma: np.ndarray, half: np.ndarray) -> None:
    # A sigma of 0 has one tap, whose weight must not be 0 / 0.
    made.floats(columns)[:, 0] = np.maximum(sigma, 1e-4)
    made.table[:, columns.start + 1] = half


def _blur(made: PassPlan, p: np.ndarray, size: Size) -> None:
    half = np.floor(4 * p[:, 0].astype(np.float32))
    _gaussian(made, BLUR, p[:, 0], half)
    rows = (half > 0).nonzero()[0]
    here, there = made.reserve(len(rows)), made.reserve(len(rows))
    made.paint("paint", rows, here)
    made.visit("blur across", rows, here, 0, 0, there)
    made.visit("blur down", rows, there, 0, 0, here)


def _elastic(made: PassPlan, p: np.ndarray, size: Size) -> None:
    half = np.where(p[:, 1] > 0, (8 * p[:, 1] + 1).astype(np.int64) // 2, 0)
    _gaussian(made, ELASTIC, p[:, 1], half)
    made.floats(DISPLACEMENT)[:] = p[:, 0] / 2
    made.table[:, NOISE] = elastic.words(torch.from_numpy(p[:, 2])).numpy()
    rows = (p[:, 0] != 0).nonzero()[0]
    here, moved, there = (made.reserve(len(rows)) for _ in range(3))
    made.paint("paint", rows, here)
    made.visit("noise", rows, 0, 0, 0, moved)
    made.visit("smooth across", rows, moved, 0, 0, there)
    made.visit("smooth down", rows, there, 0, 0, moved)
    made.visit("fetch", rows, here, moved, 0, there)
    made.source[rows] = there


WRITE: dict[Operation, Callable[[PassPlan, np.ndarray, Size], None]] = {
    flip: partial(_switch, FLIP),
    rotation: _rotation,
    elastic: _elastic,
    jitter: _jitter,
    gray: partial(_switch, GRAY),
    blur: _blur,
    solarize: _solarize,
}
