"""Initial values, drawn as ``mlx.nn`` draws them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx


def uniform(scale: float, shape: Sequence[int], dtype: mx.Dtype, key: mx.array | None) -> mx.array:
    """Return numbers uniform in ``[-scale, scale)``, drawn from ``mx.random``'s own state if there is no key."""
    if dtype == mx.float64:  # which MLX does not draw
        return uniform(scale, shape, mx.float32, key).astype(dtype)
    return mx.random.uniform(-scale, scale, shape, dtype, key)


def normal(scale: float, shape: Sequence[int], dtype: mx.Dtype, key: mx.array | None) -> mx.array:
    """Return numbers of a normal distribution of standard deviation ``scale``, drawn as :func:`uniform` draws."""
    if dtype == mx.float64:
        return normal(scale, shape, mx.float32, key).astype(dtype)
    return mx.random.normal(shape, dtype, scale=scale, key=key)


def split(key: mx.array | None, count: int) -> list[mx.array | None]:
    """Return a key for each of ``count`` parts of a layer, or as many times ``None``."""
    return [None] * count if key is None else list(mx.random.split(key, count))
