"""The shape and dtype of an array, without the array."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs
import mlx.core as mx

from ..core.pickling import from_picklable, to_picklable
from ..core.words import shape_and_dtype


def _as_shape(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(shape)


@attrs.frozen(repr=False)
class ShapeDtypeStruct:
    """The shape and the dtype of an array, without the array. Compared and hashed by both; a static value in a tree.

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

    def __repr__(self) -> str:
        return shape_and_dtype(self.shape, self.dtype)

    def __reduce__(self) -> Any:
        return _restore, (self.shape, to_picklable(self.dtype))


def zeros_for_struct(value: Any) -> Any:
    """Return zeros for a :class:`ShapeDtypeStruct`, which MLX computes only if they are used; any other value as it is."""
    return mx.zeros(value.shape, value.dtype) if isinstance(value, ShapeDtypeStruct) else value


def _restore(shape: tuple[int, ...], dtype: Any) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(shape, from_picklable(dtype))
