"""Shapes and dtypes of results, without the results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import mlx.core as mx

from ..containers import packed, unpacked
from ..tree.compare import describe
from ..tree.functions import flatten, unflatten
from .jit import _unbound
from .random import restore_state, saved_state
from .stateful import _records


def _as_shape(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(shape)


@attrs.frozen(repr=False)
class ShapeDtypeStruct:
    """The shape and the dtype of an array, in the place of one. Equal and of equal hash if both are; static in a tree.

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
        letters = describe(mx.zeros((), self.dtype)).removesuffix("[]")
        return f"{letters}[{','.join(map(str, self.shape))}]"

    def __reduce__(self) -> Any:
        return _restore, (self.shape, packed(self.dtype))


def eval_shape(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Return what ``fn(*args, **kwargs)`` would, with a :class:`ShapeDtypeStruct` in the place of each array.

    Nothing is computed and no memory is allocated for the result: the function is only traced, as by :func:`jit`. A module
    comes out as a module. The random state is left as it was.

    Args:
        fn: A function, a method or a module. It must not look at the values of its arguments.
        *args, **kwargs: Trees of arrays, of :class:`ShapeDtypeStruct`, or of both.

    Raises:
        ValueError: If ``fn`` evaluates an array of its arguments, as ``item()`` does.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.eval_shape(fl.nn.Linear, 50_000, 50_000)
    Linear(weight=f32[50000,50000], bias=f32[50000])
    >>> fl.eval_shape(fl.nn.Linear(2, 3), fl.ShapeDtypeStruct((7, 2)))
    f32[7,3]
    """
    inner, bound_args, bound_kwargs = _unbound(fn)
    given, form = flatten(((*bound_args, *args), {**bound_kwargs, **kwargs}))
    arrays, structure = flatten(unflatten(form, given, static=_placeholder))
    result: Any = None

    def on_leaves(leaves: list[mx.array]) -> list[mx.array]:
        nonlocal result
        positional, named = unflatten(structure, leaves)
        out, out_structure = flatten(inner(*positional, **named))
        result = unflatten(out_structure, [ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in out])
        return []

    before, records = saved_state(), _records.get()
    token = _records.set(None if records is None else dict(records))  # what layers record here has no values
    try:
        mx.compile(on_leaves)(arrays)
    finally:
        _records.reset(token)
        restore_state(before)
    return result


def _placeholder(value: Any) -> Any:
    # MLX makes the zeros when somebody looks at them, and nobody does.
    return mx.zeros(value.shape, value.dtype) if isinstance(value, ShapeDtypeStruct) else value


def _restore(shape: tuple[int, ...], dtype: Any) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(shape, unpacked(dtype))
