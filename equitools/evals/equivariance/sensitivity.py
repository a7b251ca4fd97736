"""Does one picture's representation still tell by which quarter turn the picture was turned?

Song et al. (2025, "CLeVER"), Table 6: a linear layer on frozen features tells 0, 90, 180 or 270
degrees (counter-clockwise) of single upright pictures; chance is 25 percent. The squares are turned
exactly, so no corner or blur gives the angle away, and nothing is flipped. Each train picture shows
one turn, uniform and seeded by its key; of each test picture all four are asked.

Beside each part stands what a dead one would show, of the upright test pictures:

    deviation, least_deviation   sd of a channel over pictures: mean and smallest over channels
    rank                         effective rank of the centered features (collapse.py)
    share                        variance of the part as a share of that of all features
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from torch import Tensor

from equitools.augment import rng
from equitools.core.errors import UsageError
from equitools.evals.classifiers import finetuning, protocol
from equitools.evals.classifiers.linear import HeadBank
from equitools.evals.classifiers.protocol import HeadTraining, spread
from equitools.features.maps import FrozenMaps, Vectors
from equitools.features.table import FeatureTable, Outcome, channels, part
from equitools.nn import collapse

TURNS = 4
LIMITS = {"val": "test_pictures", "train": "train_pictures"}


def evaluate(
    source: FrozenMaps,
    *,
    parts: list[str] | None = None,
    features: str = "auto",
    slicing: Literal["official", "per_block"] = "official",
    train_pictures: int | None = None,
    test_pictures: int | None = None,
    epochs: int = 100,
    lrs: list[float] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0],  # noqa: B006
    batch_size: int = 256,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    standardize: bool = False,
    finetune: bool = False,
    tuning_epochs: int = 200,
    tuning_lr: float = 0.001,
) -> Outcome:
    """Accuracy in percent of telling the turn from each part, `<part>/…`, for every seed and as
    mean ± sd, and how alive the part is.

    parts: all, ir, ef; null is all that the encoder has. features: auto, last, cls4, as a probe
    reads them; slicing: of the parts, as there. train_pictures, test_pictures: at most. The rest
    is the head's, as in the linear probe: the rate is chosen on a held-out part of train.
    finetune: also train the whole network (`finetune/<part>/…`; SGD, tuning_epochs, tuning_lr for
    256 pictures), with new turns in every epoch; a killed one goes on after its last saved epoch.
    """
    if source.vectors is None:
        raise UsageError("sensitivity needs an encoder that gives one vector for a picture")
    vectors = source.vectors(features)
    names = (["all", "ir", "ef"] if vectors.split else ["all"]) if parts is None else parts
    if not names:
        raise UsageError("perturb.tests.sensitivity.parts is empty; say null for all")
    train = turned(source, vectors, "train", train_pictures, every=False)
    test = turned(source, vectors, "val", test_pictures, every=True)

    plan = HeadTraining(epochs, lrs, batch_size, seeds, standardize=standardize)
    outcome = protocol.train(train, test, names, slicing, HeadBank, plan)
    for name in names:
        outcome.scores[f"{name}/chance"] = 100 / TURNS
        outcome.scores |= {f"{name}/{k}": v for k, v in alive(test, name, slicing).items()}
    if finetune:
        recipe = replace(finetuning.RECIPES["paper"], epochs=tuning_epochs, lr=tuning_lr)
        limits = (train_pictures, test_pictures)
        for name in names:
            outcome.scores |= tuned(
                source, vectors, name, slicing, recipe, batch_size, seeds, limits, len(train.keys)
            )
        outcome.facts["finetune"] = asdict(recipe)
    outcome.facts |= {
        "head": "one linear layer, weight N(0, 0.01), bias 0",
        "optimizer": "SGD momentum 0.9, no decay, cosine per epoch to 0",
        "features": vectors.layers,
        "slicing": slicing,
        "elements": "quarter turns of the square, exact, counter-clockwise; one a train picture,"
        " seeded by its key, all four of each test picture; no flips",
        "train_pictures": len(train.labels),
        "test_pictures": len(test.labels) // TURNS,
    }
    outcome.heads = {}
    return outcome


def passes(knobs: dict[str, Any], split: int | None) -> int:
    """How often every picture is read in all: for a progress display."""
    if not knobs["finetune"]:
        return 1
    parts = knobs["parts"] or (["all", "ir", "ef"] if split else ["all"])
    return 1 + len(parts) * len(knobs["seeds"]) * knobs["tuning_epochs"]


def tuned(
    source: FrozenMaps,
    vectors: Vectors,
    name: str,
    slicing: str,
    recipe: finetuning.Recipe,
    batch: int,
    seeds: Sequence[int],
    limits: tuple[int | None, int | None],
    count: int,
) -> dict[str, float]:
    """The scores of whole networks that are trained on `count` pictures to tell the turn from a
    part, by seed."""
    assert vectors.copy is not None
    assert vectors.normalized is not None
    normalized = vectors.normalized
    chosen = channels(vectors.blocks, vectors.width, vectors.split, name, slicing)
    steps = finetuning.steps_of(count, batch)
    runs: dict[str, dict[str, float]] = {}
    for seed in seeds:

        def train(epoch: int, seed: int = seed) -> finetuning.Batches:
            draw = torch.Generator().manual_seed(seed * 100_003 + epoch)
            order = torch.randperm(count, generator=draw).tolist()
            for pixels, keyed in source.pictures("train", limits[0], batch, order):
                (turns,) = _turns(keyed, source.seed, False, seed, epoch)
                yield normalized(rotated(pixels, turns)), turns.to(pixels.device)

        def test() -> finetuning.Batches:
            for pixels, keyed in source.pictures("val", limits[1], source.batch_size):
                for turns in _turns(keyed, source.seed, True):
                    yield normalized(rotated(pixels, turns)), turns.to(pixels.device)

        network = finetuning.Classifier(vectors.copy(), vectors.layers, chosen, TURNS, seed)
        matters = (seed, slicing, asdict(recipe), batch, limits, source.seed)
        resume = source.resume(f"{name}-seed{seed}", *matters) if source.resume else None
        runs[f"seed{seed}"] = finetuning.fit(
            network.to(vectors.device),
            train,
            test,
            recipe,
            steps=steps,
            batch_size=batch,
            seed=seed,
            resume=resume,
        )
    return spread(runs, f"finetune/{name}")


def turned(
    source: FrozenMaps, vectors: Vectors, split: str, limit: int | None, *, every: bool
) -> FeatureTable:
    """Vectors of a split's pictures, each at one turn or (`every`) at all four; labels say which.

    Rows are in the order of pictures, all turns of one picture together.
    """
    width, times = vectors.blocks * vectors.width, TURNS if every else 1

    def rows_of(pixels: Tensor, keyed: Sequence[str]) -> Tensor:
        turns = _turns(keyed, source.seed, every)
        return torch.cat([vectors.of(rotated(pixels, turn)) for turn in turns], dim=1)

    what = ["turns", vectors.layers, source.seed, every]
    rows, names = source.table(split, limit, what, times * width, rows_of)
    labels = torch.stack(list(_turns(names, source.seed, every)), dim=1).flatten()
    return FeatureTable(
        rows.view(-1, width),
        labels,
        [name for name in names for _ in range(times)],
        TURNS,
        blocks=vectors.blocks,
        width=vectors.width,
        split=vectors.split,
    )


def _turns(names: Sequence[str], seed: int, every: bool, *also: int) -> Iterator[Tensor]:
    """All four turns for every name, or one for each, drawn from (seed, also, name)."""
    if every:
        yield from (torch.full((len(names),), k) for k in range(TURNS))
        return
    drawn = [float(rng.uniforms(seed, "sensitivity", *also, name)[0, 0]) for name in names]
    yield (TURNS * torch.tensor(drawn, dtype=torch.float64)).long()


def rotated(pixels: Tensor, turns: Tensor) -> Tensor:
    """Square pictures b c h h, each by its quarter turns (b), counter-clockwise; exact."""
    views = pixels.clone()
    for k in range(1, TURNS):
        chosen = (turns == k).to(pixels.device)
        views[chosen] = torch.rot90(pixels[chosen], k, (2, 3))
    return views


def alive(table: FeatureTable, name: str, slicing: str) -> dict[str, float]:
    """How much a part's features differ between the upright pictures of a table."""
    upright = table.labels == 0
    centered = table.features[upright].double()
    centered = centered - centered.mean(0)
    chosen = centered[:, part(table, name, slicing, index=True)]
    deviation = chosen.square().mean(0).sqrt()
    total = float(centered.square().sum())
    return {
        "deviation": float(deviation.mean()),
        "least_deviation": float(deviation.min()),
        "rank": collapse.effective_rank(chosen),
        "share": 100 * float(chosen.square().sum()) / total if total else 0.0,
    }
