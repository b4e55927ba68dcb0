"""Finishing instances, and changing them in copies. What a field may hold is checked here and nowhere else."""

from __future__ import annotations

import dataclasses
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView
from itertools import repeat
from numbers import Number
from operator import is_
from types import MappingProxyType
from typing import Any, TypeVar

import attrs
import mlx.core as mx
import mlx.nn
import optree

from . import ties as ties_
from .containers import freeze_containers, is_namespace, static_key
from .depth import tell_depth, tells_depth
from .fields import may_be_number
from .hidden import PLAIN, advice_for, find_hidden, find_iterator, is_foreign_array, is_iterator
from .instance import (
    OPEN,
    Instance,
    Metadata,
    Shards,
    Ties,
    children_of,
    field_values,
    is_finished,
    is_instance,
    level_of,
    metadata_of,
    set_level,
)
from .levels import one_level
from .pickling import from_picklable
from .registration import NAMESPACE
from .shapes import LEAF
from .words import Path, class_name, describe, keystr, listed, nearest

N = TypeVar("N", bound=Instance)

_ARRAY = mx.array
_IN_TREE = (*LEAF, Instance)


@tells_depth
def evolve(
    node: N,
    changes: Mapping[str, Any] = MappingProxyType({}),
    *,
    training: bool | None = None,
    frozen: frozenset[str] | None = None,
    ties: Ties | None = None,
    shards: Shards | None = None,
    convert: bool = True,
) -> N:
    """Change fields, the mode, the frozen names, the ties or the shards in a copy; return the node itself if nothing changes.

    The converters and validators of the fields that change run, unless ``convert`` is false.

    Raises:
        TypeError: If a name isn't a field, or a field can't hold its value.
        ValueError: If a tied place is gone or tied twice, or the places of a tie were given different arrays.
    """
    cls = type(node)
    metadata = metadata_of(node)
    old = field_values(node)
    # A child as the tree has it, with None at its tied places, is no change.
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
    shards = metadata.shards if shards is None else shards
    same = training == metadata.training and frozen == metadata.frozen and ties == metadata.ties and shards == metadata.shards
    if same and not changed:
        return node
    for name, value in changed.items():
        lost = None if isinstance(value, _IN_TREE) else _number_for_array(value, old[name], (name,))
        if lost and not may_be_number(field_of(cls, name)):
            path, before, number = lost
            place, held = f"{cls.__name__}.{keystr(path)}", f"held {describe(before)}"
            raise TypeError(NO_ARRAY.format(place=place, held=held, value=describe(number), other="."))
    new = _blank(cls, {**old, **changed})
    if ties != metadata.ties:
        ties_.fill(new, ties)
    close(new, changed, training, frozen, ties, old, shards)
    return new


def close(
    node: Instance,
    changed: Iterable[str],
    training: bool,
    frozen: frozenset[str],
    ties: Ties = (),
    old: Mapping[str, Any] = MappingProxyType({}),
    shards: Shards = (),
) -> None:
    """Finish an instance: make the values of the changed fields immutable, check them, and set the metadata.

    If the instance has ties, ``old`` is what its fields held before the change.
    """
    cls, definition = type(node), node.__frostleaf__
    values = node.__dict__
    for name in changed:
        value, is_static = values[name], name in definition.static
        try:  # and no decorator, which would take as long as most values do
            if _is_sound(value, is_static):
                continue
            value = values[name] = freeze_containers(value)
            if _is_sound(value, is_static):
                continue
            value = values[name] = _owned(value)
            if is_static:
                _check_static(cls, name, value)
            else:
                _check_child(cls, name, value)
        except RecursionError:
            tell_depth(value)
            raise
    if ties:
        ties_.follow(node, ties, old)
    children = definition.pick(values)
    if ties:
        children = ties_.taken_out(cls, children, ties)
    if training and not (frozen or ties or shards or definition.static):
        metadata = definition.bare
    else:
        metadata = Metadata({name: values[name] for name in definition.static}, training, frozen, ties, shards)
    set_level(node, (metadata, children))


def _is_sound(value: Any, is_static: bool) -> bool:
    """Return whether a field can hold a value as it is. Most values are of a few classes, of which all are so."""
    kind = type(value)
    if kind is tuple:
        return all(map(_is_sound, value, repeat(is_static)))
    return kind in PLAIN or (not is_static and (kind is _ARRAY or (issubclass(kind, Instance) and is_finished(value))))


