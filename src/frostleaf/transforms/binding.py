"""The arguments that are bound to a function already."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from ..core.definition import Node


def unbind(fn: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return a function and the arguments already bound to it, the module that a method is bound to included."""
    if isinstance(fn, functools.partial):
        inner, args, kwargs = unbind(fn.func)
        return inner, (*args, *fn.args), {**kwargs, **fn.keywords}
    if isinstance(fn, Node):
        return type(fn).__call__, (fn,), {}
    if isinstance(fn, types.MethodType) and isinstance(fn.__self__, Node):
        return fn.__func__, (fn.__self__,), {}
    return fn, (), {}
