"""What carries over from a state to one for a model that was frozen, unfrozen or changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..tree.vectors import concatenate, split
from .packing import TrainedArrays, trained_arrays_of
from .parameters import Parameters


def carry_over(
    fresh: Mapping[str, mx.array], old: Mapping[str, mx.array], parameters: Parameters, state: Any
) -> dict[str, mx.array]:
    """Return the fresh arrays, each replaced by the old one of that name if that has the same shape, in the fresh one's dtype.

    Args:
        fresh: An array for each parameter, by name.
        old: Arrays by the names of the parameters before.
        parameters: The parameters now.
        state: The state with the old arrays. For a packed model it records, maybe in an inner state, what each vector holds.
    """
    if not parameters.is_packed:
        return {name: old_or_fresh(old.get(name), array) for name, array in fresh.items()}
    while not hasattr(state, "trained"):
        state = state.inner
    return carry_over_packed(fresh, old, trained_arrays_of(parameters.model), state.trained)


def carry_over_packed(
    fresh: Mapping[str, mx.array], old: Mapping[str, mx.array], now: TrainedArrays, then: TrainedArrays
) -> dict[str, mx.array]:
    """Return the fresh vectors, with the arrays in them replaced by old ones of the same names and shapes."""
    result, old_arrays = dict(fresh), _unpacked(old, then)
    for vector, shapes in now.by_vector().items():
        if vector not in fresh:
            continue
        if [*shapes.items()] == [*then.by_vector().get(vector, {}).items()]:
            result[vector] = old_or_fresh(old.get(vector), fresh[vector])
        elif fresh[vector].size == _size(shapes):
            arrays = _unpacked({vector: fresh[vector]}, now)
            packed = concatenate([old_or_fresh(old_arrays.get(name), arrays[name]) for name in shapes])
            result[vector] = packed.reshape(fresh[vector].shape)
    return result


def old_or_fresh(old: Any, fresh: mx.array) -> mx.array:
    """Return an old array in the dtype of the fresh one, or the fresh one if the two have other shapes or kinds of numbers."""
    if not isinstance(old, mx.array) or old.shape != fresh.shape:
        return fresh
    if old.dtype == fresh.dtype:
        return old
    both_floating = all(mx.issubdtype(each.dtype, mx.floating) for each in (old, fresh))
    return old.astype(fresh.dtype) if both_floating else fresh


def _unpacked(vectors: Mapping[str, mx.array], trained: TrainedArrays) -> dict[str, mx.array]:
    """Return the arrays in the vectors by name. A vector of another size, such as a scalar for each, holds none."""
    arrays: dict[str, mx.array] = {}
    for vector, shapes in trained.by_vector().items():
        if vector in vectors and vectors[vector].size == _size(shapes):
            arrays.update(zip(shapes, split(vectors[vector].reshape(-1), [*shapes.values()]), strict=True))
    return arrays


def _size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
