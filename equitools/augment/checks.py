"""What a number in a recipe's views can be: UsageError with its dotted path for what it cannot."""

from collections.abc import Sequence
from typing import TypeVar

from equitools.core.errors import UsageError

Chance = TypeVar("Chance", bound=float | list[float])


def probability(value: Chance, where: str) -> Chance:
    """A number in [0, 1], or one for each view."""
    for one in value if isinstance(value, list) else [value]:
        if not 0 <= one <= 1:
            raise UsageError(f"{where} is {one:g}; a probability is in [0, 1]")
    return value


def interval(pair: Sequence[float], where: str, most: float | None = None) -> Sequence[float]:
    """Two numbers above 0 (and up to `most`), the lower first."""
    low, high = pair
    if not 0 < low <= high or (most is not None and high > most):
        above = "" if most is None else f" ≤ {most:g}"
        raise UsageError(f"{where} is [{low:g}, {high:g}]; it must be 0 < low ≤ high{above}")
    return pair
