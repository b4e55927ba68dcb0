"""One level of a tree at a time: the ground on which edits share what they do not touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..node import Node, Path, edited, field_values, metadata_of
from .structure import one_level


class Level(NamedTuple):
    """The children of a node, their names, the function that makes the node again from other children, and its tied places."""

    entries: Sequence[Any]
    children: Sequence[Any]
    make: Callable[[Sequence[Any]], Any]
    tied: frozenset[Path] = frozenset()


def level(value: Any, convert: bool = False) -> Level | None:
    """Return one level of a tree, or ``None`` for an array, a static value or ``None``.

    The children of a module are all its fields, static ones included. With ``convert`` a module that is made again runs the
    converters and validators of the fields that differ.
    """
    if isinstance(value, Node):
        fields = field_values(value)
        return Level(
            list(fields),
            list(fields.values()),
            lambda new: edited(value, dict(zip(fields, new, strict=True)), convert=convert),
            frozenset(target for target, _ in metadata_of(value).ties),
        )
    node = one_level(value)
    if node is None:
        return None
    recipe, children = node
    return Level(recipe.entries, children, lambda new: recipe.make(recipe.metadata, new))


class Descend:
    """What :func:`rewrite`'s ``enter`` returns to leave a value as it is and go on with what is inside."""


def rewrite(
    value: Any,
    enter: Callable[[Path, Any], Any] | None = None,
    leave: Callable[[Path, Any], Any] | None = None,
    path: Path = (),
    convert: bool = False,
    tied: frozenset[Path] = frozenset(),
) -> Any:
    """Return the tree with some of its parts replaced; every part in which nothing was replaced is the same object.

    An array that stands at tied places is one part, at the place of its source.

    Args:
        value: The tree.
        enter: Called with the path and the value of each part, before its children. What it returns takes the place of
            the part, unless that is ``Descend``.
        leave: Called with the path and the value of each part whose children have been dealt with.
        path: The path of ``value`` in a larger tree.
        convert: Whether the converters and validators of the fields run on what is put into them.
        tied: The paths of the tied places of what is around ``value``.
    """
    if tied and path in tied and not isinstance(value, Node):
        return value
    if enter is not None:
        replacement = enter(path, value)
        if replacement is not Descend:
            return replacement
    parts = level(value, convert)
    if parts is not None and len(parts.children):
        tied = tied.union((*path, *place) for place in parts.tied) if parts.tied else tied
        new = [
            rewrite(child, enter, leave, (*path, entry), convert, tied)
            for entry, child in zip(parts.entries, parts.children, strict=True)
        ]
        if any(after is not before for after, before in zip(new, parts.children, strict=True)):
            value = parts.make(new)
    return value if leave is None else leave(path, value)
