"""Do classes form clusters? Numbers in feature space, and a map of the plane to look at.

t-SNE (van der Maaten & Hinton, 2008) of L2-normalized features, reduced to 50 principal components
first. Distances on such a map are no evidence, so what is compared is measured where the features
live, after normalization:

    silhouette      mean of (b - a) / max(a, b): cosine distance to the nearest other class and to
                    one's own (Rousseeuw, 1987); 1 is apart, 0 overlaps
    purity          share of the 20 nearest by cosine, oneself left out, that have one's class
    davies_bouldin  mean over classes of the worst (s_i + s_j) / d_ij (1979); lower is better

SER's Figures 4 and 5 show 20 random classes; perplexity and the rest are scikit-learn's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from equitools.core.errors import DataError, EquiError, NumericalError, UsageError

NEIGHBORS = 20
NAMES = ("silhouette", "purity", "davies_bouldin")


@dataclass
class Cloud:
    """Points of some classes: unit features n d (fp32), labels n, what is measured on them, and
    their places n 2 on the map."""

    features: Tensor
    labels: Tensor
    scores: dict[str, float]
    plane: np.ndarray


def project(
    features: Tensor,
    labels: Tensor,
    classes: int,
    limit: int,
    seed: int,
    *,
    perplexity: float,
    components: int,
) -> Cloud:
    """Some classes of features n d with labels n, measured, and where t-SNE puts them."""
    rows = choose(labels, classes, limit, seed)
    unit, labels = normalize(features[rows].float(), dim=1), labels[rows]
    scores = measure(unit, labels)
    plane = embed(unit, perplexity=perplexity, components=components, seed=seed)
    return Cloud(unit, labels, scores, plane)


def choose(labels: Tensor, classes: int, limit: int, seed: int) -> Tensor:
    """Rows, in order, of `classes` random classes with at most limit // classes samples of each.

    Samples without a label (-1) are left out. DataError with fewer than two classes.
    """
    if classes < 2 or limit < 2 * classes:
        raise UsageError("tsne needs classes of at least 2, and a limit of two points for each")
    draw = torch.Generator().manual_seed(seed)
    known = labels[labels >= 0].unique()
    if len(known) < 2:
        raise DataError(f"tsne compares classes, and the features have {len(known)}")
    chosen = known[torch.randperm(len(known), generator=draw)[:classes]].sort().values
    each = limit // len(chosen)
    rows = []
    for label in chosen:
        mine = (labels == label).nonzero().flatten()
        rows.append(mine[torch.randperm(len(mine), generator=draw)[:each]])
    return torch.cat(rows).sort().values


def measure(unit: Tensor, labels: Tensor) -> dict[str, float]:
    """Silhouette, purity and Davies-Bouldin index of unit vectors n d with labels n.

    NumericalError where they are not finite; EquiError without scikit-learn.
    """
    if not unit.isfinite().all():
        raise NumericalError("features are not finite; the encoder has diverged")
    _sklearn()
    from sklearn.metrics import davies_bouldin_score, silhouette_score

    vectors, classes = unit.double().numpy(), labels.numpy()
    return {
        "silhouette": float(silhouette_score(vectors, classes, metric="cosine")),
        "purity": purity(unit, labels),
        "davies_bouldin": float(davies_bouldin_score(vectors, classes)),
    }


def purity(unit: Tensor, labels: Tensor, k: int = NEIGHBORS) -> float:
    """Mean share of the k nearest (of unit vectors n d, oneself left out) with one's label n."""
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-torch.inf)
    near = similarity.topk(min(k, len(unit) - 1), dim=1).indices
    return float((labels[near] == labels[:, None]).double().mean())


def embed(unit: Tensor, *, perplexity: float, components: int, seed: int) -> np.ndarray:
    """The map's points n 2 of unit vectors n d; the same for the same vectors and seed.

    Raises UsageError for a perplexity that so few points do not have.
    """
    _sklearn()
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count, width = unit.shape
    if not 0 < perplexity < count:
        raise UsageError(f"perplexity is {perplexity:g}; with {count} points it is below {count}")
    vectors = unit.double().numpy()
    if 0 < components < min(count, width):
        vectors = PCA(components, svd_solver="full").fit_transform(vectors)
    plane = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    return plane.fit_transform(vectors)


def _sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise EquiError("t-SNE needs scikit-learn: pip install 'equitools[plots]'") from None
