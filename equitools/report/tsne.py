"""Classes in feature space: measured, and drawn with t-SNE."""

from equitools.report.describe import method
from equitools.report.documents import Documents, Where, home, required
from equitools.report.formats.tables import Format, render, with_picture


def tsne(
    documents: Documents,
    where: Where,
    *,
    split: str = "val",
    classes: int = 20,
    limit: int = 1000,
    perplexity: float = 30.0,
    components: int = 50,
    seed: int = 0,
    format: Format = "md",
) -> str:
    """Classes in the features that equi-probe embed wrote, measured there and drawn.

    split: train or val. classes: so many at random; limit: points in all; seed: of both and of
    t-SNE. perplexity, components: of t-SNE and of the principal components before it.
    """
    from equitools.evals.embedding import tsne as clouds
    from equitools.evals.embedding.embed import read
    from equitools.report.formats import figures

    panels, rows = [], []
    for document in required(documents):
        features, labels = read(document, split)
        cloud = clouds.project(
            features, labels, classes, limit, seed, perplexity=perplexity, components=components
        )
        panels.append((method(document), cloud.plane, cloud.labels.numpy()))
        scores = [f"{cloud.scores[key]:.3f}" for key in clouds.NAMES]
        rows.append([method(document), len(cloud.labels.unique()), *cloud.features.shape, *scores])
    picture = figures.scatter(panels, where(home(documents[0], "embeddings")) / "tsne.png")
    text = render(["method", "classes", "points", "dims", *clouds.NAMES], rows, format)
    return with_picture(text, picture, format)
