"""The shapes and dtypes of a result, without computing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

import mlx.core as mx

from ..core.shapes import ShapeDtypeStruct, as_array
from ..tree.functions import flatten, unflatten
from .binding import REFUSED, raise_with_name, unbind
from .collectives import restore_tokens, tokens, unchanged_tokens
from .context import setting
from .random import unchanged_state
from .stateful import records
from .without_values import explained
from .wrapping import RUNS_LATER, require_runs_when_called

R = TypeVar("R")


@overload
def eval_shape(fn: Callable[..., mx.array], /, *args: Any, **kwargs: Any) -> ShapeDtypeStruct: ...


@overload
def eval_shape(fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> R: ...


def eval_shape(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Trace ``fn(*args, **kwargs)`` and return its result with a :class:`ShapeDtypeStruct` for each array.

    Nothing is computed and no memory is allocated for the result: the function is only traced, as by :func:`jit`. A module
    comes out as a module. The random state does not change.

    Args:
        fn: A function, a method or a module. It must not use the values of its arguments in Python.
        *args, **kwargs: Trees of arrays, of :class:`ShapeDtypeStruct`, or of both.

    Raises:
        TypeError: If ``fn`` is a generator or coroutine function.
        ValueError: If ``fn`` evaluates an array of its arguments, as ``item()`` does.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.eval_shape(fl.nn.Linear, 50_000, 50_000)
    Linear(weight=f32[50000,50000], bias=f32[50000])
    >>> fl.eval_shape(fl.nn.Linear(2, 3), fl.ShapeDtypeStruct((7, 2)))
    f32[7,3]
    """
    inner, bound_args, bound_kwargs = unbind(fn)
    require_runs_when_called(inner, RUNS_LATER.format(transformation="fl.eval_shape"))
    every = (*bound_args, *args), {**bound_kwargs, **kwargs}
    try:
        given, structure = flatten(every)
    except REFUSED:
        raise_with_name(inner, *every)
        raise
    arrays = [as_array(leaf) for leaf in given]
    result: Any = None

    def on_leaves(leaves: list[mx.array], order: list[mx.array]) -> list[mx.array]:
        nonlocal result
        restore_tokens(order)  # which have no values here either
        positional, named = unflatten(structure, leaves)
        with explained("fl.eval_shape", inner):
            made = inner(*positional, **named)
        out, out_structure = flatten(made)
        result = unflatten(out_structure, [ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in out])
        return []

    outer = records.get()
    # What layers record here has no values.
    with unchanged_state(), unchanged_tokens(), setting(records, dict(outer or {})):
        mx.compile(on_leaves)(arrays, tokens())
    return result
