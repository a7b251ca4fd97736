"""How numbers move over a run: half cosines, warm-up and durations.

half cosine   e + (s - e) · (1 + cos(π t)) / 2,   t the share of the run that is done
"""

import math

from equitools.core.errors import UsageError
from equitools.core.records import Step

Duration = float | int | str  # epochs, or a share of the run such as "10%"


def half_cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` at share 0 to `end` at share 1, the same before and after."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def warmup_cosine(base: float, final: float, done: float, warmup: float) -> float:
    """Linear from 0 to `base` while done < warmup (both shares of the run), then half a cosine."""
    if done < warmup:
        return base * done / warmup
    return half_cosine(base, final, (done - warmup) / max(1 - warmup, 1e-12))


def percent(text: str, what: str = "the duration") -> float:
    """ "10%" as 0.1, in [0, 1]; UsageError for another text."""
    try:
        part = float(text.removesuffix("%")) / 100
    except ValueError:
        part = -1.0
    if not text.endswith("%") or not 0 <= part <= 1:
        raise UsageError(f"{what} is '{text}'; a duration is epochs (10) or a share (10%)")
    return part


def elapsed(duration: Duration, step: Step) -> float:
    """How much of a duration is behind us, in [0, 1]; 1 for a duration of nothing."""
    if isinstance(duration, str):
        now, length = step.done, percent(duration)
    else:
        now, length = step.epoch, duration
    return 1.0 if length <= 0 else min(now / length, 1.0)


def share(duration: Duration, epochs: float, what: str) -> float:
    """A duration as a share of a run of so many epochs; UsageError when it is longer than that."""
    if isinstance(duration, str):
        return percent(duration, what)
    if duration > epochs:
        raise UsageError(
            f"{what} is {duration:g} epochs but the run has {epochs:g}; shorten it or say a share,"
            f" as in {what.removeprefix('recipe.')}=10%"
        )
    return duration / epochs
