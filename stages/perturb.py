"""Robustness of what a probe has learned: the same head, changed test pictures."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

from equitools import frame, manifest
from equitools.errors import DataError, UsageError
from equitools.frame import Program, Request

# What may change without changing the scores.
NOT_IDENTITY = ("device", "workers", "extract_batch_size")


def settings_of(
    *,
    tests: dict = {},  # noqa: B006
    draws: int = 3,
    seed: int = 0,
    k: int = 20,
    limit: int | None = None,
    extract_batch_size: int = 256,
    device: str = "auto",
    workers: int = 2,
) -> None:
    """The knobs of `perturb`; the signature is the schema.

    tests: {grid: {...}, rotation: {...}, elastic: {...}} with each one's own knobs. draws: passes
    with other random parameters; seed: of them. k: neighbors, where there is no linear head.
    limit: so many test samples at most.
    """


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with every default written back, those of the tests too."""
    from equitools import names
    from equitools.evals import perturbed

    settings = names.knobs(settings_of, given, "perturb")
    if settings["draws"] < 1:
        raise UsageError(f"perturb.draws is {settings['draws']}; it is at least 1")
    settings["tests"] = {
        name: names.knobs(
            names.pick(perturbed.TESTS, name, "perturbation"), knobs or {}, f"perturb.tests.{name}"
        )
        for name, knobs in settings["tests"].items()
    }
    return settings


