"""Describe trees that are saved one after another, most of which have the structure of the one before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..core.structure import Flat, Static, Structure, child_specs
from .description import SCALARS, describe_tree, facts_text


class Described(NamedTuple):
    """What a checkpoint says of a tree.

    Attributes:
        text: The facts about it.
        names: The names of its arrays in the file, in order.
        values: Its leaves that are numbers, strings and bytes, in order.
        unknown: The class of each static value of which it is all that can be told, by path.
    """

    text: str
    names: Iterable[str]
    values: list[Any]
    unknown: dict[str, str]


class Describer:
    """Describes trees. Of one that is as the last, but for numbers and strings, it looks at these alone."""

    def __init__(self) -> None:
        self._last: tuple[Structure, tuple[Any, ...], Described] | None = None

    def describe(self, flat: Flat) -> Described:
        """Return what a checkpoint says of a tree.

        Raises:
            TypeError: If a leaf can be neither saved nor described, or is a shape.
            ValueError: If two arrays have the same dotted name.
        """
        structure, kinds = flat.structure, flat.signed().leaves
        if self._last is not None:
            last, kinds_of_last, described = self._last
            if kinds == kinds_of_last and _are_alike(last, structure):
                values = [value for _, value in structure.static_values() if type(value) in SCALARS]
                return described._replace(values=values)
        facts, names, values, unknown, is_lasting = describe_tree(structure, flat.leaves)
        described = Described(facts_text(facts), names, values, unknown)
        self._last = (structure, kinds, described) if is_lasting else None
        return described


def _are_alike(one: Any, other: Any) -> bool:
    """Return whether two specs differ in nothing but numbers, strings and bytes."""
    if one is other:
        return True
    if isinstance(one, Structure) and isinstance(other, Structure):
        return _are_alike(one.spec, other.spec)
    if isinstance(one, Static) and isinstance(other, Static) and type(one.value) in SCALARS:
        return type(one.value) is type(other.value)
    if not (isinstance(one, tuple) and isinstance(other, tuple)):
        return bool(one == other)
    (kind, metadata, specs), (its_kind, its_metadata, its_specs) = one, other
    if kind is not its_kind or metadata != its_metadata:
        return False
    children, its_children = child_specs(specs), child_specs(its_specs)
    return len(children) == len(its_children) and all(map(_are_alike, children, its_children))
