"""Instances made and changed: what a field may hold is checked here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

import attrs
import mlx.core as mx
import mlx.nn
import optree

from . import ties as ties_
from .containers import arrays_in, freeze_containers, static_key
from .instance import Instance, Metadata, Ties, children_of, field_values, is_instance, metadata_of, set_level
from .pickling import from_picklable
from .registration import NAMESPACE
from .words import class_name, describe, nearest

N = TypeVar("N", bound=Instance)


def evolve(
    node: N,
    changes: Mapping[str, Any] = MappingProxyType({}),
    *,
    training: bool | None = None,
    frozen: frozenset[str] | None = None,
    ties: Ties | None = None,
    convert: bool = True,
) -> N:
    """Return the node with some fields, its mode, its frozen names or its ties changed; the node itself if nothing is.

    The converters and validators of the fields that change are run, unless ``convert`` is false.

    Raises:
        TypeError: If a name isn't a field, or a value can't be held by its field.
        ValueError: If a tied place is gone or tied twice, or the places of a tie were given different arrays.
    """
    cls = type(node)
    metadata = metadata_of(node)
    old = field_values(node)
    # A child with its tied places taken out, as the tree has it, is no change.
    in_tree = children_of(node) if metadata.ties else old
    changed: dict[str, Any] = {}
    for name, value in changes.items():
        field = field_of(cls, name)
        if not _same(cls, name, value, old[name]) and value is not in_tree.get(name):
            value = ties_.refilled(name, value, metadata.ties, old) if metadata.ties else value
            value = checked(node, field, value) if convert else value
            if not _same(cls, name, value, old[name]):
                changed[name] = value
    training = metadata.training if training is None else training
    frozen = metadata.frozen if frozen is None else frozen
    ties = metadata.ties if ties is None else ties
    if not changed and training == metadata.training and frozen == metadata.frozen and ties == metadata.ties:
        return node
    new = _blank(cls, {**old, **changed})
    if ties != metadata.ties:
        ties_.fill(new, ties)
    close(new, changed, training, frozen, ties, old)
    return new


def close(
    node: Instance,
    changed: Iterable[str],
    training: bool,
    frozen: frozenset[str],
    ties: Ties = (),
    old: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Finish an instance: make what the changed fields hold immutable, check that they may hold it, and set its metadata.

    Where the instance has ties, ``old`` is what its fields held before the change.
    """
    cls, definition = type(node), node.__frostleaf__
    values = node.__dict__
    for name in changed:
        values[name] = freeze_containers(values[name])
        if name in definition.static:
            _check_static(cls, name, values[name])
        else:
            _check_child(cls, name, values[name])
    if ties:
        ties_.follow(node, ties, old)
    children = tuple([values[name] for name in definition.children])
    if ties:
        children = ties_.taken_out(cls, children, ties)
    set_level(node, (Metadata({name: values[name] for name in definition.static}, training, frozen, ties), children))


def restore(cls: type[N], values: dict[str, Any], training: bool, frozen: frozenset[str], ties: Ties) -> N:
    """Return an instance from what it was pickled as."""
    node = _blank(cls, {name: from_picklable(value) for name, value in values.items()})
    close(node, values, training, frozen, ties)
    return node


def field_of(cls: type[Instance], name: str) -> attrs.Attribute[Any]:
    """Return the field of that name.

    Raises:
        TypeError: If the class declares none.
    """
    fields = cls.__frostleaf__.fields
    if name not in fields:
        raise TypeError(
            f"{cls.__name__} has no field {name!r}{nearest(name, fields)}. Declare it in the class body, for example as "
            f"`{name}: mx.array`."
        )
    return fields[name]


def checked(node: Instance, attribute: attrs.Attribute[Any], value: Any) -> Any:
    """Return the value as the field's converter makes it, if its validators accept it."""
    value = attrs.setters.convert(cast(Any, node), attribute, value)
    return attrs.setters.validate(cast(Any, node), attribute, value)


# The first words of each: Class.field.
ARRAY_IN_STATIC = (
    "{place} is a static field and was given an array ({array}). Static values are structure, compared and hashed; "
    "an array belongs in a bare annotation (a parameter) or in fl.buffer()."
)
UNHASHABLE = (
    "{place} is a static field and was given {value}, a {kind} that can't be hashed ({error}). Give the class "
    "__eq__ and __hash__, or keep what it says in numbers, strings and tuples."
)


def _check_static(cls: type[Instance], name: str, value: Any) -> None:
    place = f"{cls.__name__}.{name}"
    for array in arrays_in(value):
        raise TypeError(ARRAY_IN_STATIC.format(place=place, array=describe(array)))
    try:
        hash(static_key(value))
    except TypeError as error:
        shown = UNHASHABLE.format(place=place, value=describe(value), kind=type(value).__name__, error=error)
        raise TypeError(shown) from None


def _check_child(cls: type[Instance], name: str, value: Any) -> None:
    # A node has checked its own fields.
    for leaf in optree.tree_leaves(value, is_instance, namespace=NAMESPACE):
        if isinstance(leaf, mx.array | Instance):
            continue
        if hasattr(leaf, "__array__") and type(leaf).__hash__ is None:
            reason = "; the leaves of a module are mx.array. Pass mx.array(...) of it."
        elif isinstance(leaf, mlx.nn.Module):  # type: ignore[attr-defined]
            reason = ", which frostleaf can't look into. Use the layer of that name in fl.nn."
        elif isinstance(leaf, Mapping | list):
            reason = (
                ", which frostleaf can't look into. Give a plain dict or list of it, or register its class with "
                "fl.register_pytree_node."
            )
        else:
            continue
        raise TypeError(f"{cls.__name__}.{name} was given a {class_name(leaf)}{reason}")


def _same(cls: type[Instance], name: str, value: Any, old: Any) -> bool:
    """Return whether a field would be the same with ``value`` in it: the same object, or an equal static value."""
    return value is old or (name in cls.__frostleaf__.static and static_key(value) == static_key(old))


def _blank(cls: type[N], values: Mapping[str, Any]) -> N:
    node = object.__new__(cls)
    node.__dict__.update(values)
    return node
