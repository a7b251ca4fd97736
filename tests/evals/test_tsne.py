"""t-SNE beside numbers that are measured where the features live."""

import sys

import pytest
import torch
from asking import ask, make_chain, write
from equitools.stages import probe, report
from equitools.stages.cli import words
from equitools.stages.cli.program import Request
from PIL import Image
from torch.nn.functional import normalize

from equitools import manifest
from equitools.core.errors import DataError, EquiError, NumericalError, UsageError
from equitools.evals.embedding.tsne import choose, measure, project, purity

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
KNOBS = {"perplexity": 10.0, "components": 5}


def cloud(count, spread, classes=4, width=16, seed=0):
    """Unit vectors around random directions."""
    draw = torch.Generator().manual_seed(seed)
    centers = normalize(torch.randn(classes, width, generator=draw), dim=1)
    labels = torch.arange(count) % classes
    return centers[labels] + spread * torch.randn(count, width, generator=draw), labels


class Said(list):
    """A stdout that remembers."""

    write = list.append


def tell(*given, out):
    """What equi-report writes to stdout."""
    found = words.parse([str(word) for word in given], report.PROGRAM)
    document, documents = words.gather(found, report.PROGRAM, False)
    said = Said()
    report.run(Request(report.PROGRAM, document, documents, out, False, ["test"], said))
    return "".join(said)


def test_the_numbers_are_what_naive_loops_give():
    features, labels = cloud(40, 0.3)
    unit = normalize(features, dim=1)
    found = measure(unit, labels)
    distance = (1 - unit @ unit.T).double()
    silhouettes, shares = [], []
    for i in range(40):
        to = {int(c): distance[i, labels == c] for c in labels.unique()}
        own = to[int(labels[i])].sum() / (len(to[int(labels[i])]) - 1)
        other = min(to[c].mean() for c in to if c != int(labels[i]))
        silhouettes.append(float((other - own) / max(own, other)))
        near = sorted((j for j in range(40) if j != i), key=lambda j: distance[i, j])[:20]
        shares.append(sum(bool(labels[j] == labels[i]) for j in near) / 20)
    assert found["silhouette"] == pytest.approx(sum(silhouettes) / 40, abs=1e-6)
    assert found["purity"] == pytest.approx(sum(shares) / 40)
    middle = torch.stack([unit[labels == c].mean(0) for c in range(4)])
    width = [(unit[labels == c] - middle[c]).norm(dim=1).mean() for c in range(4)]
    worst = [
        max((width[i] + width[j]) / (middle[i] - middle[j]).norm() for j in range(4) if j != i)
        for i in range(4)
    ]
    assert found["davies_bouldin"] == pytest.approx(float(sum(worst)) / 4, rel=1e-5)


def test_clusters_and_noise_are_told_apart_in_the_numbers_and_on_the_map():
    apart, mixed = (project(*cloud(120, s), 4, 120, 0, **KNOBS) for s in (0.05, 5.0))
    assert apart.scores["silhouette"] > 0.8
    assert apart.scores["purity"] == 1
    assert abs(mixed.scores["silhouette"]) < 0.1
    assert mixed.scores["purity"] < 0.5
    assert apart.scores["davies_bouldin"] < 0.5 < mixed.scores["davies_bouldin"]
    for found, pure in ((apart, True), (mixed, False)):
        plane = torch.from_numpy(found.plane)
        near = torch.cdist(plane, plane).fill_diagonal_(torch.inf).argmin(1)
        same = (found.labels[near] == found.labels).float().mean()
        assert (same > 0.95) == pure


def test_one_is_not_ones_own_neighbor():
    unit = torch.eye(3)
    assert purity(unit, torch.tensor([0, 1, 2]), k=2) == 0


def test_the_same_features_give_the_same_map():
    first, second = (project(*cloud(60, 0.5), 4, 60, 3, **KNOBS) for _ in range(2))
    assert (first.plane == second.plane).all()
    assert first.scores == second.scores


def test_random_classes_have_as_many_points_each_and_unlabeled_samples_none():
    labels = torch.arange(200) % 10
    labels[:5] = -1
    rows = choose(labels, 4, 40, 0)
    counts = labels[rows].unique(return_counts=True)
    assert counts[1].tolist() == [10] * 4
    assert (counts[0] >= 0).all()
    assert torch.equal(choose(labels, 4, 40, 0), rows)
    assert not torch.equal(choose(labels, 4, 40, 1), rows)


def test_what_cannot_be_compared_is_refused():
    features, labels = cloud(40, 0.3)
    with pytest.raises(UsageError, match="perplexity"):
        project(features, labels, 4, 40, 0, perplexity=40.0, components=5)
    with pytest.raises(DataError, match="classes"):
        choose(torch.zeros(10, dtype=torch.long), 4, 40, 0)
    with pytest.raises(UsageError, match="limit"):
        choose(labels, 4, 5, 0)
    with pytest.raises(NumericalError):
        project(features / 0, labels, 4, 40, 0, **KNOBS)


def test_a_missing_extra_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(EquiError, match=r"scikit-learn: pip install 'equitools\[plots\]'"):
        project(*cloud(40, 0.3), 4, 40, 0, **KNOBS)


def test_embeddings_of_several_encoders_are_drawn_side_by_side(tmp_path):
    chain = make_chain(tmp_path)
    paths = []
    for name, more in (("vit", []), ("pixels", ["encoder=pixels"])):
        found = ask(probe.PROGRAM, chain, "embed", "workers=0", *more, out=tmp_path / name)
        paths.append(write(found, tmp_path / f"{name}.yaml"))
    given = ["tsne", *paths, "split=train", "perplexity=8"]
    said = tell(*given, out=tmp_path / "figure")
    assert said.splitlines()[0].split("|")[5:8] == [" silhouette ", " purity ", " davies_bouldin "]
    assert "raw pixels" in said
    assert said.splitlines()[-1] == str(tmp_path / "figure" / "tsne.png")
    assert (tmp_path / "figure" / "tsne.md").read_text() == said
    with Image.open(tmp_path / "figure" / "tsne.png") as picture:
        assert picture.width > 1.5 * picture.height, "two panels"
    drawn = (tmp_path / "figure" / "tsne.png").read_bytes()
    assert tell(*given, out=tmp_path / "figure") == said
    assert (tmp_path / "figure" / "tsne.png").read_bytes() == drawn
    document = manifest.load_file(chain)[0]
    with pytest.raises(DataError, match="equi-probe embed"):
        tell("tsne", write(document, tmp_path / "bare.yaml"), out=tmp_path / "figure")
