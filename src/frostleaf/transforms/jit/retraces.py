"""Calls that are all traced anew, for the same reason."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from ...core.words import function_name, level_of_caller
from .arguments import RetraceWarning
from .explanation import Argument, Seen, Traced, changes_between

_MOST_IN_A_ROW = 16  # more than there are powers of two among the lengths of most buckets, each of which is traced once

RETRACED = "{fn} was traced anew in each of its last {count} calls. What differs each time: {change}. {advice}"
ADVICE = {
    "shape": "Pad to one of a few shapes, or compile with shapeless=True if it does not depend on them.",
    "number": "Hold it in an array (mx.array(...), in a module fl.buffer()), unless a shape depends on it.",
    "object": "It is equal to nothing but itself: make it, with what holds it, once and outside of the loop.",
    "static": "Pass what changes as arrays, or keep to a few values.",
}


class Row:
    """The latest calls of one jitted function, as long as each of them is traced."""

    def __init__(self) -> None:
        self._traced: list[Traced] = []
        self._is_over = False

    def add(self, fn: Callable[..., Any], traced: Traced, argument: Argument) -> None:
        """Note a trace, and warn, once, of a shape or a static value that was another in each of many in a row.

        If other things differ as well, such as classes or modes, the calls are of many kinds, and nothing is said. Nor is it if
        a shape or a value comes again.

        Args:
            fn: The function.
            traced: What it was traced for.
            argument: Gives the names of arguments, as for :meth:`History.explain`.
        """
        if self._is_over:
            return
        self._traced.append(traced)
        if len(self._traced) < _MOST_IN_A_ROW:
            return
        found = [changes_between(one, other, argument) for one, other in pairwise(self._traced)]
        are_new = len(set(self._traced)) == _MOST_IN_A_ROW  # or else they were dropped to make room, as explain() says
        self.clear()
        changes, in_words = found[-1]
        kinds = {change.kind for each, _ in found for change in each}
        always = set.intersection(*[{change.path for change in each} for each, _ in found])
        if kinds in ({"shape"}, {"static"}) and always and are_new:
            self.end()
            change = next(each for each in changes if each.path in always)
            said = {"fn": function_name(fn), "count": _MOST_IN_A_ROW, "change": in_words(change)}
            advice = ADVICE[change.right.sort if isinstance(change.right, Seen) else change.kind]
            warnings.warn(RETRACED.format(**said, advice=advice), RetraceWarning, stacklevel=level_of_caller())

    def clear(self) -> None:
        """Begin anew, since a trace was of use again."""
        self._traced = []

    def end(self) -> None:
        """Say nothing any more."""
        self._is_over = True
        self.clear()


IN_THREADS = (
    "{fn} was traced anew in each of {count} threads, which have ended: MLX keeps a trace for the thread that made it. Call it "
    "in threads that stay, such as those of one ThreadPoolExecutor."
)


class Threads:
    """In how many threads, one after the other, a program was traced for a single call."""

    def __init__(self) -> None:
        self._last: weakref.ref[threading.Thread] | None = None
        self._count = 0

    def add(self, fn: str) -> None:
        """Note a trace in this thread, and warn of the last of many in threads that ended after one call."""
        last = None if self._last is None else self._last()
        has_ended = last is None or not last.is_alive()
        self._last = weakref.ref(threading.current_thread())
        self._count = self._count + 1 if has_ended else 1
        if self._count == _MOST_IN_A_ROW:
            warnings.warn(IN_THREADS.format(fn=fn, count=_MOST_IN_A_ROW), RetraceWarning, stacklevel=level_of_caller())

    def clear(self) -> None:
        """Begin anew, since a trace was of use again."""
        self._count = 0
