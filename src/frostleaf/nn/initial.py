"""Initial values, drawn as ``mlx.nn`` draws them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

NOT_A_KEY = "key must be an array of two uint32 numbers, such as mx.random.key(0), and was given as {key!r}"


def uniform(scale: float, shape: Sequence[int], dtype: mx.Dtype, key: mx.array | None) -> mx.array:
    """Return numbers uniform in ``[-scale, scale)``, drawn from ``mx.random``'s own state if there is no key."""
    if dtype == mx.float64:  # which MLX does not draw
        return uniform(scale, shape, mx.float32, key).astype(dtype)
    require_key(key)
    return mx.random.uniform(-scale, scale, shape, dtype, key)


def normal(scale: float, shape: Sequence[int], dtype: mx.Dtype, key: mx.array | None) -> mx.array:
    """Return numbers of a normal distribution of standard deviation ``scale``, drawn as :func:`uniform` draws."""
    if dtype == mx.float64:
        return normal(scale, shape, mx.float32, key).astype(dtype)
    require_key(key)
    return mx.random.normal(shape, dtype, scale=scale, key=key)


def split(key: mx.array | None, count: int) -> list[mx.array | None]:
    """Return a key for each of ``count`` parts of a layer, or as many times ``None``."""
    require_key(key)
    return [None] * count if key is None else list(mx.random.split(key, count))


def require_key(key: object) -> None:
    """Raise an error unless ``key`` is ``None`` or what MLX draws with.

    Raises:
        TypeError: If it is something else.
    """
    if key is not None and not (isinstance(key, mx.array) and key.dtype == mx.uint32 and key.shape == (2,)):
        raise TypeError(NOT_A_KEY.format(key=key))
