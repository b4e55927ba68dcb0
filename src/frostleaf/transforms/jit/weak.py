"""Structures that a trace is kept under, which keep no function or object alive that the caller has dropped.

A trace has weak forms of its arguments' structures. They are equal to these, but hold a :class:`Reference` in the place of each
function or object that may go; nothing can be made from them. What a result has from the arguments is weak too, and is taken
from the arguments of each call.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from ...core.containers import is_hashable, is_told_by_identity, static_key, with_items
from ...core.instance import Metadata
from ...core.pickling import is_importable
from ...core.structure import Deferred, Signature, Static, Structure, specs_in


class Reference:
    """What stands in a weak key for a value that is equal to nothing but itself. When it is gone, nothing is equal to this."""

    __slots__ = ("_hash", "_reference")

    def __init__(self, value: Any) -> None:
        self._reference = weakref.ref(value)
        self._hash = hash(value)

    @property
    def value(self) -> Any:
        """The value, or ``None`` if it is gone."""
        return self._reference()

    def __eq__(self, other: object) -> bool:
        value = self.value
        return self is other or (value is not None and value is (other.value if isinstance(other, Reference) else other))

    def __hash__(self) -> int:
        return self._hash


class WeakStatic(Static):
    """The weak form of the spec of a static value, which it is equal to."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and bool(self.key == _key_of(other))

    def __hash__(self) -> int:
        return hash(self.key)


class WeakMetadata(Metadata):
    """The weak form of a module's metadata, which it is equal to."""

    __slots__ = ()

    def __init__(self, metadata: Metadata, key: Any) -> None:
        static = dict.fromkeys(metadata.static)
        super().__init__(static, metadata.training, metadata.frozen, metadata.ties, metadata.shards)
        self._static_key, self._hash = key, hash(metadata)


class WeakStructure(Structure):
    """The weak form of a module's structure, which it is equal to.

    A module keeps its structure: it knows the latest that it was found equal to, or that was made of it.
    """

    __slots__ = ("_latest",)

    def __init__(self, spec: Any, num_leaves: int) -> None:
        super().__init__(spec, num_leaves)
        self._latest: Callable[[], Structure | None] = _nothing

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Structure) and self._latest() is other:
            return True
        equal = super().__eq__(other)
        if equal and type(other) is Structure:
            self._latest = weakref.ref(other)
        return equal

    __hash__ = Structure.__hash__

    def restored(self, given: Given) -> Structure:
        """Return a structure that is no longer weak."""
        structure = self._latest()
        if structure is None:
            structure = Structure(restored(self.spec, given), self.num_leaves)
            self._latest = weakref.ref(structure)
        return structure


class WeakSignature(Signature):
    """The weak form of a module's signature, which it is equal to. It knows the latest, as :class:`WeakStructure` does."""

    __slots__ = ("_latest",)

    def __init__(self, structure: Structure, leaves: Any) -> None:
        super().__init__(structure, leaves)
        self._latest: Callable[[], Signature | None] = _nothing

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Signature) and self._latest() is other:
            return True
        equal = super().__eq__(other)
        if equal and type(other) is Signature:
            self._latest = weakref.ref(other)
        return equal

    __hash__ = Signature.__hash__

    def restored(self, given: Given) -> Signature:
        """Return a signature that is no longer weak."""
        signature = self._latest()
        if signature is None:
            signature = Signature(restored(self.structure, given), self.leaves)
            self._latest = weakref.ref(signature)
        return signature


def _nothing() -> None:
    return None


class Lent:
    """What the structures of a trace's arguments hold weakly.

    Attributes:
        references: The values that may go.
    """

    def __init__(self) -> None:
        self.references: list[Reference] = []
        self._keys: dict[Any, Any] = {}

    def argument(self, item: Any) -> Any:
        """Return the weak form of a static spec or metadata in an argument, or without a value that may go that itself."""
        found: list[Reference] = []
        key = _weak_key(_key_of(item), found)
        if not found:
            return item
        self.references += found
        self._keys[key] = key
        return _weak(item, key)

    def result(self, item: Any) -> Any:
        """Return the weak form of a static spec or metadata in a result if an argument has the like, or else that itself."""
        key = self._keys.get(_key_of(item)) if is_hashable(item) else None
        return item if key is None else _weak(item, key)


def _weak(item: Any, key: Any) -> Any:
    return WeakMetadata(item, key[-1]) if isinstance(item, Metadata) else WeakStatic(key)


