"""Many shards at once; all of them or none.

What is looked at is written by processes that end with this one. What is only copied and hashed is
written by threads: the system calls and sha256 let others go on meanwhile.
"""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from equitools.core.errors import EquiError
from equitools.data.shards.packing import Job, Written, write_shard
from equitools.data.shards.tar_writer import sync

# Below so many samples, starting processes takes longer than it saves.
ALONE = 1000


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
        if not every[0].verify:
            written = _write_together(every, workers, advance)
        elif workers <= 1 or sum(len(job.items) for job in every) < ALONE:
            written = [write_shard(job, advance) for job in every]
        else:
            written = _write_apart(every, workers, advance)
        for job in every:  # at the end, so that no writing waits for the disk
            sync(job.path)
        results = iter(written)
        return {split: [next(results) for _ in jobs[split]] for split in jobs}
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise EquiError(f"cannot write to {partial.parent}: {reason}") from error
        raise


def _write_together(jobs: list[Job], workers: int, advance: Callable[[int], None]) -> list[Written]:
    """The jobs over threads of this process."""
    lock = threading.Lock()

    def tell(count: int) -> None:
        with lock:
            advance(count)

    pool = futures.ThreadPoolExecutor(max(1, min(workers, len(jobs))))
    try:
        return list(pool.map(lambda job: write_shard(job, tell), jobs))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_apart(jobs: list[Job], workers: int, advance: Callable[[int], None]) -> list[Written]:
    """The jobs over processes that end with this one."""
    context = multiprocessing.get_context("spawn")
    counter, done = context.Value("q", 0), 0
    pool = futures.ProcessPoolExecutor(min(workers, len(jobs)), context, _become_worker, (counter,))
    try:
        waiting: list[futures.Future] = [pool.submit(_write_counted, job) for job in jobs]
        pending: Any = waiting
        while pending:
            finished, pending = futures.wait(pending, 0.2, futures.FIRST_EXCEPTION)
            done, before = counter.value, done
            advance(done - before)
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
