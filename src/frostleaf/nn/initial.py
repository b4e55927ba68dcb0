"""Initial values, drawn as ``mlx.nn`` draws them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..core.words import describe
from ..transforms.random import require_own_state


def uniform(scale: float, shape: Sequence[int], dtype: mx.Dtype, key: mx.array | None) -> mx.array:
    """Draw numbers uniform in ``[-scale, scale)``, from ``mx.random``'s own state if there is no key."""
    if dtype == mx.float64:  # MLX does not draw in it
        return uniform(scale, shape, mx.float32, key).astype(dtype)
    require_own_state() if key is None else require_key(key)
    return mx.random.uniform(-scale, scale, shape, dtype, key)


def normal(scale: float, shape: Sequence[int], dtype: mx.Dtype, key: mx.array | None) -> mx.array:
    """Draw numbers from a normal distribution of mean 0 and standard deviation ``scale``, as :func:`uniform` draws."""
    if dtype == mx.float64:
        return normal(scale, shape, mx.float32, key).astype(dtype)
    require_own_state() if key is None else require_key(key)
    return mx.random.normal(shape, dtype, scale=scale, key=key)


def split(key: mx.array | None, count: int) -> list[mx.array | None]:
    """Return ``count`` keys made of one, or as many times ``None``."""
    if key is None:
        return [None] * count
    require_key(key)
    return list(mx.random.split(key, count))


def require_key(key: object) -> None:
    """Check that ``key`` is ``None`` or a key of MLX.

    Raises:
        TypeError: If it is something else.
    """
    if key is not None and not (isinstance(key, mx.array) and key.dtype == mx.uint32 and key.shape == (2,)):
        raise TypeError(
            f"key must be an array of two uint32 numbers, such as mx.random.key(0), and was given as {describe(key)}"
        )
