"""Rewriting values that can't be pickled so that they can be."""

from __future__ import annotations

import functools
import importlib
import sys
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx

from .containers import with_items
from .words import dtype_name

_MLX_FUNCTIONS = {type(mx.tanh), type(mx.compile(mx.tanh))}


class Named(NamedTuple):
    """A value that is pickled by name, as an attribute of a module."""

    module: str
    name: str


class Bound(NamedTuple):
    """A partial function that is pickled in parts."""

    func: Any
    args: Any
    keywords: Any


def to_picklable(value: Any) -> Any:
    """Rewrite a value so that it can be pickled. Mapping proxies, and MLX's dtypes and functions, can't be pickled directly.

    >>> to_picklable((mx.float16, mx.tanh))
    (Named(module='mlx.core', name='float16'), Named(module='mlx.core', name='tanh'))
    """
    if isinstance(value, tuple):
        return with_items(value, [to_picklable(item) for item in value])
    if isinstance(value, MappingProxyType):
        return {key: to_picklable(item) for key, item in value.items()}
    if type(value) is frozenset:
        return frozenset(to_picklable(item) for item in value)
    if type(value) is functools.partial:
        return Bound(to_picklable(value.func), to_picklable(value.args), to_picklable(MappingProxyType(value.keywords)))
    if value is MappingProxyType:
        return Named("types", "MappingProxyType")
    if isinstance(value, mx.Dtype):
        name = dtype_name(value)
        return Named("mlx.core", name if hasattr(mx, name) else f"{name}_")
    if type(value) in _MLX_FUNCTIONS and is_importable(value):
        return Named(value.__module__, value.__name__)
    return value


def from_picklable(value: Any) -> Any:
    """Undo :func:`to_picklable`, except that mapping proxies come back as dicts."""
    if isinstance(value, Named):
        return getattr(importlib.import_module(value.module), value.name)
    if isinstance(value, Bound):
        return functools.partial(from_picklable(value.func), *from_picklable(value.args), **from_picklable(value.keywords))
    if isinstance(value, tuple):
        return with_items(value, [from_picklable(item) for item in value])
    if type(value) is dict:
        return {key: from_picklable(item) for key, item in value.items()}
    if type(value) is frozenset:
        return frozenset(from_picklable(item) for item in value)
    return value


def is_importable(function: Any) -> bool:
    """Return whether a function can be pickled by name: it is what its module has under that name.

    >>> is_importable(mx.tanh), is_importable(mx.vmap(mx.tanh)), is_importable(lambda: None)
    (True, False, False)
    """
    found: Any = sys.modules.get(getattr(function, "__module__", None))  # type: ignore[arg-type]
    for name in getattr(function, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is function
