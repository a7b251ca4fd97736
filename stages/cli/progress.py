"""Progress for people, on stderr: a bar on a terminal, else one line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from equitools.core import processes

if TYPE_CHECKING:
    import rich.progress

INTERVAL = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """Counts `unit`s up to `total` (None: nobody knows how many), with rate and time left."""

    def __init__(self, total: int | None, description: str, unit: str, start: int) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done = self.start = start
        self.began = self.printed = time.monotonic()
        self.fields: dict[str, object] = {}
        self.quiet = processes.rank() > 0
        self.bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr is not None and sys.stderr.isatty():
            self.bar, self.task = _bar(self.total, self.description, self.unit, self.start)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self._draw()
            self.bar.stop()
        elif kind is None and not self.quiet and self.done > self.start:
            print(self.line(), file=sys.stderr, flush=True)

    def advance(self, count: int = 1, **fields: object) -> None:
        """`count` more are done; fields (loss=2.1) stand at the end of the line."""
        self.done += count
        self.fields |= fields
        now = time.monotonic()
        if self.bar is not None:
            if now - self.printed > 0.1:
                self.printed = now
                self._draw()
        elif not self.quiet and now - self.printed >= INTERVAL:
            self.printed = now
            print(self.line(), file=sys.stderr, flush=True)

    def _draw(self) -> None:
        if self.bar is not None:
            fields = self._fields()
            self.bar.update(self.task, completed=self.done, rate=self.rate(), fields=fields)

    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def _fields(self) -> str:
        """The fields as `loss 2.1, rank 12`."""
        return ", ".join(f"{key} {_short(value)}" for key, value in self.fields.items())

    def line(self) -> str:
        """Where we are, in one line."""
        rate = self.rate()
        of = f"/{self.total} {self.unit}s" if self.total is not None else f" {self.unit}s"
        words = [f"{self.description}: {self.done}{of}"]
        if self.total:
            words[0] += f" ({100 * self.done / self.total:.0f} %)"
        words.append(f"{rate:.3g} {self.unit}s/s")
        if self.total is not None and self.done < self.total and rate > 0:
            words.append(f"{_clock((self.total - self.done) / rate)} left")
        return ", ".join(words + ([self._fields()] if self.fields else []))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _bar(
    total: int | None, description: str, unit: str, start: int
) -> tuple[rich.progress.Progress, rich.progress.TaskID]:
    """A bar of rich on stderr, and its task."""
    from rich import progress as columns
    from rich.console import Console

    bar = columns.Progress(
        columns.TextColumn("{task.description}"),
        columns.BarColumn(),
        columns.MofNCompleteColumn(),
        columns.TextColumn(f"{{task.fields[rate]:.3g}} {unit}s/s"),
        columns.TimeRemainingColumn(),
        columns.TextColumn("{task.fields[fields]}", markup=False),
        console=Console(stderr=True),
        redirect_stdout=False,
    )
    return bar, bar.add_task(description, total=total, completed=start, rate=0.0, fields="")


def progress(total: int | None, description: str, unit: str = "step", start: int = 0) -> Progress:
    """A context manager with `.advance(n, **fields)`: a bar on a terminal, else a line every 30 s.

    Counts from `start` to `total`; says nothing on ranks other than 0.
    """
    return Progress(total, description, unit, start)
