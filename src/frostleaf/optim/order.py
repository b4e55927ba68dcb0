"""Averages of gradients over all ranks, and what comes in which order with them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_averaging: list[Callable[..., Any]] = []

# How to write the average around an optimizer.
IN_A_CHAIN = "chain(average_gradients, {})"

LOOKS_FIRST = (
    "{first} would look at each rank's own gradients, since what averages them over the ranks is inside of it, and so treat "
    "them otherwise on each. Write {remedy}"
)


def averages(fn: F) -> F:
    """Note that a function averages gradients over all ranks. A decorator."""
    _averaging.append(fn)
    return fn


def is_average(fn: Any) -> bool:
    """Return whether a function, or what it is a partial application of, averages gradients over all ranks."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return any(fn is each for each in _averaging)


def require_averaged_first(first: str, around: str | None) -> None:
    """Require that what looks at the values of gradients has no average inside.

    Args:
        first: How it is written, with ``...`` for the optimizer inside.
        around: How the average inside is written around an optimizer, if there is one.

    Raises:
        ValueError: If there is one; the message has the right order.
    """
    if around is not None:
        raise ValueError(LOOKS_FIRST.format(first=first, remedy=around.format(first)))
