"""frostleaf's corner of optree's registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Any, TypeVar

import optree

from .words import describe

C = TypeVar("C", bound=type)

NAMESPACE = "frostleaf"

# The order in which a function meets the items of a dict is part of what it computes, so it is part of the structure.
# The mode is entered for this namespace only and never left; it would be left if the context manager were collected.
_insertion_ordered = optree.registry.dict_insertion_ordered(True, namespace=NAMESPACE)
_insertion_ordered.__enter__()


def register_pytree_node(
    cls: C,
    flatten_func: Callable[[Any], tuple[Iterable[Any], Any] | tuple[Iterable[Any], Any, Iterable[Any]]],
    unflatten_func: Callable[[Any, Iterable[Any]], Any],
) -> C:
    """Register a class whose instances are nodes of a tree, for every function here, ``fl.jit`` and ``fl.grad`` included.

    For classes that are not modules, such as a cache. Subclasses are not registered with it.

    Args:
        cls: The class, which is returned.
        flatten_func: Returns the children of an instance, the metadata to make it again with (compared and hashed as
            structure), and if you like the children's names for use in paths.
        unflatten_func: Returns an instance made of metadata and children. It must not check the children, which need not be
            arrays.

    Raises:
        TypeError: If ``cls`` is no class.
        ValueError: If the class is registered already, as each module class is.

    >>> import frostleaf as fl, mlx.core as mx
    >>> class Cache:
    ...     def __init__(self, keys, size):
    ...         self.keys, self.size = keys, size
    >>> _ = fl.register_pytree_node(Cache, lambda c: ([c.keys], c.size, ["keys"]), lambda size, keys: Cache(*keys, size))
    >>> fl.tree.paths({"cache": Cache(mx.zeros(2), 2)})
    ['cache.keys']
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_pytree_node takes a class, and was given {describe(cls)}")
    optree.register_pytree_node(cls, flatten_func, unflatten_func, namespace=NAMESPACE)
    return cls


def _flatten_mapping(mapping: Any) -> tuple[Iterable[Any], Any, Iterable[Any]]:
    keys = tuple(mapping)
    return tuple(mapping.values()), keys, keys


def _unflatten_mapping(keys: Any, values: Iterable[Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(dict(zip(keys, values, strict=True)))


optree.register_pytree_node(
    MappingProxyType, _flatten_mapping, _unflatten_mapping, path_entry_type=optree.MappingEntry, namespace=NAMESPACE
)
