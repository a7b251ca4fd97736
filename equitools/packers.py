"""Many shards at once, over processes that end with this one; all of them or none."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from equitools.errors import EquiError
from equitools.packing import Job, Written, write_shard
from equitools.tarwriter import sync

# Below so many samples, verified or just copied, starting processes takes longer than it saves.
ALONE, ALONE_COPYING = 1000, 50_000


def write_all(
    jobs: dict[str, list[Job]], workers: int, advance: Callable[[int], None]
) -> dict[str, list[Written]]:
    """Write every shard of every split below its temporary folder; `advance(n)` after n samples.

    Raises DataError for a file that cannot be read, EquiError when a shard cannot be written; the
    temporary folder is gone then.
    """
    every = [job for split in jobs for job in jobs[split]]
    partial = Path(every[0].path).parent
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        few = ALONE if every[0].verify else ALONE_COPYING
        alone = workers <= 1 or sum(len(job.items) for job in every) < few
        written = iter(
            [write_shard(job, advance) for job in every]
            if alone
            else _write_apart(every, workers, advance)
        )
        for job in every:  # at the end, so that no writing waits for the disk
            sync(job.path)
        return {split: [next(written) for _ in jobs[split]] for split in jobs}
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise EquiError(
                f"cannot write to {partial.parent}: {error.strerror or error}"
            ) from error
        raise


def _write_apart(jobs: list[Job], workers: int, advance: Callable[[int], None]) -> list[Written]:
    """The jobs over processes that end with this one."""
    context = multiprocessing.get_context("spawn")
    counter, told = context.Value("q", 0), 0
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _become_worker, (counter,))
    try:
        waiting: list[Future] = [pool.submit(_write_counted, job) for job in jobs]
        pending: Any = waiting
        while pending:
            finished, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
            told, before = counter.value, told
            advance(told - before)
            for future in finished:
                future.result()
        return [future.result() for future in waiting]
    except BrokenProcessPool:
        raise EquiError("a packing process died (out of memory?); try fewer workers") from None
    except BaseException:
        for process in list(getattr(pool, "_processes", {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_counter: Any = None


def _become_worker(counter: Any) -> None:
    """A worker leaves interruptions to its parent and ends with it."""
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_counted(job: Job) -> Written:
    def advance(count: int) -> None:
        with _counter.get_lock():
            _counter.value += count

    return write_shard(job, advance)
