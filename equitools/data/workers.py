"""Read ahead on threads, and worker processes of a loader that end quietly."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.queues import Queue
from typing import Any, TypeVar

from equitools.core import processes

Given = TypeVar("Given")
Found = TypeVar("Found")


def read(items: Iterable[Given], work: Callable[[Given], Found], workers: int) -> Iterator[Found]:
    """work(item) of every item in order, at most two for each thread ahead; without workers, each
    when it is asked for. An error is raised where its item's turn comes."""
    if workers < 1:
        yield from map(work, items)
        return
    waiting: deque[Future[Found]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def quiet_worker(number: int) -> None:
    """A loader's worker ends with its parent, and leaves interruptions to it.

    Schedulers signal all processes of a job at once. A worker that ended then would take the run
    down before its step is done and saved.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # A batch that does not fit in shared memory is dropped, and the parent would wait for ever.
    Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]
    processes.end_with_parent()


def _give_up(error: Exception, item: Any) -> None:
    """End this worker: the loader notices, and stages/cli/exits.py says it in words."""
    os._exit(1)
