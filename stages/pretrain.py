"""Pretrain a backbone with one objective and any equivariance terms; shards in, checkpoint out.

Example: equi-pretrain dino clever vit-small caug e200 seed=1 -o runs/clever < shards.yaml
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equitools import manifest
from equitools.core.errors import DataError, Interrupted, NumericalError, UsageError
from equitools.manifest import run_folder

from .cli import exits
from .cli.command import command
from .cli.program import Program, Request
from .cli.progress import progress

if TYPE_CHECKING:
    from equitools.data.shards.index import ShardIndex
    from equitools.training.length import Length

LAYERS = ("objective", "equivariance", "backbone", "views", "schedule")


def run(request: Request) -> dict[str, Any] | None:
    """Check the recipe, find the folder, train or resume, and describe what came out."""
    from equitools.core import devices, distributed, processes
    from equitools.data.shards.index import open_split
    from equitools.training import estimate, recipe
    from equitools.training.length import asked_epochs, durations, run_length

    settings = recipe.resolve(request.settings)
    if request.plan:
        request.print_plan(estimate.describe(settings, request.document))
        return None
    if "shards.train" not in request.document.get("files", {}):
        raise DataError(
            "pretraining needs shards with a train split; pipe them in:"
            " equi-shard SOURCE -o DIR | equi-pretrain …"
        )
    device = devices.pick_device(settings["device"])
    settings |= {
        "device": device,
        "precision": devices.pick_precision(settings["precision"], device),
    }
    index = open_split(request.document, "train")
    length = run_length(settings, len(index))
    fractions = durations(settings, asked_epochs(settings, length))
    identity = recipe.identity(settings, request.document["files"]["shards.train"]["digest"])
    out = request.choose_out(Path("runs") / identity[:12])
    if (done := run_folder.finished(out, identity)) is not None:
        request.say(f"{out} is finished already: this is its manifest")
        return done
    refuse_other(out, identity)
    if (count := process_count(settings)) > 1 and processes.launched() == 1:
        return in_ranks(request, settings, out, count)
    if distributed.is_main():
        run_folder.lock(out)
    facts = train(request, settings, index, length, fractions, identity, out)
    if not distributed.is_main():
        return None
    return describe(request, settings, facts, identity, out, length)


def refuse_other(out: Path, identity: str) -> None:
    """Never overwrite a finished run with another."""
    path = out / "manifest.yaml"
    if path.is_file() and manifest.last_record(manifest.load_file(path)[0]).get("id") != identity:
        raise UsageError(
            f"{out} holds another finished run: recipe, data or version of equitools differ;"
            " choose another folder with -o, or remove it"
        )


def process_count(settings: dict[str, Any]) -> int:
    """How many processes to start here: what the recipe says, else one for each local GPU."""
    import torch

    if settings["processes"] is not None:
        return settings["processes"]
    return torch.cuda.device_count() if settings["device"] == "cuda" else 1


def in_ranks(
    request: Request, settings: dict[str, Any], out: Path, count: int
) -> dict[str, Any] | None:
    """Run this stage once a device and return the manifest that rank 0 prints."""
    from .cli import launch

    document = request.document | {"recipe": settings}
    words = ["-", "-o", str(out)]
    code, answer = launch.run("equitools.stages.pretrain", words, manifest.dump(document), count)
    if code == Interrupted.code:
        raise Interrupted(f"saved in {out}; run the same command again to go on")
    if code:
        exits.leave(code)
    document = manifest.load(answer, "rank 0")[0]
    document["history"][-1]["argv"] = request.argv
    return document


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGUSR1, so that the loop can save and leave between two steps."""
    received: list[int] = []
    with exits.handling(lambda n, stack: received.append(n), signal.SIGTERM, signal.SIGUSR1):
        yield received


