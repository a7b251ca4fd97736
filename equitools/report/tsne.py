"""Classes in feature space: measured, and drawn with t-SNE."""

from __future__ import annotations

from equitools.report.describe import method
from equitools.report.documents import Documents, Where, home
from equitools.report.formats import tables
from equitools.report.formats.tables import Format, with_picture


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
    """Draw tsne.png of the embeddings of the documents, and measure them in feature space.

    split: train or val. classes: so many at random; limit: points in all; seed: of both and of
    t-SNE. perplexity, components: of t-SNE and of the principal components before it.
    """
    from equitools.evals.embedding.embed import read
    from equitools.evals.embedding.tsne import NAMES, look
    from equitools.report.formats import figures

    panels, rows = [], []
    for document in documents:
        name, found = method(document), (*read(document, split), classes, limit, seed)
        cloud = look(*found, perplexity=perplexity, components=components)
        panels.append((name, cloud.plane, cloud.labels.numpy()))
        scores = [f"{cloud.scores[key]:.3f}" for key in NAMES]
        rows.append([name, len(cloud.labels.unique()), *cloud.features.shape, *scores])
    drawn = figures.scatter(panels, where(home(documents[0], "embeddings")) / "tsne.png")
    text = tables.render(["method", "classes", "points", "dims", *NAMES], rows, format)
    return with_picture(text, drawn, format)
