"""Word `knn`: weighted nearest neighbors on frozen features, so that no training adds noise."""

from collections.abc import Sequence

from equitools.features.neighbors import capped, knn
from equitools.features.table import FeatureTable, Outcome, part


def evaluate(
    train: FeatureTable,
    test: FeatureTable,
    parts: Sequence[str],
    slicing: str,
    *,
    k: list[int] = [10, 20, 100, 200],  # noqa: B006
    temperature: list[float] = [0.07],  # noqa: B006
) -> Outcome:
    """Weighted k-nearest-neighbor accuracy of each part of the features, for every k and T.

    k: numbers of neighbors, capped at the number of training samples. temperature: of the votes.
    """
    scores: dict[str, float] = {}
    for name in parts:
        vectors = [part(table, name, slicing) for table in (train, test)]
        values = knn(
            vectors[0], train.labels, vectors[1], test.labels, ks=k, temperature=temperature
        )
        scores |= {f"{name}/{key}": value for key, value in values.items()}
    facts = {
        "head": "none; L2-normalized features, votes exp(s/T) of the k nearest, fp32",
        "k": capped(k, len(train.labels)),
        "temperature": list(temperature),
        "selection": "none",
    }
    return Outcome(scores, facts=facts)
