"""The dtype in which layers are built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from ..transforms.context import context, within

NOT_FLOATING = "a layer can't be made in dtype {dtype!r}. Give a floating-point mx.Dtype, such as mx.bfloat16{none}."


@contextmanager
def default_dtype(dtype: mx.Dtype) -> Iterator[None]:
    """Return a context in which layers that are not told their dtype are built in this one.

    It holds for the thread or ``asyncio`` task that entered it, and for nothing but building: a layer that is called
    computes in the dtypes of its arrays and its input.

    Args:
        dtype: A floating-point dtype.

    Raises:
        TypeError: If ``dtype`` is something else.

    >>> import frostleaf as fl, mlx.core as mx
    >>> with fl.default_dtype(mx.bfloat16):
    ...     layers = fl.nn.Linear(2, 3), fl.nn.Linear(2, 3, dtype=mx.float32)
    >>> [layer.weight.dtype for layer in (*layers, fl.nn.Linear(2, 3))]
    [mlx.core.bfloat16, mlx.core.float32, mlx.core.float32]
    """
    with within(dtype=_required(dtype, "")):
        yield


def floating(dtype: mx.Dtype | None) -> mx.Dtype:
    """Return the dtype in which a layer makes its arrays: ``dtype``, or the default for ``None``.

    Raises:
        TypeError: If it is not a floating-point ``mx.Dtype``.

    >>> floating(None), floating(mx.float16)
    (mlx.core.float32, mlx.core.float16)
    """
    return context.get().dtype if dtype is None else _required(dtype, "; None is that of fl.default_dtype, or mx.float32")


def _required(dtype: mx.Dtype, none: str) -> mx.Dtype:
    if not isinstance(dtype, mx.Dtype) or not mx.issubdtype(dtype, mx.floating):
        raise TypeError(NOT_FLOATING.format(dtype=dtype, none=none))
    return dtype
