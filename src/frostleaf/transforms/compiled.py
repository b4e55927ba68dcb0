"""What ``mx.compile`` is given, so that it forgets what has been dropped and leaves the random state as it was."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..tree.structure import Group
from .random import restore_state, saved_state

OnGroups = Callable[[list[Group]], tuple[list[Group], Any]]


class Shell:
    """A function of arrays, in groups, and of the random state, as MLX is to compile it.

    It returns what the function returns, arrays in groups and anything else, and the new random state in a list, which is empty
    if no numbers were drawn. MLX keeps what is not an array with the trace, and hands it out with each result of that trace.

    MLX knows a compiled function by its address, has a cache in each thread, and forgets a function that is dropped in one of
    them: that of the drop or of the last call. One that was traced in other threads stays, empty, until each of them has
    forgotten it, so that no other function is ever taken for it, and its traces do not pile up there.
    """

    __slots__ = ("fn", "threads")

    _retired: dict[int, list[Shell]] = {}  # noqa: RUF012
    _lock = threading.RLock()  # reentrant, since shells are retired whenever garbage is collected

    def __init__(self, fn: OnGroups) -> None:
        self.fn: OnGroups | None = fn
        self.threads: set[int] = set()

    def __call__(self, given: list[Group], state: mx.array) -> tuple[list[Group], Any, list[mx.array]]:
        if self.fn is None:
            return [], None, []
        self.threads.add(threading.get_ident())
        outside = saved_state()
        try:
            restore_state(state)
            begun = saved_state()
            outputs, made = self.fn(given)
            drawn = saved_state()
        finally:
            restore_state(outside)
        return outputs, made, [] if drawn is begun else [drawn]

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
            mx.compile(shell)([], saved_state())


class Dropped(threading.local):
    """Compiled functions that this thread drops one after another.

    A trace may hold the last reference to another compiled function, inside a checkpoint. MLX ends the process if that goes
    while MLX forgets the trace, so it goes afterwards.
    """

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.busy = False

    def clear(self) -> None:
        """Drop all that are waiting, unless that is being done further out."""
        if not self.busy:
            self.busy = True
            while self.waiting:
                self.waiting.pop()
            self.busy = False


dropped = Dropped()
# When the interpreter ends, MLX forgets all traces at once: what they held is dropped after that.
atexit.register(setattr, dropped, "busy", True)