NO_ARRAY = "{place} {held}, and was given {value}, which would not be trained, cast or saved. Write mx.array(...) of it{other}"


def require_arrays(node: Instance) -> None:
    """Raise a ``TypeError`` if a field of a new instance holds numbers and is declared to hold an array."""
    values = node.__dict__
    for name in node.__frostleaf__.arrays:
        value = values[name]
        if not (value is None or type(value) is _ARRAY) and _is_numbers(value):
            place = f"{type(node).__name__}.{name}"
            said = {"held": "is declared as an array", "other": ", or fl.static() at the field."}
            raise TypeError(NO_ARRAY.format(place=place, value=describe(value), **said))


def _number_for_array(value: Any, old: Any, path: Path) -> tuple[Path, Any, Any] | None:
    """Find an array or a module whose place numbers would take, and return its path, itself, and the numbers."""
    pairs: Iterable[tuple[Any, Any, Any]] = ()
    if isinstance(old, _IN_TREE):
        if _is_numbers(value) and (isinstance(old, LEAF) or find_hidden(old)):
            return path, old, value
    elif isinstance(old, tuple) and isinstance(value, list | tuple) and len(value) == len(old):
        pairs = zip(range(len(old)), value, old, strict=True)
    elif isinstance(old, Mapping) and isinstance(value, Mapping):
        pairs = [(key, value[key], old[key]) for key in old.keys() & value.keys()]
    found = (_number_for_array(new, before, (*path, key)) for key, new, before in pairs)
    return next((each for each in found if each), None)


def _is_numbers(value: Any) -> bool:
    """Return whether a value is a number, or a container with numbers alone."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(map(_is_numbers, value))
    return isinstance(value, Number)


def restore(cls: type[N], values: dict[str, Any], training: bool, frozen: frozenset[str], ties: Ties, shards: Shards = ()) -> N:
    """Make an instance from its pickled state."""
    node = _blank(cls, {name: from_picklable(value) for name, value in values.items()})
    close(node, values, training, frozen, ties, shards=shards)
    return node


def restored_copy(node: N) -> N:
    """Return another instance with the same fields and metadata."""
    copy = _blank(type(node), node.__dict__)
    set_level(copy, level_of(node))
    return copy


def postpone(node: N, edit: Callable[[N], N]) -> bool:
    """Have an edit made once the node's ``__init__`` has returned; return whether it is still running."""
    edits = node.__dict__.get(OPEN)
    if edits is not None:
        edits.append(edit)
    return edits is not None


def field_of(cls: type[Instance], name: str) -> attrs.Attribute[Any]:
    """Return the field of that name.

    Raises:
        TypeError: If the class declares none.
    """
    fields = cls.__frostleaf__.fields
    if name not in fields:
        there = nearest(name, fields) or (f"; its fields are {listed(fields)}" if fields else "")
        raise TypeError(f"{cls.__name__} has no field {name!r}{there}")
    return fields[name]


def checked(node: Instance, attribute: attrs.Attribute[Any], value: Any) -> Any:
    """Run a field's converter and validators on a value, and return what the converter makes of it."""
    instance: Any = node
    if attribute.converter is not None:
        value = attrs.setters.convert(instance, attribute, value)
    return value if attribute.validator is None else attrs.setters.validate(instance, attribute, value)


ARRAY_IN_STATIC = (
    "{place} is a static field and was given {hidden}. Static values are structure, compared and hashed; an array belongs in a "
    "bare annotation (a parameter) or in fl.buffer()."
)
UNHASHABLE = (
    "{place} is a static field and was given {value}, a {kind} that can't be hashed{error}. {advice}, or store "
    "numbers, strings and tuples instead."
)

_ONCE = ", which can be gone through once. Give a list of what it yields."
_VIEW = ", a view of a mapping that may change. Give a list of what is in it."
_KEY = "{cls}.{name} was given a mapping with {hidden} in a key, where it would not be trained, cast or saved. Make it a value."
_PROXY = ", a weak proxy of an object that may go at any time. Give the object itself."


