"""What the result of a function may depend on besides its arguments: the context of the call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import attrs
import mlx.core as mx


@attrs.frozen
class Context:
    """The settings in force where a jitted function is called.

    Attributes:
        plain: Whether it runs as plain Python.
        dtype: The default dtype of new layers.
    """

    plain: bool = False
    dtype: mx.Dtype = mx.float32


# One variable for all settings, since every call of a jitted function looks it up.
context: ContextVar[Context] = ContextVar("context", default=Context())  # noqa: B039


@contextmanager
def override(**changes: Any) -> Iterator[None]:
    """Change the context inside a ``with`` block, for this thread or ``asyncio`` task."""
    token = context.set(attrs.evolve(context.get(), **changes))
    try:
        yield
    finally:
        context.reset(token)
