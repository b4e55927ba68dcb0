"""Traces that are hardly of use: calls that are all traced anew for the same reason."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from numbers import Number
from typing import Any

import mlx.core as mx

from ...core.containers import static_key
from ...core.words import describe, function_name, level_of_caller
from ...tree.differences import Change
from .arguments import RetraceWarning
from .explanation import Argument, History, Seen, Traced, changes_between

_MOST_THREADS = 16
_MOST = 32  # more than there are lengths in most test sets and steps in most samplers, which come again in the next round

INTENDED = "If that is intended, say so with max_traces=None, or filter fl.RetraceWarning."
RETRACED = "{fn} was traced anew in each of its last {count} calls. What differs each time: {change}. {advice} " + INTENDED
CHANGING = (
    "{name} of {fn} has had {count} values, the last of them {value}, and hardly a trace of one was used again. Pass "
    "mx.array({value}), unless it is used as a shape or an index. "
) + INTENDED
ADVICE = {
    "shape": "Pad to one of a few shapes, or compile with shapeless=True if it does not depend on them.",
    "number": "Hold it in an array (mx.array(...), in a module fl.buffer()), unless it is used as a shape or an index.",
    "learning rate": "Keep one optimizer, and put the rate into its state: opt.with_learning_rate(opt.init(model), rate).",
    "object": "It is equal to nothing but itself: make it, with what holds it, once and outside of the loop.",
    "static": "Pass what changes as arrays, or keep to a few values.",
}


class Retraces:
    """The traces of one jitted function that were hardly of use: the latest calls if each was traced, and the numbers given.

    It warns once of the first cause that it finds.
    """

    def __init__(self) -> None:
        self._row: list[Traced] = []
        self._numbers: dict[tuple[str, int], set[Any]] = {}
        self._is_over = False

    def add_numbers(
        self, fn: Callable[..., Any], static: Iterable[tuple[str, Any]], arrays: Sequence[mx.array], history: History
    ) -> None:
        """Note the numbers of a new trace, and warn of a place that has had many with arrays of the same shapes.

        Nothing is said if half of the traces were used again.

        Args:
            fn: The function.
            static: The names and the values of what is static in its arguments.
            arrays: The arrays in them.
            history: The traces before.
        """
        shapes = hash(tuple([(array.shape, array.dtype) for array in arrays]))
        for name, value in static:
            if self._is_over or not isinstance(value, Number) or isinstance(value, bool):
                continue
            seen, key = self._numbers.setdefault((name, shapes), set()), static_key(value)
            if key in seen:
                continue
            if len(seen) < _MOST - 1:
                seen.add(key)
            elif 2 * history.reused < history.count:
                self.end()
                said = {"name": name, "fn": function_name(fn), "count": _MOST, "value": describe(value)}
                warnings.warn(CHANGING.format(**said), RetraceWarning, stacklevel=level_of_caller())

    def add(self, fn: Callable[..., Any], traced: Traced, argument: Argument) -> None:
        """Note a trace, and warn of a shape or a static value that was another in each of many in a row.

        If other things differ as well, such as classes or modes, the calls are of many kinds, and nothing is said. Nor is it if
        a shape or a value comes again.

        Args:
            fn: The function.
            traced: What it was traced for.
            argument: Gives the names of arguments, as for :meth:`History.explain`.
        """
        if self._is_over:
            return
        self._row.append(traced)
        if len(self._row) < _MOST:
            return
        found = [changes_between(one, other, argument) for one, other in pairwise(self._row)]
        are_new = len(set(self._row)) == _MOST  # or else they were dropped to make room, as explain() says
        self.clear()
        changes, in_words = found[-1]
        kinds = {change.kind for each, _ in found for change in each}
        always = set.intersection(*[{change.path for change in each} for each, _ in found])
        if kinds in ({"shape"}, {"static"}) and always and are_new:
            self.end()
            change = next(each for each in changes if each.path in always)
            said = {"fn": function_name(fn), "count": _MOST, "change": in_words(change)}
            advice = ADVICE[_sort(change, traced)]
            warnings.warn(RETRACED.format(**said, advice=advice), RetraceWarning, stacklevel=level_of_caller())

    def clear(self) -> None:
        """Begin the row anew, since a trace was of use again."""
        self._row = []

    def end(self) -> None:
        """Say nothing any more."""
        self._is_over = True
        self._row, self._numbers = [], {}


def _sort(change: Change, traced: Traced) -> str:
    """Return for what sort of change there is advice."""
    if change.path.endswith(".learning_rate") and isinstance(change.after, Seen) and change.after.sort == "number":
        classes = [cls for structure in traced.structures for cls in structure.module_classes()]
        if any(hasattr(cls, "with_learning_rate") for cls in classes):
            return "learning rate"
    return change.after.sort if isinstance(change.after, Seen) else change.kind


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
        if self._count == _MOST_THREADS:
            warnings.warn(IN_THREADS.format(fn=fn, count=_MOST_THREADS), RetraceWarning, stacklevel=level_of_caller())

    def clear(self) -> None:
        """Begin anew, since a trace was of use again."""
        self._count = 0
