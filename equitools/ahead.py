"""What comes next is read on threads while this one is worked on: decoding leaves Python's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
