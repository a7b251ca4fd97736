"""Pretrain a backbone with one objective and any equivariance terms; shards in, checkpoint out."""

from __future__ import annotations

import importlib
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from equitools import manifest
from equitools.core.errors import DataError, Interrupted, NumericalError, UsageError
from equitools.manifest import run_folder

from .cli import exits as cli_exits
from .cli import progress as cli_progress
from .cli.command import command
from .cli.program import Program, Request

LAYERS = ("objective", "equivariance", "backbone", "views", "schedule")


def run(request: Request) -> dict[str, Any] | None:
    """Check the recipe, find the folder, train or resume, and describe what came out."""
    from equitools.core import distributed
    from equitools.core.processes import launched
    from equitools.data.shards.index import open_split
    from equitools.training import estimate
    from equitools.training import length as training_length
    from equitools.training import recipe as training_recipe
    from equitools.training.length import asked_epochs

    settings = training_recipe.resolve(request.settings)
    if request.plan:
        request.print_plan(estimate.describe(settings, request.document))
        return None
    if "shards.train" not in request.document.get("files", {}):
        raise DataError(
            "pretraining needs shards with a train split; pipe them in:"
            " equi-shard SOURCE -o DIR | equi-pretrain …"
        )
    settings = settle_device(settings)
    index = open_split(request.document, "train")
    length = training_length.length(settings, len(index))
    fractions = durations(settings, asked_epochs(settings, length))
    identity = identify(settings, request.document)
    out = request.choose_out(Path("runs") / identity[:12])
    if (done := run_folder.finished(out, identity)) is not None:
        request.say(f"{out} is finished already: this is its manifest")
        return done
    refuse_other(out, identity)
    if (count := processes(settings)) > 1 and launched() == 1:
        return in_ranks(request, settings, out, count)
    if distributed.is_main():
        run_folder.lock(out)
    facts = train(request, settings, index, length, fractions, identity, out)
    if not distributed.is_main():
        return None
    return describe(request, settings, facts, identity, out, length)


def refuse_other(out: Path, identity: str) -> None:
    """Never overwrite a finished run with another."""
    if (out / "manifest.yaml").is_file():
        history = manifest.load_file(out / "manifest.yaml")[0].get("history") or [{}]
        if history[-1].get("id") != identity:
            raise UsageError(
                f"{out} holds another finished run: its recipe or data differ; choose another"
                " folder with -o, or remove it"
            )


