"""How numbers move over a run: half cosines, warm-up and durations.

half cosine   e + (s - e) · (1 + cos(π t)) / 2,   t the share of the run that is done"""

from __future__ import annotations

import math

from equitools.core.errors import UsageError
from equitools.core.records import Step


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` at share 0 to `end` at share 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def warmup_cosine(base: float, final: float, done: float, warmup: float) -> float:
    """Linear from 0 to `base` while done < warmup (both shares of the run), then half a cosine."""
    if done < warmup:
        return base * done / warmup
    return cosine(base, final, (done - warmup) / max(1 - warmup, 1e-12))


def elapsed(duration: float | str, step: Step) -> float:
    """How much of a duration is behind us, in [0, 1]; 1 for a duration of nothing.

    duration: a number of epochs, or a share of the run such as "10%". Raises UsageError for
    another text.
    """
    if isinstance(duration, str):
        return _passed(step.done, _share(duration))
    return _passed(step.epoch, duration)


def _passed(now: float, duration: float) -> float:
    return 1.0 if duration <= 0 else min(now / duration, 1.0)


def _share(text: str) -> float:
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
    except ValueError:
        pass
    raise UsageError(f"'{text}' is no duration; it is epochs (10) or a share of the run (10%)")


def half_cosine(start: float, end: float, done: float) -> float:
    """Half a cosine from `start` at done 0 to `end` at done 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


Duration = float | int | str


def share(duration: Duration, epochs: float, what: str) -> float:
    """A duration (epochs, or "10%") as a share of a run of so many epochs.

    Raises UsageError when it is longer than the run.
    """
    if isinstance(duration, str):
        try:
            part = float(duration.removesuffix("%")) / 100
        except ValueError:
            part = -1.0
        if not duration.endswith("%") or not 0 <= part <= 1:
            raise UsageError(f"{what} is '{duration}'; a duration is epochs (10) or a share (10%)")
        return part
    if duration > epochs:
        raise UsageError(
            f"{what} is {duration:g} epochs but the run has {epochs:g}; shorten it or say a share,"
            f" as in {what.removeprefix('recipe.')}=10%"
        )
    return duration / epochs
