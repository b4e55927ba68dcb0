"""Making containers immutable and static values comparable."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import optree

from .registration import NAMESPACE


def freeze_containers(value: Any) -> Any:
    """Make every list in a value a tuple, every dict a read-only mapping and every set a frozenset.

    A tuple that holds nothing mutable is returned as it is. Values of other types are left alone.

    >>> freeze_containers([1, {"a": [2]}])
    (1, mappingproxy({'a': (2,)}))
    """
    if isinstance(value, tuple):
        return with_items(value, [freeze_containers(item) for item in value])
    if type(value) in (list, deque):
        return tuple(freeze_containers(item) for item in value)
    if type(value) in (dict, OrderedDict, defaultdict, MappingProxyType):
        # A mapping proxy is copied too: it shows a dict that other code may hold and change.
        return MappingProxyType({key: freeze_containers(item) for key, item in value.items()})
    if isinstance(value, set):
        return frozenset(value)
    return value


def with_items(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    """Return a tuple of the same class with other items, or the tuple itself if its items are the same objects."""
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def static_key(value: Any) -> Any:
    """Return a key that two static values share exactly when they are interchangeable as structure.

    Keys compare more strictly than values do: ``True``, ``1`` and ``1.0`` have different keys, as do a list and a tuple, and
    ``nan`` equals itself. A key can be hashed if its value can.

    >>> static_key(1) == static_key(True), static_key((1, "a")) == static_key((1, "a"))
    (False, True)
    """
    if isinstance(value, float):
        return type(value), float.__repr__(value)  # tells 0.0 from -0.0, but not nan from nan
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
    """Yield the arrays inside a static value, including those bound to a partial function or a method."""
    for leaf in optree.tree_leaves(value, namespace=NAMESPACE):
        if isinstance(leaf, mx.array):
            yield leaf
        elif isinstance(leaf, functools.partial):
            yield from arrays_in((leaf.func, leaf.args, leaf.keywords))
        elif isinstance(leaf, types.MethodType):
            yield from arrays_in(leaf.__self__)
        elif isinstance(leaf, dict):  # a subclass that optree does not look into, such as MLX's modules
            yield from arrays_in(dict(leaf))
        elif isinstance(leaf, frozenset):
            yield from arrays_in(tuple(leaf))
