"""Every way to end: one clear line on stderr and the exit code that errors.py documents."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import click

from equitools.core import processes
from equitools.core.errors import EquiError, UsageError

log = logging.getLogger(__name__)
# What a missing module is called for pip.
EXTRAS = {"sklearn": "digits", "matplotlib": "plots", "fvcore": "count"}
EXTRAS |= dict.fromkeys(("tensorboard", "wandb"), "trackers")
LONGEST = 600  # characters of a message


class Quietly(BaseException):
    """End with a code and without a word; no library catches it by accident."""

    def __init__(self, code: int) -> None:
        self.code = code


class Terminated(BaseException):
    """SIGTERM arrived, and nobody had asked to save on it."""


@dataclass
class Result:
    """The exit code, once it is known."""

    code: int = 0


@contextmanager
def exit_code(verbose: bool) -> Iterator[Result]:
    """Turn whatever happens inside into an exit code and at most one line."""
    result = Result()
    try:
        with _terminable(), _insisting():
            yield result
    except Quietly as error:
        result.code = error.code
    except KeyboardInterrupt:
        log.error("interrupted")
        result.code = 130
    except Terminated:
        log.error("terminated")
        result.code = 143
    except Exception as error:
        result.code = _code(error)
        if processes.rank() == 0 or result.code != UsageError.code:  # every rank has the same words
            log.error(_line(error, verbose))
        if verbose:
            log.debug("".join(traceback.format_exception(error)).rstrip())
    finally:
        _end_workers()


def _end_workers() -> None:
    """Kill the loader's workers that an error has left behind, before Python waits for them.

    They ignore SIGTERM, and torch would raise in this process when one of them is killed.
    """
    started = sys.modules.get("multiprocessing")
    if started is None or threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in started.active_children():
        if child.daemon:
            child.kill()


Handler = Callable[[int, FrameType | None], None]


@contextmanager
def handling(handler: Handler, *signals: int) -> Iterator[None]:
    """Let a function hear signals inside the block, and then what heard them before."""
    if threading.current_thread() is not threading.main_thread():
        signals = ()  # no other thread may say who hears them
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that temporary files go and the cursor comes back."""

    def terminate(number: int, stack: FrameType | None) -> None:
        raise Terminated

    def forget() -> None:
        """In a forked worker: a pool that ends its workers wants them to just end."""
        if signal.getsignal(signal.SIGTERM) is terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    os.register_at_fork(after_in_child=forget)
    with handling(terminate, signal.SIGTERM):
        yield


@contextmanager
def _insisting() -> Iterator[None]:
    """Raise once more what a signal has raised inside a destructor, where Python drops it."""
    dropped: list[type[BaseException]] = []
    report = sys.unraisablehook

    def remember(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, Terminated | KeyboardInterrupt):
            dropped.append(type(lost.exc_value))
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # by then the destructor has ended
        else:
            report(lost)

    def insist(number: int, stack: FrameType | None) -> None:
        raise dropped[-1]

    sys.unraisablehook = remember
    with handling(insist, signal.SIGALRM):
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = report


def _code(error: Exception) -> int:
    if isinstance(error, EquiError):
        return error.code
    return error.exit_code if isinstance(error, click.ClickException) else 1


def _line(error: Exception, verbose: bool) -> str:
    """One line that says what is wrong."""
    if isinstance(error, EquiError):
        return _one_line(str(error))
    if isinstance(error, click.ClickException):
        return _one_line(error.format_message())
    if isinstance(error, ModuleNotFoundError) and (root := str(error.name).split(".")[0]) in EXTRAS:
        return f"{root} is not installed; pip install 'equitools[{EXTRAS[root]}]'"
    if isinstance(error, OSError) and (error.strerror or str(error)):
        place = f"{error.filename}: " if error.filename is not None else ""
        return _one_line(f"{place}{error.strerror or error}")
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return "a process that reads images died: out of memory, or /dev/shm is full; try workers=0"
    hint = "" if verbose else " (-v shows the traceback)"
    return f"{type(error).__name__}: {_one_line(str(error))}{hint}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the moment: a progress bar may have taken its place."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # nobody reads stderr: no reason to stop the work
            print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr(name: str, verbose: bool) -> None:
    """Send what equitools says to stderr as `name: …`; ranks above 0 only say what is wrong."""
    processes.adopt_slurm()
    rank = processes.rank()
    handler = _Stderr()
    handler.setFormatter(
        logging.Formatter(f"{name}{f' [rank {rank}]' if rank else ''}: %(message)s")
    )
    ours = logging.getLogger("equitools")  # the parent of every module's logger
    ours.handlers[:] = [handler]
    ours.propagate = False
    quiet = logging.WARNING if rank else logging.INFO
    ours.setLevel(logging.DEBUG if verbose else quiet)


def leave(code: int) -> None:
    """End the stage with an exit code and no word, when another process has said why."""
    raise Quietly(code)
