"""The arguments of a function: those that it is bound to already, and their names."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.definition import Node
from ..core.refused import ForeignArrayError, HiddenArrayError
from ..core.structure import flat_of
from .wrapping import Wrapped

# What is raised where an argument can't be taken apart.
REFUSED = (ForeignArrayError, HiddenArrayError)


def unbind(fn: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return the function inside a partial, method or module, and the arguments bound to it, the module included."""
    if isinstance(fn, functools.partial):
        inner, args, kwargs = unbind(fn.func)
        return inner, (*args, *fn.args), {**kwargs, **fn.keywords}
    if isinstance(fn, Node):
        return type(fn).__call__, (fn,), {}
    if isinstance(fn, types.MethodType) and isinstance(fn.__self__, Node):
        return fn.__func__, (fn.__self__,), {}
    if isinstance(fn, Wrapped) and flat_of(fn, hidden=True).leaves:
        return type(fn).__call__, (fn,), {}
    return fn, (), {}


def raise_with_name(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], hidden: bool = False) -> None:
    """Raise again, where an argument can't be taken apart, with its name in the path rather than its number.

    >>> import numpy as np
    >>> try:
    ...     raise_with_name(lambda model, batch: 0, (1, {"x": np.zeros(2)}), {})
    ... except ForeignArrayError as error:
    ...     print(error)
    a numpy.ndarray of shape (2,) at batch.x is no leaf of a tree: leaves are mx.array. Convert it with mx.array(...).
    """
    code = getattr(inspect.unwrap(fn), "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code else ()
    by_position = {names[place] if place < len(names) else f"argument {place}": value for place, value in enumerate(args)}
    flat_of({**by_position, **kwargs}, hidden)
