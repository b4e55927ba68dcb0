"""Edits of a whole tree in one pass: other leaves, or other modules around the same leaves.

What holds nothing that differs stays the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import is_
from typing import Any

import mlx.core as mx

from .construction import evolve
from .instance import Instance, Metadata, keep_flat, level_of
from .levels import one_level
from .shapes import LEAF
from .structure import Flat, Signature, flat_of

_ARRAY = mx.array  # found faster than in mx


def with_leaves(tree: Any, leaves: Sequence[Any], convert: bool = False, signature: Signature | None = None) -> Any:
    """Put other leaves in the place of a tree's own.

    Args:
        tree: Any tree.
        leaves: As many arrays as it has leaves, in order.
        convert: Whether the converters and validators of fields run on new values.
        signature: That of the tree with those leaves, if it is known.
    """
    evolved: list[Any] = []
    new = _with_leaves(tree, iter(leaves), evolved if convert else None)
    if isinstance(new, Instance) and new is not tree and not evolved:
        keep_flat(new, Flat([*leaves], flat_of(tree).structure, signature, checked=False))
    return new


def _with_leaves(value: Any, rest: Iterator[Any], evolved: list[Any] | None) -> Any:
    """As :func:`with_leaves`, and add modules whose converters ran to ``evolved``."""
    metadata: Any
    children: Sequence[Any]
    if isinstance(value, Instance):
        metadata, children = level_of(value)
    else:
        node = one_level(value)
        if node is None:
            return next(rest) if isinstance(value, LEAF) else value
        metadata, children = node
    new = [next(rest) if type(child) is _ARRAY else _with_leaves(child, rest, evolved) for child in children]
    if all(map(is_, new, children)):
        return value
    if not isinstance(value, Instance):
        return metadata.make(metadata.metadata, new)
    definition = value.__frostleaf__
    if evolved is not None and definition.converts:
        evolved.append(value)
        return evolve(value, dict(zip(definition.children, new, strict=True)))
    return definition.assemble(metadata, new)


# Of a module, its metadata, and its children as they are after the edit: returns the module to stand there.
Change = Callable[[Any, Metadata, Sequence[Any]], Any]


def change_modules(tree: Any, change: Change) -> Any:
    """Replace each module in a tree, those in static fields as well, by what ``change`` returns; inner ones first."""
    if isinstance(tree, Instance):
        metadata, children = level_of(tree)
        new = _changed_inside(children, change)
        return change(tree, metadata.with_modules(lambda value: change_modules(value, change)), new)
    node = None if isinstance(tree, LEAF) else one_level(tree)
    if node is None:
        return tree
    recipe, below = node
    after = _changed_inside(below, change)
    return tree if after is below else recipe.make(recipe.metadata, after)


def _changed_inside(children: Sequence[Any], change: Change) -> Sequence[Any]:
    """Return children with the modules in them replaced, and the very sequence given if none was."""
    for child in children:
        if type(child) is not _ARRAY and child is not None:
            new = [child if type(child) is _ARRAY else change_modules(child, change) for child in children]
            return children if all(map(is_, new, children)) else new
    return children


def remade(module: Any, metadata: Metadata, children: Sequence[Any]) -> Any:
    """Return a module with other metadata or children, or itself if they are its own."""
    own, own_children = level_of(module)
    if metadata is own and children is own_children:
        return module
    return module.__frostleaf__.assemble(metadata, children)
