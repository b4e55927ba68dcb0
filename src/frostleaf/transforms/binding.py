"""The arguments that a function is bound to already."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from ..core.definition import Node
from ..core.structure import flat_of
from .wrapping import Wrapped


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
