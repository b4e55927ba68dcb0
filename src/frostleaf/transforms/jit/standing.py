"""What the arrays that a function is traced with stand for: those given to the call for which it is first traced."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager

import mlx.core as mx

from ..context import appended


class _Standing(threading.local):
    """The first calls in this thread.

    Attributes:
        calls: The arrays given to those that are not being traced yet.
        traces: Of those that are, what was given, by the ids of the arrays that stand for it.
    """

    def __init__(self) -> None:
        self.calls: list[Sequence[mx.array]] = []
        self.traces: list[dict[int, mx.array]] = []


_standing = _Standing()


def first_call(given: list[mx.array]) -> AbstractContextManager[None]:
    """Make a context in which the next trace to begin is for a function's first call, with these arrays."""
    return appended(_standing.calls, given)


def standing_for_given(arrays: Sequence[mx.array]) -> AbstractContextManager[None]:
    """Make a context in which arrays stand for those of the first call, if it is one that is being traced."""
    given = _standing.calls.pop() if _standing.calls else []
    return appended(_standing.traces, {id(array): value for array, value in zip(arrays, given, strict=False)})


def given_for(array: mx.array) -> mx.array:
    """Return the array that was given to the first call of a jitted function for one that stands for it, or the array itself.

    A trace is used for other arrays as well, so nothing but a warning may depend on it.
    """
    for trace in reversed(_standing.traces):
        array = trace.get(id(array), array)
    return array
