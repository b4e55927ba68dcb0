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
        _Shell.forget_retired()
        self._shell = _Shell(fn)
        state: Any = mx.random.state
        self._call: Flat = mx.compile(self._shell, inputs=state, outputs=state, shapeless=shapeless)

    def __call__(self, arrays: list[mx.array]) -> tuple[list[mx.array], Any]:
        before = saved_state()
        try:
            return self._call(arrays)
        except BaseException as error:
            restore_state(before)
            if not isinstance(error, ValueError) or UNCAPTURED not in str(error):
                raise
        # The function reads from outside an array that it was given as well, and MLX can't tell constant and argument apart.
        try:
            return self._call([mx.contiguous(array) for array in arrays])
        except BaseException:
            restore_state(before)
            raise

    def __del__(self) -> None:
        self._shell.retire()


class _Shell:
    """What MLX is given to compile.

    MLX knows a compiled function by its address, has a cache in each thread, and forgets a function that is dropped in one of
    them: that of the drop or of the last call. One that was traced in other threads stays, empty, until each of them has
    forgotten it, so that no other function is ever taken for it, and its traces do not pile up there.
    """

    __slots__ = ("fn", "threads")

    _retired: dict[int, list[_Shell]] = {}  # noqa: RUF012
    _lock = threading.RLock()  # reentrant, since shells are retired whenever garbage is collected

    def __init__(self, fn: Flat) -> None:
        self.fn: Flat | None = fn
        self.threads: set[int] = set()

    def __call__(self, arrays: list[mx.array]) -> tuple[list[mx.array], Any]:
        if self.fn is None:
            return [], None
        self.threads.add(threading.get_ident())
        return self.fn(arrays)

    def retire(self, get_ident: Callable[[], int] = threading.get_ident) -> None:
        # get_ident is kept here because, when the interpreter ends, this may run after the module's own names are gone.
        self.fn = None
        if not self.threads <= {get_ident()}:
            with self._lock:
                for thread in self.threads:
                    self._retired.setdefault(thread, []).append(self)

    @classmethod
    def forget_retired(cls) -> None:
        """Have MLX forget, in this thread, what was traced here and has been dropped."""
        with cls._lock:
            retired = cls._retired.pop(threading.get_ident(), ())
        for shell in retired:
            # Here the thread of the last call and that of the drop are the same.
            mx.compile(shell)([])
