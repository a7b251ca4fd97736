"""One object cut from its surroundings: normalized cut of the patches of a picture.

    W_ij = 1 if cos(k_i, k_j) > τ else 10⁻⁵,   D = diag(W 1),   (D - W) y = λ D y, second smallest λ

(Shi & Malik, 2000; Wang et al., 2022, "TokenCut", with τ = 0.2 and keys k.) The patches where y is
above its mean, with the sign that puts the largest |y_i|, the seed, among them, are cut down to the
4-connected piece that holds the seed. Patches that are alike to the same others have one y, so
that the largest may be there twice: the first in reading order is the seed.

With z = D^½ y this is the second largest eigenvector of M = D^-½ W D^-½, whose largest, D^½ 1, is
known. Lanczos finds the second in a few products with M where it stands apart from the third. A
residual r and a gap g leave an error of r / g in it (Davis & Kahan, 1970), so Lanczos goes on until
that is small and takes no patch across the mean; where it does not come to that, all of M is
solved.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from equitools.core.errors import EquiError, NumericalError

WEAK = 1e-5  # weight between patches that are not alike
ERROR = 1e-7  # of a unit vector, at most, where Lanczos may stop
STEPS, FIRST, EVERY = 80, 12, 3  # of Lanczos at most; where, and how often, to look how far it is
TIE = 1e-6  # relative, between the largest |y_i|
TINY, ROUNDING = 1e-9, 1e-14  # below them, a new direction and a residual are rounding


@dataclass
class Cut:
    """mask h w of one object; y h w (its sign puts the seed in the mask); seed, a patch's number.

    sure: whether Lanczos found y; else eigenvalues cluster, and y is what a dense solver gives.
    alike: the share of pairs of patches above tau; near 1 there is no border to find.
    """

    mask: np.ndarray
    y: np.ndarray
    seed: int
    sure: bool
    alike: float


def cut(keys: Tensor, tau: float) -> Cut:
    """The object in keys d h w. Raises NumericalError for keys that are not finite."""
    weights = graph(keys.flatten(1).T, tau)
    y, sure = second_vector(weights)
    shape = (keys.shape[1], keys.shape[2])
    mask, y, seed = piece(y.reshape(shape))
    return Cut(mask, y, seed, sure, float((weights == 1).mean()))


def graph(vectors: Tensor, tau: float) -> np.ndarray:
    """W n n of vectors n d, float64."""
    unit = normalize(vectors.float(), dim=1)
    if not unit.isfinite().all():
        raise NumericalError("keys of the last block are not finite; the encoder has diverged")
    return torch.where(unit @ unit.T > tau, 1.0, WEAK).double().cpu().numpy()


def second_vector(weights: np.ndarray) -> tuple[np.ndarray, bool]:
    """y n of W n n (float64, symmetric), of any sign and length, and whether Lanczos found it."""
    y = lanczos(weights)
    return (dense(weights), False) if y is None else (y, True)


def dense(weights: np.ndarray) -> np.ndarray:
    """The same by LAPACK, as TokenCut has it: O(n³)."""
    _scipy()
    from scipy.linalg import eigh

    degrees = np.diag(weights.sum(axis=1))
    return eigh(degrees - weights, degrees, subset_by_index=[1, 1])[1][:, 0]


def lanczos(weights: np.ndarray) -> np.ndarray | None:
    """The same from the Krylov space of M without its first vector; None where that is too small.

    Every new vector is made orthogonal to all others, twice. A space that M maps into itself has
    each λ once, so another is begun beside it, where a second vector of it would be. The start is
    the same for all graphs of a size.
    """
    _scipy()
    from scipy.linalg.blas import dsymv

    columns = weights.T  # symmetric, so this is W in the order of LAPACK without a copy
    size = len(weights)
    degrees = dsymv(1.0, columns, np.ones(size))
    scale = 1 / np.sqrt(degrees)
    steps = min(STEPS, size - 2)
    basis = np.empty((steps + 2, size))
    basis[0] = np.sqrt(degrees / degrees.sum())
    draw = np.random.default_rng(0)
    basis[1] = beyond(draw.standard_normal(size), basis[:1])[0]
    band = np.zeros((steps + 1, steps + 1))
    spaces = 0  # that M maps into themselves
    for step in range(1, steps + 1):
        moved = scale * dsymv(1.0, columns, scale * basis[step])
        band[step - 1, step - 1] = basis[step] @ moved
        basis[step + 1], rest = beyond(moved, basis[: step + 1])
        if rest < TINY:
            spaces += 1
            basis[step + 1], rest = beyond(draw.standard_normal(size), basis[: step + 1])[0], 0.0
        band[step - 1, step] = band[step, step - 1] = rest
        if spaces == 2 or (not spaces and step >= FIRST and step % EVERY == 0):
            values, vectors = np.linalg.eigh(band[:step, :step])
            residual = rest * abs(vectors[-1, -1]) + ROUNDING
            gap = values[-1] - values[-2] if step > 1 else 0.0
            y = scale * (vectors[:, -1] @ basis[1 : step + 1])
            if residual < ERROR * gap and certain(y, scale, residual / gap):
                return y
            if spaces:
                return None
    return None


def beyond(vector: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, float]:
    """What a vector n has beyond an orthonormal basis k n, as a unit vector, and its length."""
    for _ in range(2):  # once leaves rounding
        vector = vector - (basis @ vector) @ basis
    length = float(np.linalg.norm(vector))
    return vector / max(length, TINY), length


def certain(y: np.ndarray, scale: np.ndarray, error: float) -> bool:
    """Is every patch of y = scale ∘ z on its side of the mean, if z is wrong by less than error?"""
    reach = error * (scale + np.linalg.norm(scale) / len(y))
    return bool((np.abs(y - y.mean()) > reach).all())


def piece(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The mask h w, y h w with the sign that puts the seed in it, and the seed's number."""
    _scipy()
    from scipy.ndimage import label

    far = np.abs(y)
    seed = int((far >= far.max() * (1 - TIE)).argmax())
    y = y * (1.0 if y.flat[seed] >= 0 else -1.0)
    pieces = label(y > y.mean())[0]
    return (pieces == pieces.flat[seed]) & (pieces > 0), y, seed


def _scipy() -> None:
    try:
        import scipy  # noqa: F401
    except ImportError:
        raise EquiError("saliency needs scipy: pip install 'equitools[transfer]'") from None
