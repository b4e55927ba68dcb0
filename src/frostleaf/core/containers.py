"""Making containers immutable and static values comparable."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import attrs
import mlx.core as mx
import optree

from .registration import NAMESPACE
from .words import Path


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

    Keys compare with ``==``, and more strictly than the values: ``True``, ``1`` and ``1.0`` have three keys, a list and a
    tuple two, and ``nan`` equals itself. A dataclass or attrs class that compares by value has the keys of its fields. Arrays
    are told apart by identity, never by their values. A key can be hashed if the value can.

    >>> static_key(1) == static_key(True), static_key((1, "a")) == static_key((1, "a"))
    (False, True)
    """
    kind: Any = type(value)
    if kind in _EXACT:
        return kind, value
    if isinstance(value, float):
        return kind, float.__repr__(value)  # which tells 0.0 from -0.0, and not nan from nan
    if isinstance(value, complex):
        return kind, complex.__repr__(value)
    if isinstance(value, tuple) or kind in (list, deque):
        return kind, tuple([static_key(item) for item in value])
    if kind in (dict, OrderedDict, defaultdict, MappingProxyType):
        return kind, tuple([(static_key(key), static_key(item)) for key, item in value.items()])
    if kind in (frozenset, set):
        return kind, frozenset([static_key(item) for item in value])
    if isinstance(value, functools.partial):
        return kind, static_key(value.func), static_key(value.args), static_key(value.keywords)
    if kind is types.MethodType and is_told_by_identity(value.__self__):
        return kind, value.__func__, value.__self__
    if any(_TOLD_BY_PARTS.get(each.__name__) == each.__module__ for each in kind.__mro__):
        return kind, static_key(value.__reduce_ex__(4)[1])
    if hasattr(kind, "__array__") or hasattr(kind, "__dlpack__"):
        if hasattr(kind, "__dlpack__") or kind.__hash__ is None:
            return kind, _Same(value) if isinstance(value, mx.array) else _Unhashable(value)
        return kind, repr(value)  # a number of NumPy: its dtype is in the class, or shown
    if hasattr(kind, "__frostleaf__") and kind.__eq__ is object.__eq__:
        return kind, value._static_key()
    fields = compared_fields(kind)
    if fields:
        keys = tuple([static_key(getattr(value, name, None)) for name in fields])
        return (kind, keys) if is_hashable(value) else (kind, keys, _Unhashable(None))
    return kind, value


# The types whose equal values are the same, of which there are most.
_EXACT = (int, bool, str, bytes, type(None), type, types.FunctionType, mx.Dtype)
# Those that may be equal and not the same: in digits, in the time zone, in where a range ends. They are known by their names
# and the modules that they are in, of which most programs have no use.
_TOLD_BY_PARTS = {
    "Decimal": "decimal",
    "datetime": "datetime",
    "time": "datetime",
    "timezone": "datetime",
    "range": "builtins",
    "slice": "builtins",
}


class _Same:
    """The key of an array, whose ``==`` is one of its elements."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Unhashable(_Same):
    """The key of an array of another library, or a part of the key of what can't be hashed."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


def is_told_by_identity(value: Any) -> bool:
    """Return whether a value is equal to nothing but itself."""
    kind: Any = type(value)
    return kind.__eq__ is object.__eq__ and kind.__hash__ is object.__hash__


def compared_fields(kind: Any) -> tuple[str, ...]:
    """Return the names of the fields of a dataclass or attrs class that compares by value; of other classes nothing."""
    if kind.__eq__ is object.__eq__:
        return ()
    if dataclasses.is_dataclass(kind):
        return tuple([each.name for each in dataclasses.fields(kind)])
    return tuple([each.name for each in attrs.fields(kind)]) if attrs.has(kind) else ()


def is_hashable(value: Any) -> bool:
    """Return whether the value can be hashed."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def is_namespace(value: Any) -> bool:
    """Return whether a value is an object with attributes whose class is Python's own, so that nobody can make it hashable.

    >>> is_namespace(types.SimpleNamespace(a=1)), is_namespace((1,))
    (True, False)
    """
    return type(value).__module__ in sys.stdlib_module_names and hasattr(value, "__dict__")


def find_unhashable(value: Any, in_field: bool = False) -> tuple[Path, Any] | None:
    """Return what makes a static value one that can't be hashed, and the path that leads to it; ``None`` if it can be.

    >>> find_unhashable((1, functools.partial(len, bytearray())))
    ((1, 'args', 0), bytearray(b''))
    """
    # A list stands for its items, unless it is in a field, where it is part of what the object's class hashes.
    if is_hashable(value if in_field else static_key(value)):
        return None
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, functools.partial):
        inside = [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    elif isinstance(value, tuple) or (isinstance(value, list | deque) and not in_field):
        inside = enumerate(value)
    elif isinstance(value, Mapping) and not in_field:
        inside = value.items()
    elif type(value).__hash__ is not None:
        inside = [(name, getattr(value, name, None)) for name in compared_fields(type(value))]
        in_field = True
    for name, each in inside:
        found = find_unhashable(each, in_field)
        if found is not None:
            return (name, *found[0]), found[1]
    return (), value


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
