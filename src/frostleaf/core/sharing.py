"""Edits of a whole tree in one pass: other leaves, or other modules around the same leaves.

What holds nothing that differs stays the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any

import mlx.core as mx

from .construction import evolve
from .depth import tells_depth
from .instance import Instance, Metadata, is_finished, keep_flat, level_of
from .levels import one_level, tree_level
from .shapes import LEAF
from .structure import Flat, flat_of
from .words import Path

_ARRAY = mx.array  # found faster than in mx


@tells_depth
def with_leaves(tree: Any, leaves: Sequence[Any], convert: bool = False) -> Any:
    """Put other leaves in the place of a tree's own.

    Args:
        tree: Any tree.
        leaves: As many arrays as it has leaves, in order.
        convert: Whether the converters and validators of fields run on new values.
    """
    structure = flat_of(tree).structure
    evolved: list[Any] = []
    new = _with_leaves(tree, iter(leaves), evolved if convert else None)
    if isinstance(new, Instance) and new is not tree and not evolved:
        keep_flat(new, Flat([*leaves], structure, checked=False))
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


@tells_depth
def change_modules(tree: Any, change: Change) -> Any:
    """Replace each module in a tree, those in static fields as well, by what ``change`` returns; inner ones first."""
    return _changed(tree, change)


def _changed(tree: Any, change: Change) -> Any:
    if isinstance(tree, Instance):
        metadata, children = level_of(tree)
        new = _changed_inside(children, change)
        return change(tree, metadata.with_modules(lambda value: _changed(value, change)), new)
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
            new = [child if type(child) is _ARRAY else _changed(child, change) for child in children]
            return children if all(map(is_, new, children)) else new
    return children


def remade(module: Any, metadata: Metadata, children: Sequence[Any]) -> Any:
    """Return a module with other metadata or children, or itself if they are its own."""
    own, own_children = level_of(module)
    if metadata is own and children is own_children:
        return module
    return module.__frostleaf__.assemble(metadata, children)


def with_values(tree: Any, new: Mapping[Path, Any], convert: bool = True) -> Any:
    """Put new values at some paths of a tree. The cost is that of the nodes on the paths.

    A path that leads nowhere is ignored.

    Args:
        tree: Any tree.
        new: The values by their paths, which lead through static fields as well.
        convert: Whether the converters and validators of the fields that change run.
    """
    if () in new:
        return new[()]
    inside: dict[Any, dict[Path, Any]] = {}
    for path, value in new.items():
        inside.setdefault(path[0], {})[path[1:]] = value
    if isinstance(tree, Instance):
        level_of(tree)
        values = tree.__dict__
        below = {name: with_values(values[name], each, convert) for name, each in inside.items() if name in values}
        return _with_fields(tree, {name: value for name, value in below.items() if value is not values[name]}, convert)
    here = tree_level(tree) if inside and type(tree) is not tuple else None
    if here is None and type(tree) is not tuple:
        return tree
    before, entries = (here.children, here.entries) if here else (tree, range(len(tree)))
    after = list(before)
    for index in inside.keys() & entries if here is None else [at for at, each in enumerate(entries) if each in inside]:
        after[index] = with_values(after[index], inside[entries[index]], convert)
    if all(map(is_, after, before)):
        return tree
    return here.make(after) if here else tuple(after)


def _with_fields(node: Instance, changes: Mapping[str, Any], convert: bool) -> Any:
    metadata, children = level_of(node)
    definition, old = node.__frostleaf__, node.__dict__
    plain = not metadata.ties and not (convert and definition.converts) and changes.keys().isdisjoint(definition.static)
    if not changes or not plain or not all(_may_replace(old[name], value) for name, value in changes.items()):
        return evolve(node, changes, convert=convert)
    after = [changes.get(name, child) for name, child in zip(definition.children, children, strict=True)]
    return definition.assemble(metadata, after)


def _may_replace(old: Any, new: Any) -> bool:
    """Return whether a new value needs no check: arrays and finished modules don't, nor does a tuple in which others changed."""
    if type(new) is _ARRAY or (isinstance(new, Instance) and is_finished(new)):
        return True
    if type(new) is not tuple or type(old) is not tuple or len(new) != len(old):
        return False
    return all(_may_replace(before, after) for before, after in zip(old, new, strict=True) if after is not before)