def train(
    request: Request,
    settings: dict[str, Any],
    index: ShardIndex,
    length: Length,
    fractions: dict[str, float],
    identity: str,
    out: Path,
) -> dict[str, Any]:
    """The loop: batch → views → both networks → terms → step → target network → a JSON line."""
    import torch

    from equitools import augment
    from equitools.core import distributed
    from equitools.nn import ema, serialization, sync_batchnorm
    from equitools.training import checkpoint, learner, loader, metrics, optimization, watch

    # --- Build ---
    accelerator = optimization.accelerate(settings, out)
    device, main = accelerator.device, distributed.is_main()
    torch.manual_seed(settings["seed"])
    model = learner.build(settings)
    checkpoint.exported(settings, model, model.encoder if model.needs_target else None)
    plan = augment.plan(settings["views"])
    if distributed.world_size() > 1:
        model = sync_batchnorm.synchronize(model, device)
    target_network = ema.copy(model.encoder).to(device) if model.needs_target else None
    model.to(device)
    optimizer = optimization.make_optimizer(settings, model)

    # --- Resume ---
    start, reported = 0, {}
    if (state := checkpoint.restore(out, identity, model, target_network)) is not None:
        cursor, moments = state
        start, reported = cursor["step"], cursor["noted"]
        serialization.load_optimizer(optimizer, moments)
        request.say(f"resumed at step {start}")
    wrapped = accelerator.prepare_model(model)
    if settings["compile"]:
        wrapped = torch.compile(wrapped)
    batches = loader.run_batches(settings, index, plan, device, start=start, end=length.steps)
    log = metrics.MetricsLog(out / "metrics.jsonl", start) if main else None
    observer = watch.Watch(settings, length, model, reported, start)

    def save(step: int) -> None:
        distributed.barrier()
        if main:
            cursor = {"step": step, "identity": identity, "noted": reported}
            checkpoint.save(out, cursor, model, target_network, optimizer)

    last: dict[str, Any] = {}
    saved = start
    with (
        stop_requests() as stops,
        closing(batches),
        progress(length.steps, "pretrain", "step", start) as bar,
    ):
        for step in range(start, length.steps):
            # --- Step: micro-batches, update, target network ---
            if 0 < step == length.prelude:
                optimizer = optimization.make_optimizer(settings, model)  # fresh moments
            done, epoch, seen = length.done(step), length.epoch(step), step + 1
            rate = optimization.set_rates(
                optimizer, settings, length, fractions["warmup_epochs"], step
            )
            checkpoint.seed_step(settings["seed"], step, distributed.rank())
            optimizer.zero_grad(set_to_none=True)
            sums = optimization.Sums()
            for micro in range(settings["accumulate"]):
                views, target = plan.finish(observer.next_batch(batches), device), None
                if target_network is not None:
                    with accelerator.autocast():
                        target = model.target_features(target_network, views)
                final = micro == settings["accumulate"] - 1
                with optimization.sync_only_last(accelerator, wrapped, final):
                    loss, losses, record = wrapped(views, target, done, epoch)
                    watch.stop_if_broken(loss, losses, step, saved)
                    accelerator.backward(loss / settings["accumulate"])
                sums.add(loss, losses, record if observer.due("watch_every", seen) else None)
            frozen = done < fractions["freeze_last_layer"]
            optimization.update(optimizer, model, settings, frozen=frozen)
            if target_network is not None:
                ema.update(target_network, model.encoder, model.objective.momentum(done))
            for term in model.all_terms():
                term.after(record)

            # --- Watch and log ---
            with accelerator.autocast():
                line, news = observer.step(seen, rate, sums, record)
            if main and observer.neighbors_due(step):
                network = target_network or model.encoder
                line["knn"] = watch.nearest_neighbors(settings, request.document, index, network)
            if log is not None and line:
                samples = seen * length.batch_size
                log.write(step=seen, samples=samples, epoch=length.epoch(seen), **line)
                accelerator.log(metrics.flat(line), step=seen)
            last |= line
            bar.advance(1, **metrics.progress_fields(line))
            for sentence in news:
                request.say(sentence)

            # --- Save and leave ---
            stop = settings["on_collapse"] == "stop" and distributed.any_across(bool(news), device)
            leave = seen < length.steps and distributed.any_across(bool(stops), device)
            if seen < length.steps and (stop or leave or seen % settings["checkpoint_every"] == 0):
                save(seen)
                saved = seen
            if stop:
                what = news[0] if news else f"step {seen}: another process sees a collapse"
                raise NumericalError(f"{what} (on_collapse=stop)")
            if leave:
                raise Interrupted(f"saved at step {seen} in {out}; run the same command again")
    last["platform"] = checkpoint.platform(settings)  # ending the training leaves the group
    accelerator.end_training()
    if log is not None:
        log.close()
        last["files"] = checkpoint.write_outputs(settings, model, target_network, out)
    last["export"] = checkpoint.exported(settings, model, target_network)[0]
    return last | {"sentences": list(reported.values())}


def describe(
    request: Request,
    settings: dict[str, Any],
    facts: dict[str, Any],
    identity: str,
    out: Path,
    length: Length,
) -> dict[str, Any]:
    """The manifest of the finished run; its resume file has served."""
    from equitools.training import checkpoint

    document = request.document | {"kind": "checkpoint", "recipe": settings}
    document["files"] = document["files"] | facts["files"]
    scores = {"pretrain/loss": facts["loss"]}
    for kind in ("watch", "knn"):
        scores |= {f"pretrain/{kind}/{key}": value for key, value in facts.get(kind, {}).items()}
    document["scores"] = {**document.get("scores", {}), **scores}
    request.afterwards.append(lambda: (out / checkpoint.RESUME).unlink(missing_ok=True))
    return request.record(
        document,
        identity,
        steps=length.steps,
        prelude_steps=length.prelude,
        epochs=length.epochs,
        samples=length.steps * length.batch_size,
        encoder=facts["export"],
        collapse=facts["sentences"] or "none seen",
        **facts["platform"],
    )


def check(recipe: dict[str, Any]) -> None:
    """Refuse a wrong recipe before the pipe is waited for, when the words alone make one."""
    from equitools.training import learner
    from equitools.training.recipe import resolve

    if "objective" in recipe and "backbone" in recipe:
        learner.check(resolve(recipe))


def opened(name: str, table: str | None = None) -> Any:
    """A room of the library, or what a function of it lists; imported when it is asked for."""
    module = importlib.import_module(f"equitools.{name}")
    return getattr(module, table)() if table else module


PAIRS, BOTH = "training.compatibility", "a run is possible where both tables say yes"
MENUS = {
    **{name: partial(opened, name) for name in ("objectives", "equivariance")},
    "backbones": partial(opened, "backbones", "menu"),
    "objectives × equivariance": partial(opened, PAIRS, "with_objectives"),
    f"backbones × equivariance ({BOTH})": partial(opened, PAIRS, "with_backbones"),
    "what equivariance needs": partial(opened, PAIRS, "needs"),
}
PROGRAM = Program(
    name="pretrain",
    section="recipe",
    reads=("shards",),
    folders=LAYERS,
    run=run,
    help=__doc__,
    required=False,
    check=check,
    menus=MENUS,
)
main = command(PROGRAM)

if __name__ == "__main__":
    main()