def settle_device(settings: dict[str, Any]) -> dict[str, Any]:
    """Write back what `auto` means on this machine."""
    import torch

    device, precision = settings["device"], settings["precision"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device={device}, but torch sees no GPU here; say device=cpu")
    if precision == "auto":
        fast = device != "cpu" and torch.cuda.is_bf16_supported()
        precision = "bf16" if fast else "fp32"
    return settings | {"device": device, "precision": precision}


def processes(settings: dict[str, Any]) -> int:
    """How many processes to start here: what the recipe says, else one for each local GPU."""
    import torch

    if settings["processes"] is not None:
        return settings["processes"]
    return torch.cuda.device_count() if settings["device"] == "cuda" else 1


def durations(settings: dict[str, Any], epochs: float) -> dict[str, float]:
    """The recipe's durations as shares of the run; refused when longer than it."""
    from equitools.nn.schedules import share

    return {
        key: share(settings["schedule"][key], epochs, f"recipe.schedule.{key}")
        for key in ("warmup_epochs", "freeze_last_layer")
    }


def identify(settings: dict[str, Any], document: dict[str, Any]) -> str:
    """The digest of recipe and data: what two runs must share to be the same run."""
    from equitools.training.recipe import NOT_IDENTITY

    matters = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    return manifest.identity(matters, document["files"]["shards.train"]["digest"])


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
        cli_exits.leave(code)
    found = manifest.load(answer, "rank 0")[0]
    found["history"][-1]["argv"] = request.argv
    return found


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGUSR1, so that the loop can save and leave between two steps."""
    asked: list[int] = []

    def note(number: int, stack: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    request: Request,
    settings: dict[str, Any],
    index: Any,
    length: Any,
    fractions: dict[str, float],
    identity: str,
    out: Path,
) -> dict[str, Any]:
    """The loop: batch → views → both encoders → terms → step → slow copy → one JSON line."""
    import torch
    from accelerate import Accelerator

    from equitools import augment
    from equitools.core import distributed
    from equitools.nn import ema, optim, serialization, sync_batchnorm
    from equitools.training import checkpoint, loader, metrics, optimization
    from equitools.training import watch as training_watch
    from equitools.training.learner import build
    from equitools.training.metrics import MetricsLog
    from equitools.training.watch import crossed, nearest_neighbors, stop_if_broken

    trackers = metrics.trackers_of(settings)
    distributed.start(settings["device"])
    accelerator = Accelerator(
        cpu=settings["device"] == "cpu",
        mixed_precision="bf16" if settings["precision"] == "bf16" else "no",
        log_with=trackers or None,
        project_dir=out,
    )
    device, seed, main = accelerator.device, settings["seed"], distributed.is_main()
    torch.manual_seed(seed)
    model = build(settings)
    checkpoint.exported(settings, model, model.encoder if model.needs_target else None)
    plan = augment.plan(settings["views"])
    if distributed.world_size() > 1:
        model = sync_batchnorm.synchronize(model, device)
    slow = ema.slow_copy(model.encoder).to(device) if model.needs_target else None
    model.to(device)
    optimizer = optimization.make_optimizer(settings, model)
    start, noted = 0, {}
    if (saved := checkpoint.restore(out, identity, model, slow)) is not None:
        start, noted = saved[0]["step"], saved[0]["noted"]
        serialization.load_optimizer(optimizer, saved[1])
        request.say(f"resumed at step {start}")
    wrapped = accelerator.prepare_model(model)
    if settings["compile"]:
        wrapped = torch.compile(wrapped)
    data = loader.StepBatches(
        index, plan, seed=seed, batch=settings["batch_size"], accumulate=settings["accumulate"],
        ranks=distributed.world_size(), rank=distributed.rank(), cache=settings["cache"],
    )  # fmt: skip
    stream = loader.batches(
        data, start=start, end=length.steps, workers=loader.worker_count(settings),
        pin=device.type == "cuda", resident=loader.residents(data, device),
    )  # fmt: skip
    log = MetricsLog(out / "metrics.jsonl", start) if main else None
    if trackers:
        accelerator.init_trackers("equitools", config=metrics.flat(settings))

    def save(step: int) -> None:
        distributed.barrier()
        if main:
            cursor = {"step": step, "identity": identity, "noted": noted}
            checkpoint.save(out, cursor, model, slow, optimizer)

    last: dict[str, Any] = {}
    kept = start
    waited, begun, logged = 0.0, time.perf_counter(), start
    with stop_requests() as asked, closing(stream), progress(request, length, start) as bar:
        for step in range(start, length.steps):
            if 0 < step == length.prelude:
                optimizer = optimization.make_optimizer(
                    settings, model
                )  # fresh moments for the run
            done, epoch = length.done(step), length.epoch(step)
            rate = optimization.set_rates(
                optimizer, settings, length, fractions["warmup_epochs"], step
            )
            checkpoint.seed_step(seed, step, distributed.rank())
            optimizer.zero_grad(set_to_none=True)
            seen = step + 1
            due = seen % settings["watch_every"] == 0 or seen == length.steps
            sums = optimization.Sums()
            for micro in range(settings["accumulate"]):
                clock = time.perf_counter()
                batch = next(stream)
                waited += time.perf_counter() - clock
                views, target = plan.finish(batch, device), None
                if slow is not None:
                    with torch.no_grad(), accelerator.autocast():
                        target = model.see_slowly(slow, views)
                final = micro == settings["accumulate"] - 1
                with optimization.sync_only_last(accelerator, wrapped, final):
                    loss, parts, record = wrapped(views, target, done, epoch)
                    stop_if_broken(loss, parts, step, kept)
                    accelerator.backward(loss / settings["accumulate"])
                sums.add(loss, parts, record if due else None)
            if done < fractions["freeze_last_layer"]:
                for parameter in model.last_layers():
                    parameter.grad = None
            knobs = settings["optimizer"]
            optim.clip_gradients(model.parameters(), knobs["clip"], knobs["clip_per"])
            optimizer.step()
            if slow is not None:
                ema.update(slow, model.encoder, model.objective.momentum(done))
            for term in model.all_terms():
                if hasattr(term, "after"):
                    term.after(record)

            line: dict[str, Any] = {}
            logs = seen % settings["log_every"] == 0 or seen == length.steps
            total, losses = sums.means() if logs or due else (0.0, {})
            if logs:
                line |= {"loss": total, "losses": losses, "lr": rate}
                elapsed = time.perf_counter() - begun  # since the last line
                line["images_per_second"] = (seen - logged) * settings["batch_size"] / elapsed
                line["waited"] = waited / elapsed
                waited, begun, logged = 0.0, time.perf_counter(), seen
            fresh: list[str] = []
            if due:
                with accelerator.autocast():
                    line["watch"], words = training_watch.look(
                        settings, model, record, sums.said, losses
                    )
                fresh = training_watch.note(noted, words, seen)
            if main and crossed(settings["knn_every"], length, step):
                line["knn"] = nearest_neighbors(
                    settings, request.document, index, slow or model.encoder
                )
            if log is not None and line:
                samples = seen * length.batch_size
                log.write(step=seen, samples=samples, epoch=length.epoch(seen), **line)
                accelerator.log(metrics.flat(line), step=seen)
            last |= line
            bar.advance(1, **metrics.shown(line))
            for sentence in fresh:
                request.say(sentence)
            stop = settings["on_collapse"] == "stop" and distributed.any_across(bool(fresh), device)
            leave = seen < length.steps and distributed.any_across(bool(asked), device)
            saves = seen % settings["checkpoint_every"] == 0
            if seen < length.steps and (stop or leave or saves):
                save(seen)
                kept = seen
            if stop:
                what = fresh[0] if fresh else f"step {seen}: another process sees a collapse"
                raise NumericalError(f"{what} (on_collapse=stop)")
            if leave:
                raise Interrupted(f"saved at step {seen} in {out}; run the same command again")
    last["platform"] = checkpoint.platform(settings)  # ending the training leaves the process group
    accelerator.end_training()
    if log is not None:
        log.close()
        last["files"] = checkpoint.write_outputs(settings, model, slow, out)
    last["export"] = checkpoint.exported(settings, model, slow)[0]
    last["words"] = list(noted.values())
    return last


def progress(request: Request, length: Any, start: int) -> Any:
    """A progress display of steps, from where the run goes on."""
    return cli_progress.progress(length.steps, "pretrain", "step", start=start)


def describe(
    request: Request,
    settings: dict[str, Any],
    facts: dict[str, Any],
    identity: str,
    out: Path,
    length: Any,
) -> dict[str, Any]:
    """The manifest of the finished run; its resume file has served."""
    from equitools.training import checkpoint

    document = dict(request.document)
    document["kind"] = "checkpoint"
    document["recipe"] = settings
    document["files"] = {**document["files"], **facts["files"]}
    scores = {"pretrain/loss": facts["loss"]}
    scores |= {f"pretrain/watch/{name}": value for name, value in facts.get("watch", {}).items()}
    scores |= {f"pretrain/knn/{name}": value for name, value in facts.get("knn", {}).items()}
    document["scores"] = {**document.get("scores", {}), **scores}
    request.afterwards.append(lambda: (out / checkpoint.RESUME).unlink(missing_ok=True))
    return request.record(
        document, identity, steps=length.steps, prelude_steps=length.prelude,
        epochs=length.epochs, samples=length.steps * length.batch_size,
        encoder=facts["export"], collapse=facts["words"] or "none seen",
        **facts["platform"],
    )  # fmt: skip


def check(recipe: dict[str, Any]) -> None:
    """Refuse a wrong recipe before the pipe is waited for, when the words alone make one."""
    from equitools.training import learner
    from equitools.training import recipe as training_recipe

    if "objective" in recipe and "backbone" in recipe:
        learner.build(training_recipe.resolve(recipe))


def menus() -> dict[str, Any]:
    """What `--list` shows besides layers."""

    def namespace(name: str) -> Any:
        return lambda: importlib.import_module(f"equitools.{name}")

    def backbones() -> Any:
        return importlib.import_module("equitools.backbones").menu()

    def pairs(table: str) -> Any:
        return lambda: getattr(importlib.import_module("equitools.training.compatibility"), table)()

    return {
        "objectives": namespace("objectives"),
        "equivariance": namespace("equivariance"),
        "backbones": backbones,
        "objectives × equivariance": pairs("with_objectives"),
        "backbones × equivariance (a run is possible where both tables say yes)": pairs(
            "with_backbones"
        ),
        "what equivariance needs": pairs("asked"),
    }


PROGRAM = Program(
    name="pretrain",
    section="recipe",
    reads=("shards",),
    folders=LAYERS,
    run=run,
    help=__doc__
    + """

Example: equi-pretrain dino clever vit-small caug e200 seed=1 -o runs/clever < shards.yaml
""",
    required=False,
    check=check,
    menus=menus(),
)
main = command(PROGRAM)

if __name__ == "__main__":
    main()
