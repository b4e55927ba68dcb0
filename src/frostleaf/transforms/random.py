"""Drawing random numbers from an explicit key. Only this file touches MLX's random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from ..core.words import describe


@contextmanager
def rng(key: mx.array) -> Iterator[None]:
    """Draw all random numbers inside a ``with`` block from ``key`` instead of the state of ``mx.random``.

    The same key gives the same numbers. Afterwards, even after an exception, the random state is what it was before. It also
    works in ``jit``, ``grad`` and ``vmap``, where ``key`` may be an argument of the function.

    Args:
        key: A key from :func:`mlx.core.random.key` or :func:`mlx.core.random.split`: uint32 of shape (2,).

    Raises:
        TypeError: If ``key`` is not such a key.

    >>> import frostleaf as fl, mlx.core as mx
    >>> def draw():
    ...     with fl.rng(mx.random.key(7)):
    ...         return mx.random.normal((3,))
    >>> fl.tree.equal(draw(), draw())
    True
    """
    if not isinstance(key, mx.array) or key.shape != (2,) or key.dtype != mx.uint32:
        raise TypeError(f"fl.rng takes one key, u32[2], as from mx.random.key(seed), and was given {describe(key)}")
    before = saved_state()
    restore_state(key)
    try:
        yield
    finally:
        restore_state(before)


def next_key() -> mx.array:
    """Draw a key, uint32 of shape (2,), from the random state: the one that the next draw would have used.

    Inside :func:`rng` it comes from the key given there.

    >>> import frostleaf as fl, mlx.core as mx
    >>> mx.random.seed(0)
    >>> drawn = mx.random.normal((2,), key=fl.next_key())
    >>> mx.random.seed(0)
    >>> fl.tree.equal(drawn, mx.random.normal((2,)))
    True
    """
    carried, key = mx.random.split(saved_state())
    restore_state(carried)
    return key


def saved_state() -> mx.array:
    """Return this thread's random state. MLX replaces the array whenever a number is drawn."""
    return _state()[0]


def restore_state(state: mx.array) -> None:
    """Make ``state`` this thread's random state."""
    # Seeding puts in a new array to write to: other code may hold the old one.
    mx.random.seed(0)
    _state()[0][:] = state


def _state() -> list[mx.array]:
    return mx.random.state  # type: ignore[return-value]  # in MLX 0.32.0 each thread finds a list of its own here
