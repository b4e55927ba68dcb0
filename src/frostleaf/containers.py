"""What a module may hold: containers made immutable, and static values made comparable."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import optree

from .namespace import NAMESPACE


def freeze_containers(value: Any) -> Any:
    """Return ``value`` with every list made a tuple, every dict a read-only mapping and every set a frozenset.

    A value that holds nothing mutable is returned itself. Values of other types are left alone.

    >>> freeze_containers([1, {"a": [2]}])
    (1, mappingproxy({'a': (2,)}))
    """
    if isinstance(value, tuple):
        return _with_items(value, [freeze_containers(item) for item in value])
    if type(value) in (list, deque):
        return tuple(freeze_containers(item) for item in value)
    if type(value) in (dict, OrderedDict, defaultdict, MappingProxyType):
        # A mapping proxy shows a dict that somebody else may hold and change, so it is copied as well.
        return MappingProxyType({key: freeze_containers(item) for key, item in value.items()})
    if isinstance(value, set):
        return frozenset(value)
    return value


_MLX_FUNCTIONS = {type(mx.tanh), type(mx.compile(mx.tanh))}


class Named(NamedTuple):
    """A value that is pickled as the name of an attribute of a module."""

    module: str
    name: str


class Bound(NamedTuple):
    """A partial function that is pickled in parts."""

    func: Any
    args: Any
    keywords: Any


def packed(value: Any) -> Any:
    """Return ``value`` so that it can be pickled: a mapping proxy, a dtype of MLX and a function of MLX can't as they are.

    >>> packed((mx.float16, mx.tanh))
    (Named(module='mlx.core', name='float16'), Named(module='mlx.core', name='tanh'))
    """
    if isinstance(value, tuple):
        return _with_items(value, [packed(item) for item in value])
    if isinstance(value, MappingProxyType):
        return {key: packed(item) for key, item in value.items()}
    if type(value) is frozenset:
        return frozenset(packed(item) for item in value)
    if type(value) is functools.partial:
        return Bound(packed(value.func), packed(value.args), packed(MappingProxyType(value.keywords)))
    if value is MappingProxyType:
        return Named("types", "MappingProxyType")
    if isinstance(value, mx.Dtype):
        name = str(value).removeprefix("mlx.core.")
        return Named("mlx.core", name if hasattr(mx, name) else f"{name}_")
    if type(value) in _MLX_FUNCTIONS and has_name(value):
        return Named(value.__module__, value.__name__)
    return value


def unpacked(value: Any) -> Any:
    """Return what :func:`packed` was given, but for dicts in place of mapping proxies."""
    if isinstance(value, Named):
        return getattr(importlib.import_module(value.module), value.name)
    if isinstance(value, Bound):
        return functools.partial(unpacked(value.func), *unpacked(value.args), **unpacked(value.keywords))
    if isinstance(value, tuple):
        return _with_items(value, [unpacked(item) for item in value])
    if type(value) is dict:
        return {key: unpacked(item) for key, item in value.items()}
    if type(value) is frozenset:
        return frozenset(unpacked(item) for item in value)
    return value


def has_name(function: Any) -> bool:
    """Return whether a function is what stands under its name in its module, so that it can be pickled as that name.

    >>> has_name(mx.tanh), has_name(mx.vmap(mx.tanh)), has_name(lambda: None)
    (True, False, False)
    """
    found: Any = sys.modules.get(function.__module__)
    for name in getattr(function, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is function


def _with_items(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    """Return the tuple with other items; the tuple itself if they are those that it has."""
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def static_key(value: Any) -> Any:
    """Return a key that two static values share exactly when they are interchangeable as structure.

    Keys compare with ``==``, and more strictly than the values: ``True``, ``1`` and ``1.0`` have three keys, a list and a
    tuple two, and ``nan`` equals itself. A key can be hashed if the value can.

    >>> static_key(1) == static_key(True), static_key((1, "a")) == static_key((1, "a"))
    (False, True)
    """
    if isinstance(value, float):
        return type(value), float.__repr__(value)  # which tells 0.0 from -0.0, and not nan from nan
    if isinstance(value, complex):
        return type(value), complex.__repr__(value)
    if isinstance(value, tuple) or type(value) in (list, deque):
        return type(value), tuple(static_key(item) for item in value)
    if type(value) in (dict, OrderedDict, defaultdict, MappingProxyType):
        return type(value), tuple((static_key(key), static_key(item)) for key, item in value.items())
    if type(value) in (frozenset, set):
        return type(value), frozenset(static_key(item) for item in value)
    if isinstance(value, functools.partial):
        return type(value), static_key(value.func), static_key(value.args), static_key(value.keywords)
    return type(value), value


def arrays_in(value: Any) -> Iterator[mx.array]:
    """Yield the arrays inside a static value, those bound to a partial function included."""
    for leaf in optree.tree_leaves(value, namespace=NAMESPACE):
        if isinstance(leaf, mx.array):
            yield leaf
        elif isinstance(leaf, functools.partial):
            yield from arrays_in((leaf.func, leaf.args, leaf.keywords))
        elif isinstance(leaf, types.MethodType):
            yield from arrays_in(leaf.__self__)
        elif isinstance(leaf, dict):  # of a class of its own, such as a module of MLX
            yield from arrays_in(dict(leaf))
        elif isinstance(leaf, frozenset):
            yield from arrays_in(tuple(leaf))
