"""What a checkpoint is saved with: the number of its step, and metrics, of which one may say which is the best."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, TypeGuard

from ..core.words import describe
from .directory import Entry

_NO_LARGER = 2**63  # a name of a file has room for it, and so has a number of 64 bits


def whole(name: str, given: Any, least: int) -> int:
    """Return a whole number that was given under a name.

    Raises:
        ValueError: If it is none, or less than the least, or has more than 63 bits.
    """
    try:
        number = least - 1 if isinstance(given, bool) else operator.index(given)
    except TypeError:
        number = least - 1
    if number < least:
        advice = "; best_step() and latest_step() return one" if isinstance(given, str) and name == "step" else ""
        raise ValueError(f"{name} is a whole number, {least} or more, and was given as {describe(given)}{advice}")
    if number >= _NO_LARGER:
        raise ValueError(f"{name} is a whole number below 2**63, and was given as {describe(given)}")
    return number


def name_of_metric(best: Any) -> str | None:
    """Return the name of the metric that decides which checkpoint is the best, as it was given, or ``None``.

    Raises:
        TypeError: If it is something else, such as a function.
    """
    if not isinstance(best, str | None):
        raise TypeError(f"best is the name of a metric, such as best='loss' with mode='min', and was given as {describe(best)}")
    return best


def numbers_in(metrics: Any) -> dict[str, Any]:
    """Return metrics as Python's numbers.

    Raises:
        TypeError: If they are no mapping of names to numbers.
    """
    if isinstance(metrics, Mapping | None):
        # Arrays of MLX and NumPy have a size; Python's numbers have none.
        numbers = {name: value.item() if getattr(value, "size", 0) == 1 else value for name, value in (metrics or {}).items()}
        if all(isinstance(name, str) and isinstance(value, int | float) for name, value in numbers.items()):
            return numbers
    raise TypeError(f"metrics is a mapping of names to numbers, and was given as {describe(metrics)}")


def bests_of(entries: Mapping[int, Entry], name: str | None, mode: str, count: int) -> list[int]:
    """Return the steps with the best metrics of a name, the best first, and of equal ones the first saved."""
    sign = 1 if mode == "min" else -1
    numbers = {step: entry.metrics.get(name) for step, entry in entries.items() if name is not None}
    ranked = sorted((sign * number, entries[step].time, step) for step, number in numbers.items() if _is_number(number))
    return [step for _, _, step in ranked[:count]]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and value == value  # not nan; math.isnan fails for an int too long for a float