def _check_static(cls: type[Instance], name: str, value: Any) -> None:
    place = f"{cls.__name__}.{name}"
    if isinstance(value, weakref.ProxyTypes):
        raise TypeError(f"{place} is a static field and was given a {class_name(value)}{_PROXY}")
    if hidden := find_hidden(value):
        array = f"an array ({describe(hidden.value)}){f' at {keystr(hidden.path)}' if hidden.path else ''}"
        raise TypeError(ARRAY_IN_STATIC.format(place=place, hidden=array))
    if (iterator := find_iterator(value)) is not None:
        reason = _VIEW if isinstance(iterator, MappingView) else _ONCE
        raise TypeError(f"{place} is a static field and was given a {class_name(iterator)}{reason}")
    try:
        hash(static_key(value))
    except TypeError as error:
        kind = type(value).__name__
        if dataclasses.is_dataclass(value) and type(value).__hash__ is None:
            said = {"error": "", "advice": f"Make {kind} a @dataclass(frozen=True)"}
        elif is_namespace(value):
            said = {"error": "", "advice": "Give a frozen dataclass of what is in it"}
        else:
            said = {"error": f" ({error})", "advice": "Give the class __eq__ and __hash__"}
        raise TypeError(UNHASHABLE.format(place=place, value=describe(value), kind=kind, **said)) from None


def _check_child(cls: type[Instance], name: str, value: Any) -> None:
    for key in _keys(value):
        if hidden := find_hidden(key):
            raise TypeError(_KEY.format(cls=cls.__name__, name=name, hidden=hidden))
    # A module inside has checked its own fields.
    for leaf in optree.tree_leaves(value, is_instance, namespace=NAMESPACE):
        if isinstance(leaf, weakref.ProxyTypes):  # which passes for an instance of the class of its object
            reason = _PROXY
        elif isinstance(leaf, LEAF) or (isinstance(leaf, Instance) and is_finished(leaf)):
            continue
        elif isinstance(leaf, Instance):
            reason = (
                " of the module that is being built, which can't hold itself or its methods. Call them in __call__ instead."
            )
        elif is_foreign_array(leaf):
            reason = "; the leaves of a module are mx.array. Convert it with mx.array(...)."
        elif isinstance(leaf, mlx.nn.Module):  # type: ignore[attr-defined]
            reason = ", which frostleaf can't look into. Use the layer of that name in fl.nn, or fl.from_mlx(module)."
        elif isinstance(leaf, Mapping | list):
            reason = (
                ", which frostleaf can't look into. Convert it to a plain dict or list, or register its class with "
                "fl.register_pytree_node."
            )
        elif is_iterator(leaf):
            reason = _ONCE
        elif isinstance(leaf, MappingView):
            reason = _VIEW
        elif hidden := find_hidden(leaf):
            where = f"holds {hidden} where it would not be trained, cast or saved"
            reason = f", which {where}. {advice_for(leaf)}"
        else:
            continue
        given = "a method" if isinstance(value, types.MethodType) else f"a {class_name(leaf)}"
        raise TypeError(f"{cls.__name__}.{name} was given {given}{reason}")


def _keys(value: Any) -> Iterator[Any]:
    """Yield the keys of the mappings in a value whose containers are immutable."""
    if isinstance(value, MappingProxyType):
        yield from value
    inside = value.values() if isinstance(value, MappingProxyType) else value if isinstance(value, tuple) else ()
    for each in inside:
        yield from _keys(each)


def _owned(value: Any) -> Any:
    """Return a value in which nodes of registered classes, which may be mutable, are other objects of the same contents."""
    if isinstance(value, _IN_TREE) or type(value) is types.MethodType:
        return value
    node = one_level(value)
    if node is None or (hasattr(type(value), "__copy__") and value.__copy__() is value):  # which then can't be changed
        return value
    metadata, children = node
    new = [_owned(child) for child in children]
    if isinstance(value, tuple | MappingProxyType) and all(map(is_, new, children)):
        return value
    return metadata.make(metadata.metadata, new)


def _same(cls: type[Instance], name: str, value: Any, old: Any) -> bool:
    """Return whether ``value`` would leave a field unchanged: it is the same object, or an equal static value."""
    if name in cls.__frostleaf__.static:
        return value is old or static_key(value) == static_key(old)
    return _has_same_items(value, old)


def _has_same_items(value: Any, old: Any) -> bool:
    """Return whether a value is what a field holds, or a container that would become one of the very same items."""
    if type(old) is tuple and type(value) in (tuple, list):
        return value is old or (len(value) == len(old) and all(map(_has_same_items, value, old)))
    if type(old) is MappingProxyType and type(value) in (MappingProxyType, dict):
        return value is old or ([*value] == [*old] and all(map(_has_same_items, value.values(), old.values())))
    return value is old


def _blank(cls: type[N], values: Mapping[str, Any]) -> N:
    node = object.__new__(cls)
    node.__dict__.update(values)
    return node
