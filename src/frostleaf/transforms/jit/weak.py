"""Structures that a trace is kept under, which keep no function or object alive that the caller has dropped."""

from __future__ import annotations

import functools
import weakref
from typing import Any

from ...core.containers import static_key
from ...core.instance import Metadata
from ...core.structure import Signature, Static, Structure


class Weak(Static):
    """The spec of a value that is equal to nothing but itself. When it is gone, nothing is equal to this."""

    __slots__ = ("_hash", "_reference")

    def __init__(self, value: Any) -> None:
        self._reference = weakref.ref(value)
        self._hash = hash(static_key(value))

    @property
    def value(self) -> Any:
        """The value, or ``None`` if it is gone."""
        return self._reference()

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Static) and other.value is not None and other.value is self.value)

    def __hash__(self) -> int:
        return self._hash


def weakened(spec: Any, found: list[Weak]) -> Any:
    """Return a structure or a spec with a :class:`Weak` for each value that allows it, which is added to ``found``.

    Without any it is returned itself. What a module holds stays as it is: a module compares its structure by identity, which is
    faster.
    """
    if isinstance(spec, Static):
        if not is_itself(spec.value):
            return spec
        found.append(Weak(spec.value))
        return found[-1]
    if isinstance(spec, Structure):
        inner = weakened(spec.spec, found)
        return spec if inner is spec.spec else Structure(inner, spec.num_leaves)
    if not isinstance(spec, tuple) or isinstance(spec[1], Metadata) or isinstance(spec[2], int):
        return spec
    kind, metadata, specs = spec
    new = tuple([weakened(each, found) for each in specs])
    return spec if all(one is other for one, other in zip(new, specs, strict=True)) else (kind, metadata, new)


def with_structure(part: Any, structure: Structure) -> Any:
    """Return a part of the key of a program, the structure or the signature of an argument, with its weakened structure."""
    if isinstance(part, Signature):
        return part if part.structure is structure else Signature(structure, part.leaves)
    return structure if isinstance(part, Structure) else part


def is_itself(value: Any) -> bool:
    """Return whether a value is equal to nothing but itself, and can be referred to weakly."""
    kind: Any = type(value)
    by_identity = kind.__eq__ is object.__eq__ and kind.__hash__ is object.__hash__
    return by_identity and kind.__weakrefoffset__ != 0 and not isinstance(value, functools.partial)
