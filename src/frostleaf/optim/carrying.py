"""What of a state still applies to a model that was frozen, unfrozen or changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import mlx.core as mx

from ..tree.compare import describe
from ..tree.functions import dotted
from ..tree.vectors import laid_end_to_end, taken_apart
from .packing import LARGE, REST, Packed
from .parameters import Parameters


@attrs.frozen
class Trained:
    """Which arrays a packed tree trains: of each its dotted path, where it is packed, and its shape."""

    arrays: tuple[tuple[str, str, tuple[int, ...]], ...]

    def by_vector(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Return, for the name of each array of the packed tree, the names and shapes of the arrays in it."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        large = 0
        for name, place, shape in self.arrays:
            vector = f"vectors.{place}"
            if place == LARGE:
                vector, large = f"{LARGE}.{large}", large + 1
            found.setdefault(vector, {})[name] = shape
        return found

    def __repr__(self) -> str:
        return f"({len(self.arrays)} arrays)"


def trained_in(packed: Packed[Any]) -> Trained:
    """Return which arrays a packed tree trains."""
    layout = packed.layout
    arrays = zip(map(dotted, layout.structure.leaf_paths()), layout.places, layout.shapes, strict=True)
    return Trained(tuple([array for array in arrays if array[1] != REST]))


def kept(fresh: Mapping[str, mx.array], old: Mapping[str, mx.array], parameters: Parameters, state: Any) -> dict[str, mx.array]:
    """Return the fresh arrays, one for each parameter, or in the place of each the old one if it has its shape and dtype.

    Args:
        fresh: By the names of the parameters.
        old: By the names of the parameters that there were.
        parameters: Those that there are now.
        state: That which has the old arrays. For a packed model it says, somewhere inside, what is in each vector.
    """
    if not parameters.packed:
        return {name: _one_of(old.get(name), array) for name, array in fresh.items()}
    while not hasattr(state, "trained"):
        state = state.inner
    return kept_of_packed(fresh, old, trained_in(parameters.model), state.trained)


def kept_of_packed(
    fresh: Mapping[str, mx.array], old: Mapping[str, mx.array], now: Trained, then: Trained
) -> dict[str, mx.array]:
    """Return the fresh vectors, with the parts of the old ones that are of the same names, shapes and dtypes."""
    kept, before = dict(fresh), _apart(old, then)
    for vector, shapes in now.by_vector().items():
        if vector not in fresh:
            continue
        if [*shapes.items()] == [*then.by_vector().get(vector, {}).items()]:
            kept[vector] = _one_of(old.get(vector), fresh[vector])
        elif fresh[vector].size == _size(shapes):
            parts = _apart({vector: fresh[vector]}, now)
            laid = laid_end_to_end([_one_of(before.get(name), parts[name]) for name in shapes])
            kept[vector] = laid.reshape(fresh[vector].shape)
    return kept


def _one_of(old: mx.array | None, fresh: mx.array) -> mx.array:
    return old if isinstance(old, mx.array) and describe(old) == describe(fresh) else fresh


def _apart(vectors: Mapping[str, mx.array], trained: Trained) -> dict[str, mx.array]:
    """Return the arrays that are laid end to end in the vectors, by name; none of a vector that is not made of them."""
    apart: dict[str, mx.array] = {}
    for vector, shapes in trained.by_vector().items():
        if vector in vectors and vectors[vector].size == _size(shapes):
            apart.update(zip(shapes, taken_apart(vectors[vector].reshape(-1), [*shapes.values()]), strict=True))
    return apart


def _size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
