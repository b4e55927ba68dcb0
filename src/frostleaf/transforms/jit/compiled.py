"""The function given to ``mx.compile``, made so that MLX forgets what is dropped and the random state is left as it was."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..collectives import restore_tokens, settle, stages, tokens, unchanged_tokens
from ..context import appended
from ..random import restore_state, saved_state, unchanged_state

OnLeaves = Callable[[list[mx.array]], tuple[list[mx.array], Any]]


def changed(ended: list[mx.array], begun: list[mx.array]) -> list[mx.array]:
    """Return those of the arrays that are others than they were."""
    return [now for now in ended if not any(now is old for old in begun)]


class Shell:
    """A function of arrays and the random state, in the form that MLX compiles.

    It returns what the function returns, arrays and an object, and the new random state in a list, which is empty if no numbers
    were drawn. MLX keeps the object with the trace, and returns it with each result of that trace. Where arrays are exchanged
    with other processes, the token of that is given with the random state, in a list, and after it the stages up to there are
    returned and a new token.

    MLX forgets a trace under a lock that the next call in that thread needs. No Python code may run meanwhile, as it would if
    the trace held the last reference to something with a ``__del__``. So its contents are held here for longer: the ``spec`` of
    the object, and what :data:`outliving` is given.

    MLX knows a compiled function by its address and has a cache in each thread, but forgets a dropped function in only one of
    them: the thread of the drop or of the last call. So a shell that was traced in other threads stays, empty, until each of
    them has forgotten it. Thus no other function is ever taken for it, and its traces do not pile up there.
    """

    __slots__ = ("fn", "held", "threads")

    _retired: dict[int, list[Shell]] = {}  # noqa: RUF012
    _lock = threading.RLock()  # reentrant, since shells are retired whenever garbage is collected

    def __init__(self, fn: OnLeaves) -> None:
        self.fn: OnLeaves | None = fn
        self.held = threading.local()
        self.threads: set[int] = set()

    def __call__(self, given: list[mx.array], carried: mx.array | list[mx.array]) -> tuple[list[mx.array], Any, list[mx.array]]:
        if self.fn is None:
            return [], None, []
        state, *order = carried if isinstance(carried, list) else [carried]
        self.threads.add(threading.get_ident())
        held: list[Any] = []
        settle()
        with unchanged_state(), unchanged_tokens(), appended(outliving.tracing, held):
            restore_state(state)
            restore_tokens(order)
            begun = [saved_state(), *tokens()]
            outputs, made = self.fn(given)
            ended = [saved_state(), *stages(), *tokens()]
        self.prune()
        self.held.traces.append((weakref.ref(made), made.spec, held))
        return outputs, made, changed(ended, begun)

    def prune(self) -> None:
        """Release what is held for traces of this thread that MLX has forgotten."""
        self.held.traces = [each for each in getattr(self.held, "traces", ()) if each[0]() is not None]

    def retire(self, get_ident: Callable[[], int] = threading.get_ident) -> None:
        """Release the function, and have the other threads that traced it forget it."""
        # get_ident is a default because this may run when the interpreter ends, after the module's own names are gone.
        self.fn = None
        if not self.threads <= {get_ident()}:
            with self._lock:
                for thread in self.threads:
                    self._retired.setdefault(thread, []).append(self)

    @classmethod
    def forget_retired(cls) -> None:
        """Have MLX forget, in this thread, what was traced here and has been dropped."""
        retired = cls._retired.get(threading.get_ident())
        while retired:
            shell = retired[-1]
            # Here the thread of the last call and that of the drop are the same.
            compiled = mx.compile(shell)
            compiled([], saved_state())
            dropped.add(compiled, shell)
            retired.remove(shell)  # afterwards, or an interrupt would lose it
            del compiled
        dropped.clear()


class Outliving(threading.local):
    """Functions given to MLX in this thread during a trace, which must outlive the trace."""

    def __init__(self) -> None:
        self.tracing: list[list[Any]] = []

    def add(self, fn: Callable[..., Any]) -> None:
        """Keep a function alive with every trace now being made."""
        for held in self.tracing:
            held.append(fn)


class Dropped(threading.local):
    """Compiled functions that this thread drops one after another.

    A trace may hold the last reference to another compiled function, inside a checkpoint. MLX ends the process if that is
    dropped while it forgets the trace, so it is dropped afterwards.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, Shell]] = []
        self.busy: list[bool] = []

    def add(self, compiled: Any, shell: Shell) -> None:
        """Queue a compiled function to be dropped by :meth:`clear`."""
        self.waiting.append((compiled, shell))

    def clear(self) -> None:
        """Drop all that are queued, unless an outer call is doing so."""
        if not self.busy:
            with appended(self.busy, True):
                while self.waiting:
                    compiled, shell = self.waiting.pop()
                    del compiled
                    shell.prune()


outliving = Outliving()
dropped = Dropped()
# When the interpreter ends, MLX forgets all traces at once: what they held is dropped after that.
atexit.register(dropped.busy.append, True)
