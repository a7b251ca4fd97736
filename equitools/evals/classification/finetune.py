"""Accuracy of whole networks trained on the labels of other data, or on a few labels.

The feature is that of the linear probe (CLS of the last four blocks of a ViT), and gradients flow
through all of it; pictures are cropped and flipped at random, anew in every epoch. Recipes stand in
`finetune`. `top1` is after the last epoch; `best/top1` of the best epoch on the test data, as Song
et al. (2025, "CLeVER") and much of the literature print it. Every network is saved as it is after
its last epoch; a run that was killed goes on after its last saved epoch.
"""

from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any, Literal

from equitools.core.errors import UsageError
from equitools.evals.classification.labeled import Labeled
from equitools.evals.classifiers import finetuning
from equitools.evals.classifiers.protocol import spread
from equitools.features.table import Outcome


def evaluate(
    source: Labeled,
    *,
    recipe: Literal["paper", "modern"] = "paper",
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int = 256,
    weight_decay: float | None = None,
    warmup: int | None = None,
    layer_decay: float | None = None,
    smoothing: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    drop_path: float | None = None,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
) -> Outcome:
    """Accuracy in percent of a fine-tuned network for each part of its features, every seed, and as
    mean ± sd; macro is the mean over classes.

    recipe: paper or modern; what is null is the recipe's. lr: base rate, per 256 (paper) or 512
    (modern) images. warmup: in epochs, of modern. layer_decay: factor of the rate for each layer
    below. smoothing, mixup, cutmix, drop_path: regularization. seeds: of the head, the order and
    the crops.
    """
    given = {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "warmup": warmup}
    given |= {"layer_decay": layer_decay, "smoothing": smoothing, "drop_path": drop_path}
    given |= {"mixup": mixup, "cutmix": cutmix}
    chosen = _chosen(recipe, given)
    count = len(source.rows["train"])
    batch = min(batch_size, count)
    outcome = Outcome({})
    with source.progress(
        count * chosen.epochs * len(seeds) * len(source.parts), "fine-tuning", "picture"
    ) as bar:
        for name in source.parts:
            runs: dict[str, dict[str, float]] = {}
            for seed in seeds:
                network = source.network(name, seed, chosen.drop_path)
                runs[f"seed{seed}"] = finetuning.fit(
                    network,
                    partial(source.train_batches, batch, seed),
                    source.test_batches,
                    chosen,
                    steps=finetuning.steps_of(count, batch),
                    batch_size=batch,
                    seed=seed,
                    progress=bar.advance,
                    resume=source.resume_point(name, seed, asdict(chosen), batch),
                )
                entries, head = source.keep_network(name, seed, network)
                outcome.files |= entries
                outcome.heads |= head
            outcome.scores |= spread(runs, name)
    source.forget_runs()
    outcome.facts = {
        "head": "one linear layer, weight N(0, 0.01), bias 0; the whole network is trained",
        "recipe": asdict(chosen),
        "batch_size": batch,
        "effective_lr": chosen.lr * batch / chosen.per,
        "crops": "random, 8 to 100 % of the area, bilinear, flipped half of the time",
        "selection": "'top1' is the last epoch; 'best/…' is the epoch of the best top-1 on the test"
        " split",
        "seeds": list(seeds),
        **source.facts(),
    }
    return outcome


def check(settings: dict[str, Any]) -> None:
    """UsageError for a recipe that cannot be, before any picture is looked at."""
    if settings["batch_size"] < 1 or not settings["seeds"]:
        raise UsageError("transfer.batch_size is at least 1, and transfer.seeds lists one or more")
    known = [field.name for field in fields(finetuning.Recipe)]
    _chosen(settings["recipe"], {key: settings[key] for key in known if key in settings})


def _chosen(recipe: str, given: dict[str, Any]) -> finetuning.Recipe:
    """The recipe of a name with what is given in place of its own."""
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return replace(finetuning.RECIPES[recipe], **changes)
