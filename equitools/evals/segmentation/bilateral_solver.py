"""The bilateral solver: a mask made smooth within surfaces of the same color, and sharp between.

    minimize  λ/2 Σ_ij Ŵ_ij (x_i - x_j)² + Σ_i c_i (x_i - t_i)²,   Ŵ a bistochastic bilateral filter

(Barron & Poole, 2016, "The Fast Bilateral Solver".) Pixels are splatted (S) onto the cells of a
grid over place, luma and chroma that they occupy, where it becomes

    (λ (D_m - D_n B̄ D_n) + diag(S c)) y = S (c ∘ t),   x = Sᵀ y

with B̄ the [1 2 1] blur of each of the five dimensions, added up, and diagonal D_n, D_m that make
D_n B̄ D_n 1 = D_m 1 = S 1.
"""

from typing import Any

import numpy as np

from equitools.core.errors import EquiError

LAMBDA = 256.0
CONFIDENCE = 0.999  # c, of every pixel of a mask, as TokenCut has it
ROUNDS = 10  # of making the blur bistochastic
TOLERANCE = 1e-5  # of conjugate gradients, relative


def solve(
    image: np.ndarray,
    target: np.ndarray,
    *,
    spatial: float = 16,
    luma: float = 16,
    chroma: float = 8,
    steps: int = 25,
) -> np.ndarray:
    """x h w, about 0 to 1, of an image uint8 h w 3 and a target h w in [0, 1].

    spatial (pixels), luma, chroma (of 255): sides of the grid's cells. steps: of conjugate
    gradients at most.
    """
    sparse, cg = _scipy()
    splat, blur = grid(image, spatial=spatial, luma=luma, chroma=chroma)
    count = splat @ np.ones(target.size)
    inner = bistochastic(blur, count)
    outer = inner * (blur @ inner)
    scaled = sparse.diags_array(inner) @ blur @ sparse.diags_array(inner)
    weight = CONFIDENCE * count
    matrix = (LAMBDA * (sparse.diags_array(outer) - scaled) + sparse.diags_array(weight)).tocsr()
    wanted = CONFIDENCE * (splat @ target.ravel().astype(np.float64))
    near = sparse.diags_array(1 / matrix.diagonal())
    solution, _ = cg(matrix, wanted, x0=wanted / weight, M=near, rtol=TOLERANCE, maxiter=steps)
    return (splat.T @ solution).reshape(target.shape)


def grid(image: np.ndarray, *, spatial: float, luma: float, chroma: float) -> tuple[Any, Any]:
    """S m n, which adds pixels up in the cells that they occupy, and B̄ m m, sparse."""
    sparse, _ = _scipy()
    cells = coordinates(image, spatial, luma, chroma)
    sides = cells.max(0) + 3  # a free cell at both ends, so that no neighbor is in another row
    strides = np.cumprod([1, *sides[:-1]])
    occupied, cell = np.unique((cells + 1) @ strides, return_inverse=True)
    pixels, size = cells.shape[0], len(occupied)
    splat = sparse.csr_array((np.ones(pixels), (cell, np.arange(pixels))), (size, pixels))
    blur = 2.0 * len(strides) * sparse.eye_array(size, format="csr")
    for stride in strides:
        place = np.searchsorted(occupied, occupied + stride).clip(max=size - 1)
        left = np.flatnonzero(occupied[place] == occupied + stride)
        step = sparse.csr_array((np.ones(len(left)), (left, place[left])), (size, size))
        blur = blur + step + step.T
    return splat, blur


def coordinates(image: np.ndarray, spatial: float, luma: float, chroma: float) -> np.ndarray:
    """The cells n 5 of the pixels of an image uint8 h w 3: x, y, luma and two of chroma (those of
    JPEG)."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    red, green, blue = (image[..., i].astype(np.float64) for i in range(3))
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    bluish, reddish = 128 + (blue - bright) / 1.772, 128 + (red - bright) / 1.402
    scales = (spatial, spatial, luma, chroma, chroma)
    planes = zip((x, y, bright, bluish, reddish), scales, strict=True)
    return np.stack([(plane // scale).ravel().astype(np.int64) for plane, scale in planes], axis=1)


def bistochastic(blur: Any, count: np.ndarray) -> np.ndarray:
    """D_n's diagonal m, for which n ∘ B̄ n is close to the number of pixels in each cell."""
    n = np.ones(len(count))
    for _ in range(ROUNDS):
        n = np.sqrt(n * count / (blur @ n))
    return n


def _scipy() -> tuple[Any, Any]:
    try:
        from scipy import sparse
        from scipy.sparse.linalg import cg
    except ImportError:
        raise EquiError(
            "the bilateral solver needs scipy: pip install 'equitools[transfer]'"
        ) from None
    return sparse, cg