def columns(settings: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(test, column, what is done) of every column of every test."""
    from equitools.evals import perturbed

    found = [
        (test, name, column)
        for test, knobs in settings["tests"].items()
        for name, column in perturbed.TESTS[test](**knobs).items()
    ]
    if not found:
        raise UsageError("no perturbation is asked for; name one: grid, rotation, elastic")
    return found


def run(request: Request) -> dict[str, Any] | None:
    """Find encoder and judge, extract features of every changed test set, and compare."""
    settings = resolve(request.settings)
    tests = columns(settings)
    if request.plan:
        request.print_plan(manifest.dump({"perturb": settings}))
        return None
    from equitools import encoders, features, shards

    document = request.document
    probe = probe_of(document)
    index = shards.open_split(document, "val")
    encoder, label = encoders.find(
        document, probe["encoder"], seed=probe["encoder_seed"], pretrained=probe["pretrained"]
    )
    settings["device"] = encoders.pick_device(settings["device"])
    weights = features.fingerprint(encoder)
    judged = "linear head" if "probe.heads" in document["files"] else f"{settings['k']}-NN"
    matters = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    heads = document["files"].get("probe.heads", {}).get("digest")
    identity = manifest.identity("perturb", matters, probe, weights, index.digest, heads)
    out = request.out or request.choose_out(
        encoders.folder(document, probe["encoder"], f"perturb-{identity[:8]}")
    )
    if (done := frame.finished(out, identity)) is not None:
        request.say(f"{out} is finished already: this is its manifest")
        return done
    request.choose_out(out)
    frame.lock(out)
    judge = find_judge(document, encoder, probe, settings, out)
    scores = measure(encoder, index, judge, tests, probe, settings)
    facts = {
        "encoder": label,
        "weights": weights,
        "judge": f"{judged} of clean pictures, {probe['layers']}, slicing {probe['split']}",
        "transform": transforms(encoder, probe, tests),
        "metric": "micro accuracy in percent of all test samples, mean over the probe's seeds",
        "draws": settings["draws"],
        "test_samples": len(features.subset(len(index), settings["limit"])),
        "data": {"val": index.digest},
        **encoders.platform(settings["device"]),
    }
    known = document.get("scores", {})
    finished = {**document, "kind": "scores", "perturb": settings, "scores": {**known, **scores}}
    return request.record(finished, identity, **facts)


def probe_of(document: dict[str, Any]) -> dict[str, Any]:
    """The settings of the probe whose head or neighbors judge; DataError where there is none."""
    probe = document.get("probe") or {}
    needed = {"eval", "encoder", "encoder_seed", "pretrained", "parts", "split", "layers", "size"}
    needed |= {"crop_pct", "interpolation", "limit"}
    if probe and (missing := sorted(needed - probe.keys())):
        raise DataError(f"the document's probe section lacks {', '.join(missing)}; probe again")
    judged = probe and ("probe.heads" in document.get("files", {}) or probe["eval"] == "knn")
    if not judged:
        raise DataError(
            "nothing can judge the changed pictures: the document has no probe heads; run"
            " equi-probe linear (or knn) first, as in equi-probe linear | equi-perturb grid"
        )
    return probe


def find_judge(
    document: dict[str, Any], encoder: Any, probe: dict[str, Any], settings: dict[str, Any],
    out: Path,
) -> Any:  # fmt: skip
    """A function from a table of test features to {part/metric: percent}."""
    from equitools import checkpoint, features, preprocess, shards
    from equitools.evals import knn, perturbed

    if "probe.heads" in document["files"]:
        path = manifest.verify(document["files"]["probe.heads"], "probe.heads")
        return partial(perturbed.judge, heads=checkpoint.load_tensors(path), slicing=probe["split"])
    index = shards.open_split(document, "train")
    shape = {key: probe[key] for key in ("size", "crop_pct", "interpolation")}
    with frame.progress(len(index), "features of train", "image") as bar:
        train = features.extract(
            encoder, index, transform=preprocess.evaluation_transform(encoder, **shape),
            layers=probe["layers"], device=settings["device"], workers=settings["workers"],
            batch_size=settings["extract_batch_size"], limit=probe["limit"], cache=out,
            progress=bar.advance,
        )  # fmt: skip
    features.require_labels(train, "train")

    def neighbors(table: Any) -> dict[str, float]:
        knobs = {"k": [settings["k"]], "temperature": probe["temperature"][:1]}
        found = knn(train, table, probe["parts"], probe["split"], **knobs).scores
        return {f"{key.split('/')[0]}/{key.split('/')[-1]}": v for key, v in found.items()}

    return neighbors


def measure(
    encoder: Any, index: Any, judge: Any, tests: list[tuple[str, str, Any]],
    probe: dict[str, Any], settings: dict[str, Any],
) -> dict[str, float]:  # fmt: skip
    """Every score: `perturb/<test>/<column>/<part>/draw<k>/<metric>`, and mean and sd of draws."""
    from equitools import features, preprocess
    from equitools.evals import perturbed

    count = len(features.subset(len(index), settings["limit"]))
    passes = sum(settings["draws"] if column.operations else 1 for _, _, column in tests)
    scores: dict[str, float] = {}
    with frame.progress(count * passes, "changed pictures", "image") as bar:
        for test, name, column in tests:
            transform = preprocess.evaluation_transform(
                encoder, size=probe["size"], crop_pct=probe["crop_pct"],
                interpolation=column.interpolation,
            )  # fmt: skip
            draws = []
            for draw in range(settings["draws"] if column.operations else 1):
                table = features.extract(
                    encoder, index, transform=transform, layers=probe["layers"],
                    device=settings["device"], batch_size=settings["extract_batch_size"],
                    workers=settings["workers"], limit=settings["limit"], progress=bar.advance,
                    perturb=perturbed.perturbation(
                        column, transform.size, settings["seed"], draw
                    ),
                )  # fmt: skip
                features.require_labels(table, "val")
                draws.append(judge(table))
            scores |= summary(f"perturb/{test}/{name}", draws)
    return scores


def summary(prefix: str, draws: list[dict[str, float]]) -> dict[str, float]:
    """Each draw's scores, their mean, and their sample standard deviation (0 for one draw)."""
    scores: dict[str, float] = {}
    for key in draws[0]:
        part, metric = key.split("/")
        values = [draw[key] for draw in draws]
        scores |= {f"{prefix}/{part}/draw{i}/{metric}": v for i, v in enumerate(values)}
        scores[f"{prefix}/{part}/mean/{metric}"] = statistics.fmean(values)
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        scores[f"{prefix}/{part}/sd/{metric}"] = sd
    return scores


def transforms(
    encoder: Any, probe: dict[str, Any], tests: list[tuple[str, str, Any]]
) -> dict[str, Any]:
    """What was done to the pictures of each column, in words and numbers."""
    from equitools import preprocess
    from equitools.evals import perturbed

    shape = {key: probe[key] for key in ("size", "crop_pct")}
    found = {}
    for test, name, column in tests:
        plain = preprocess.evaluation_transform(
            encoder, interpolation=column.interpolation, **shape
        )
        changed = perturbed.scaled(column.operations, plain.size)
        found[f"{test}/{name}"] = {"picture": plain.describe(), **changed}
    return found


PROGRAM = Program(
    name="perturb",
    section="perturb",
    reads=("checkpoint", "scores"),
    folders=("perturb",),
    run=run,
    check=resolve,
    help="""Judge changed test pictures with the head (or neighbors) of a probe.

    grid is the Orig / CJ / CJ+Flip / CJ+Ro / CJ+Ro(180) / CJ+Ro+ET comparison; rotation and elastic
    sweep the strength of one change. Every picture's change depends on its key and the seed
    alone, so that all encoders see the same pictures.
    """,
)
main = frame.command(PROGRAM)
