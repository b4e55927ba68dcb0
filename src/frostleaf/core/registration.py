"""frostleaf's namespace in optree's registry."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import attrs
import optree

from .arguments import require_callable
from .words import describe, listed, nearest

C = TypeVar("C", bound=type)

NAMESPACE = "frostleaf"

# The order of a dict's items can change what a function computes, so it is part of the structure. The mode is entered for this
# namespace only and never left; the name keeps the context manager alive, whose end would leave it.
_insertion_ordered = optree.registry.dict_insertion_ordered(True, namespace=NAMESPACE)
_insertion_ordered.__enter__()


ALREADY = "is a node of trees already, as modules and containers are: define the class again to register it in another way"


def register_pytree_node(
    cls: C,
    flatten_func: Callable[[Any], tuple[Iterable[Any], Any] | tuple[Iterable[Any], Any, Iterable[Any]]],
    unflatten_func: Callable[[Any, Iterable[Any]], Any],
) -> C:
    """Make the instances of a class nodes of trees, for every function of frostleaf, ``fl.jit`` and ``fl.grad`` included.

    For classes that are not modules, such as a cache. Subclasses must be registered themselves.

    Args:
        cls: The class, which is returned.
        flatten_func: Returns the children of an instance, the metadata needed to make it again (compared and hashed as
            structure), and optionally the children's names, for paths.
        unflatten_func: Makes an instance from metadata and children. It must not check the children, which need not be arrays.

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
    require_callable("flatten_func", flatten_func, "an instance")
    require_callable("unflatten_func", unflatten_func, "the metadata and the children")
    try:
        optree.register_pytree_node(cls, flatten_func, unflatten_func, namespace=NAMESPACE)
    except ValueError:
        raise ValueError(f"{cls.__name__} {ALREADY}") from None
    return cls


def _flatten_mapping(mapping: Any) -> tuple[Iterable[Any], Any, Iterable[Any]]:
    keys = tuple(mapping)
    return tuple(mapping.values()), keys, keys


def _unflatten_mapping(keys: Any, values: Iterable[Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(dict(zip(keys, values, strict=True)))


optree.register_pytree_node(
    MappingProxyType, _flatten_mapping, _unflatten_mapping, path_entry_type=optree.MappingEntry, namespace=NAMESPACE
)


def _bind(function: Any, owner: Iterable[Any]) -> Any:
    (bound,) = owner
    return function if bound is None else types.MethodType(function, bound)  # None where a gradient has no array


# A method of a module has the module's arrays.
optree.register_pytree_node(
    cast(Any, types.MethodType),
    lambda method: ((cast(Any, method).__self__,), cast(Any, method).__func__, ("__self__",)),
    _bind,
    path_entry_type=optree.GetAttrEntry,
    namespace=NAMESPACE,
)


D = TypeVar("D", bound=type)

# The static fields of each registered dataclass.
_registered: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()


def register_dataclass(cls: D, *, static: Iterable[str] = ()) -> D:
    """Register a dataclass or an attrs class, so that its instances are nodes of a tree. Can be used as a decorator.

    Its fields are the children, by their names. Instances are made again without ``__init__`` and its checks. To register a
    class again with the same static fields changes nothing.

    Args:
        cls: The class, which is returned.
        static: The names of fields that are structure instead, as are those with ``metadata={"static": True}``. Default:
            none.

    Raises:
        TypeError: If ``cls`` is no such class.
        ValueError: If a name in ``static`` is no field, or the class is registered already in another way.

    >>> import dataclasses, frostleaf as fl, mlx.core as mx
    >>> @fl.register_dataclass
    ... @dataclasses.dataclass(frozen=True)
    ... class Batch:
    ...     images: mx.array
    ...     labels: mx.array
    >>> fl.tree.map(lambda leaf: leaf.shape, Batch(mx.zeros((2, 3)), mx.zeros(2)))
    Batch(images=(2, 3), labels=(2,))
    """
    if not isinstance(cls, type) or not (dataclasses.is_dataclass(cls) or attrs.has(cls)):
        raise TypeError(f"fl.register_dataclass takes a dataclass or an attrs class, and was given {describe(cls)}")
    fields: Any = attrs.fields(cls) if attrs.has(cls) else dataclasses.fields(cast(Any, cls))
    names = [field.name for field in fields]
    static = tuple(static)
    for name in static:
        if name not in names:
            raise ValueError(f"{cls.__name__} has no field {name!r}{nearest(name, names)}")
    metadata = tuple(field.name for field in fields if field.name in static or field.metadata.get("static", False))
    children = tuple(name for name in names if name not in metadata)
    if cls in _registered:
        if _registered[cls] != metadata:
            before, now = (listed(map(repr, each)) or "none" for each in (_registered[cls], metadata))
            raise ValueError(f"{cls.__name__} {ALREADY}. Its static fields are {before}, and now {now}")
        return cls

    def flatten(instance: Any) -> Any:
        return [getattr(instance, name) for name in children], tuple([getattr(instance, name) for name in metadata]), children

    def unflatten(values: Any, new: Iterable[Any]) -> Any:
        instance = object.__new__(cls)
        for name, value in [*zip(metadata, values, strict=True), *zip(children, new, strict=True)]:
            object.__setattr__(instance, name, value)
        return instance

    register_pytree_node(cls, flatten, unflatten)
    _registered[cls] = metadata
    return cls
