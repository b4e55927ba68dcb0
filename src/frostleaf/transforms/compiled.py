"""``mx.compile`` for a function of a list of arrays, without its traps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from .random import restore_state, saved_state

UNCAPTURED = "uncaptured inputs"  # as MLX words it

Flat = Callable[[list[mx.array]], tuple[list[mx.array], Any]]


class Compiled:
    """A compiled function of a list of arrays that returns a list of arrays, and whatever else it made of its trace.

    MLX keeps what is not an array with the trace, and hands it out with each result of that trace. The random state is
    threaded through, and is what it was before if the call raises: MLX would leave a placeholder in it.
    """

    def __init__(self, fn: Flat, shapeless: bool) -> None:
        self._shell = _Shell(fn)
        state: Any = mx.random.state
        self._call: Flat = mx.compile(self._shell, inputs=state, outputs=state, shapeless=shapeless)

    def __call__(self, arrays: list[mx.array]) -> tuple[list[mx.array], Any]:
        before = saved_state()
        try:
            return self._call(arrays)
        except ValueError as error:
            restore_state(before)
            if UNCAPTURED not in str(error):
                raise
        except BaseException:
            restore_state(before)
            raise
        self._shell.count -= 1
        # The function reads from outside an array that it was given as well, and MLX can't tell constant and argument apart.
        return self._call([mx.contiguous(array) for array in arrays])

    @property
    def trace_count(self) -> int:
        """How often the function has been traced so far."""
        return self._shell.count

    def __del__(self) -> None:
        self._shell.retire()


class _Shell:
    """What MLX is given to compile.

    MLX knows a compiled function by its address, has a cache in each thread, and forgets a function in the thread in which it
    is dropped only. So that no other function is ever taken for it, one that was traced elsewhere stays, empty, where it was.
    """

    __slots__ = ("count", "fn", "threads")

    _kept: list[_Shell] = []  # noqa: RUF012

    def __init__(self, fn: Flat) -> None:
        self.fn: Flat | None = fn
        self.threads: set[int] = set()
        self.count = 0

    def __call__(self, arrays: list[mx.array]) -> tuple[list[mx.array], Any]:
        assert self.fn is not None
        self.threads.add(threading.get_ident())
        result = self.fn(arrays)
        self.count += 1
        return result

    def retire(self) -> None:
        self.fn = None
        if not self.threads <= {threading.get_ident()}:
            self._kept.append(self)