class Given:
    """What the arguments of one call have in the place of what is weak."""

    def __init__(self, structures: Iterable[Structure]) -> None:
        self._structures = structures

    @functools.cached_property
    def _items(self) -> dict[Any, Any]:
        specs = [spec for structure in self._structures for _, spec in specs_in(structure)]
        items = [spec[1] if isinstance(spec, tuple) else spec for spec in specs]
        return {_key_of(item): item for item in items if isinstance(item, Static | Metadata)}

    def like(self, weak: Any) -> Any:
        """Return what has a weak form, or what is given itself if it is none."""
        if not isinstance(weak, WeakStatic | WeakMetadata):
            return weak
        item = self._items[_key_of(weak)]
        if isinstance(weak, Metadata) and item != weak:  # the step has changed the mode, or what is frozen
            return Metadata(item.static, weak.training, weak.frozen, weak.ties, weak.shards)
        return item


def weakened(spec: Any, weak: Callable[[Any], Any]) -> Any:
    """Return a structure, or a spec, with the weak forms of its static specs and of the metadata of its modules.

    Without any it is returned itself, since what is the very same object is found equal faster.

    Args:
        spec: The structure or spec.
        weak: Returns the weak form of a static spec or of metadata, or that itself.
    """
    if isinstance(spec, Static):
        return weak(spec)
    if isinstance(spec, Structure):
        inner = weakened(spec.spec, weak)
        if inner is spec.spec:
            return spec
        of_module = isinstance(inner, tuple) and isinstance(inner[1], Metadata)
        return (WeakStructure if of_module else Structure)(inner, spec.num_leaves)
    if type(spec) is Deferred:
        structure = weakened(spec.structure, weak)
        return spec if structure is spec.structure else Deferred(structure, with_structure(spec.signature, structure))
    return _replaced(spec, weak, lambda each: weakened(each, weak))


def restored(spec: Any, given: Given) -> Any:
    """Return the spec of a result with what the arguments of a call have in the place of what is weak."""
    kind = type(spec)
    if kind is tuple:
        return _replaced(spec, given.like, lambda each: restored(each, given))
    if kind is Deferred:
        signature = spec.signature
        if type(signature) is WeakSignature:
            signature = signature.restored(given)
            return Deferred(signature.structure, signature)
        return Deferred(restored(spec.structure, given), signature)
    return spec.restored(given) if kind is WeakStructure else given.like(spec)


def _replaced(spec: Any, of_metadata: Callable[[Any], Any], of_spec: Callable[[Any], Any]) -> Any:
    """Return the spec of a node with other metadata, and others for its children; itself if none is new."""
    if type(spec) is not tuple:
        return spec
    kind, metadata, specs = spec
    new_metadata = of_metadata(metadata) if isinstance(metadata, Metadata) else metadata
    new_specs = specs if isinstance(specs, int) else with_items(specs, [of_spec(each) for each in specs])
    return spec if new_metadata is metadata and new_specs is specs else (kind, new_metadata, new_specs)


def with_structure(part: Any, structure: Structure) -> Any:
    """Return a part of the key of a program, the structure or the signature of an argument, with its weak structure."""
    if isinstance(part, Signature):
        if part.structure is structure:
            return part
        return (WeakSignature if isinstance(structure, WeakStructure) else Signature)(structure, part.leaves)
    return structure if isinstance(part, Structure) else part


def structure_of(part: Any) -> Structure:
    """Return the structure in a part of a key."""
    return part.structure if isinstance(part, Signature) else part


def is_itself(value: Any) -> bool:
    """Return whether a value is equal to nothing but itself, and can be referred to weakly."""
    can_be_weak = type(value).__weakrefoffset__ != 0
    return can_be_weak and is_told_by_identity(value) and not isinstance(value, functools.partial)


def _key_of(item: Any) -> Any:
    """Return what tells a static spec, or the static values of a module's metadata, from others."""
    if isinstance(item, Metadata):
        return Metadata, tuple(item.static), item.static_key
    return item.key if isinstance(item, WeakStatic) else static_key(item.value)


def _weak_key(key: Any, found: list[Reference]) -> Any:
    """Return a key that :func:`~frostleaf.core.containers.static_key` made with references, which are added to ``found``."""
    if type(key) is tuple:
        return tuple([_weak_key(each, found) for each in key])
    if type(key) is frozenset:
        return frozenset([_weak_key(each, found) for each in key])
    if not is_itself(key) or _stays(key):
        return key
    found.append(Reference(key))
    return found[-1]


def _stays(value: Any) -> bool:
    """Return whether a value outlives every trace, since it belongs to a module. A notebook's, or a script's, are replaced."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return False
    return "<locals>" not in name if isinstance(value, type) else is_importable(value)
