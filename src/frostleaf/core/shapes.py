"""The shape and dtype of an array, without the array."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs
import mlx.core as mx

from .pickling import from_picklable, to_picklable
from .words import describe, shape_and_dtype


def _as_shape(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(shape)


@attrs.frozen(repr=False)
class ShapeDtypeStruct:
    """The shape and the dtype of an array, in the place of one: a leaf of a tree, as an array is. Equal if both are.

    Attributes:
        shape: The length of each axis.
        dtype: The dtype. Default: ``mlx.core.float32``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.ShapeDtypeStruct((2, 3), mx.bfloat16)
    bf16[2,3]
    """

    shape: tuple[int, ...] = attrs.field(converter=_as_shape)
    dtype: mx.Dtype = mx.float32

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes that such an array takes."""
        return self.size * self.dtype.size

    def astype(self, dtype: mx.Dtype) -> ShapeDtypeStruct:
        """Return the shape with another dtype."""
        return ShapeDtypeStruct(self.shape, dtype)

    def __getattr__(self, name: str) -> Any:
        said = f"a ShapeDtypeStruct has no {name}"
        if hasattr(mx.array, name) and not name.startswith("__"):
            said += (
                ": it is a shape without values. Build the model, or write fl.eval_shape(model, ...) for shapes of the result"
            )
        raise AttributeError(said, name=name, obj=self)

    def __repr__(self) -> str:
        return shape_and_dtype(self.shape, self.dtype)

    def __reduce__(self) -> Any:
        return _restore, (self.shape, to_picklable(self.dtype))


# The leaves of a tree.
LEAF = mx.array, ShapeDtypeStruct


ONLY_SHAPES = (
    "{name} takes arrays, and was given a shape without values, {first}, as fl.eval_shape returns. Build what it takes, or "
    "write fl.eval_shape({name}, ...) for the shapes of the result"
)


def require_no_shapes(name: str, leaves: Iterable[Any]) -> None:
    """Require that no leaf is a shape, for the function of that name.

    Raises:
        TypeError: If one is.
    """
    first = next((leaf for leaf in leaves if isinstance(leaf, ShapeDtypeStruct)), None)
    if first is not None:
        raise TypeError(ONLY_SHAPES.format(name=name, first=describe(first)))


def as_array(leaf: mx.array | ShapeDtypeStruct) -> mx.array:
    """Return an array; for a shape, zeros, which MLX makes when somebody looks at them."""
    return leaf if isinstance(leaf, mx.array) else mx.zeros(leaf.shape, leaf.dtype)


@describe.register
def _(value: ShapeDtypeStruct, depth: int = 2) -> str:
    return repr(value)


def _restore(shape: tuple[int, ...], dtype: Any) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(shape, from_picklable(dtype))
