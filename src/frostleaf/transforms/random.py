"""Drawing random numbers from an explicit key. Only this file touches MLX's random state."""

from __future__ import annotations

import atexit
import functools
import threading
import time
from contextvars import ContextVar

import mlx.core as mx

from ..core.words import describe
from .context import Leaving, Scope

# Empty when the interpreter ends, and MLX with it. What is left open then, as by a generator, is not put back.
_alive = [True]
atexit.register(_alive.clear)


def rng(key: mx.array) -> Scope:
    """Draw everything inside a ``with`` block from ``key``, in place of the state of ``mx.random``.

    The same key gives the same numbers. Afterwards, even after an exception, the random state is what it was before. It also
    works in ``jit``, ``grad`` and ``vmap``, where ``key`` may be an argument of the function.

    MLX has one random state in each thread, so the key is in force for all that runs there until the block is left: while an
    ``asyncio`` task awaits something inside the block, and while a generator waits that has yielded inside it. Draw first, then
    await or yield. Layers, initial values, jitted functions and :func:`next_key` refuse to draw from the key of another task;
    a function of ``mx.random`` called directly can't.

    Args:
        key: A key from :func:`mlx.core.random.key` or :func:`mlx.core.random.split`: uint32 of shape (2,).

    Raises:
        TypeError: If ``key`` is not such a key.
        RuntimeError: If another task is inside such a block, on entering and from what draws there; on leaving, if one that was
            entered later has not been left, or in another thread. The state is put back even so, when the last is left.

    >>> import frostleaf as fl, mlx.core as mx
    >>> def draw():
    ...     with fl.rng(mx.random.key(7)):
    ...         return mx.random.normal((3,))
    >>> fl.tree.equal(draw(), draw())
    True
    """
    if not isinstance(key, mx.array) or key.shape != (2,) or key.dtype != mx.uint32:
        raise TypeError(f"fl.rng takes one key, u32[2], as from mx.random.key(seed), and was given {describe(key)}")
    return _Drawing(key)


class _Entered:
    """A block of :func:`rng` that has been entered.

    Attributes:
        before: The random state that leaving it puts back.
        thread: The thread that entered it.
        left: Whether it was left in another thread.
    """

    def __init__(self) -> None:
        self.before = saved_state()
        self.thread = threading.get_ident()
        self.left = False


class _Thread(threading.local):
    """What belongs to this thread.

    Attributes:
        state: MLX's list of its random state.
        entered: The blocks that it is in, the innermost last.
    """

    def __init__(self) -> None:
        self.state: list[mx.array] = mx.random.state  # type: ignore[assignment]  # in MLX 0.32.0 a list for each thread
        self.entered: list[_Entered] = []
        if threading.current_thread() is not threading.main_thread():
            _other_threads.add(threading.get_ident())


_PAUSE = 0.05  # seconds
_other_threads: set[int] = set()


@atexit.register
def _let_threads_end() -> None:
    # MLX drops the traces and the random state of a thread only after Python has joined it, and takes the GIL for that. If the
    # interpreter is being taken down by then, the process aborts.
    if _other_threads:
        time.sleep(_PAUSE)


_thread = _Thread()
# The innermost block as this task sees it.
_innermost: ContextVar[_Entered | None] = ContextVar("innermost", default=None)

INTERLEAVED = (
    "another task waits inside fl.rng, and MLX has one random state in each thread, so that this one would draw from its key. "
    "Give what draws here key=mx.random.key(...), or draw once the other has left fl.rng, outside which it should await"
)
OUT_OF_ORDER = (
    "this fl.rng was left before one that was entered after it, in another task or generator, so the numbers in between were "
    "not all drawn from the key of their own block. Draw inside fl.rng, and await or yield outside it"
)
ELSEWHERE = "this fl.rng was entered in another thread, whose random state it can't put back from here"


class _Drawing(Scope):
    def __init__(self, key: mx.array) -> None:
        super().__init__()
        self._key = key

    def _enter(self, leaving: Leaving) -> None:
        entered = _thread.entered
        while entered and entered[-1].left:
            restore_state(entered[-1].before)
            entered.pop()
        require_own_state()
        block = _Entered()
        leaving().undo = functools.partial(_put_back, block, entered)
        entered.append(block)
        _innermost.set(block)
        restore_state(self._key)


def require_own_state() -> None:
    """Check that the next number is not drawn from the key of another task.

    Raises:
        RuntimeError: If another task is inside :func:`rng`.
    """
    entered = _thread.entered
    if entered and not entered[-1].left and entered[-1] is not _innermost.get():
        raise RuntimeError(INTERLEAVED)


def _put_back(block: _Entered, entered: list[_Entered], alive: list[bool] = _alive) -> Exception | None:
    if not alive or block not in entered:
        return None
    if block.thread != threading.get_ident():
        block.left = True
        return RuntimeError(ELSEWHERE)
    position = entered.index(block)
    if position < len(entered) - 1:
        entered[position + 1].before = block.before
        entered.remove(block)
        return RuntimeError(OUT_OF_ORDER)
    restore_state(block.before)
    if _innermost.get() is block:
        _innermost.set(entered[position - 1] if position else None)
    entered.pop()
    return None


class unchanged_state(Scope):  # noqa: N801
    """Leave the random state as it was before a ``with`` block."""

    def _enter(self, leaving: Leaving) -> None:
        leaving().undo = functools.partial(_restore, saved_state())


def _restore(before: mx.array, alive: list[bool] = _alive) -> None:
    if alive and saved_state() is not before:
        restore_state(before)


def next_key() -> mx.array:
    """Draw a key, uint32 of shape (2,), from the random state: the one that the next draw would have used.

    Inside :func:`rng` it comes from the key given there.

    Raises:
        RuntimeError: If another task is inside :func:`rng`.

    >>> import frostleaf as fl, mlx.core as mx
    >>> mx.random.seed(0)
    >>> drawn = mx.random.normal((2,), key=fl.next_key())
    >>> mx.random.seed(0)
    >>> fl.tree.equal(drawn, mx.random.normal((2,)))
    True
    """
    require_own_state()
    carried, key = mx.random.split(saved_state())
    restore_state(carried)
    return key


def saved_state() -> mx.array:
    """Return this thread's random state. MLX replaces the array whenever a number is drawn."""
    return _thread.state[0]


def restore_state(state: mx.array) -> None:
    """Make ``state`` this thread's random state."""
    try:
        _put(state)
    except BaseException:  # an interrupt
        _put(state)
        raise


def _put(state: mx.array) -> None:
    # Seeding puts a new array in place; the old one, which somebody may hold, must not be written to.
    mx.random.seed(0)
    _thread.state[0][:] = state
