"""The dtype in which layers are built."""

from __future__ import annotations

import mlx.core as mx

from ..core.words import describe
from ..transforms.context import Scope, context, override


def default_dtype(dtype: mx.Dtype) -> Scope:
    """Build layers in this dtype inside the context, unless they are given another.

    It holds for the thread or ``asyncio`` task that entered it, and for building only: a layer computes in the dtypes of its
    arrays and its input.

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
    return override(dtype=_require_floating(dtype))


def layer_dtype(dtype: mx.Dtype | None) -> mx.Dtype:
    """Return the dtype in which a layer makes its arrays: ``dtype``, or the default for ``None``.

    Raises:
        TypeError: If it is not a floating-point ``mx.Dtype``.

    >>> layer_dtype(None), layer_dtype(mx.float16)
    (mlx.core.float32, mlx.core.float16)
    """
    if dtype is None:
        return context.get().dtype
    return _require_floating(dtype, "; None is that of fl.default_dtype, or mx.float32")


def _require_floating(dtype: mx.Dtype, advice: str = "") -> mx.Dtype:
    if not isinstance(dtype, mx.Dtype) or not mx.issubdtype(dtype, mx.floating):
        wanted = f"Give a floating-point mx.Dtype, such as mx.bfloat16{advice}"
        raise TypeError(f"a layer can't be made in dtype {describe(dtype)}. {wanted}.")
    return dtype
