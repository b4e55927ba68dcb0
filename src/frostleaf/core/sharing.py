"""Edits of a whole tree in one pass: other leaves, or other modules around the same leaves.

What holds nothing that differs stays the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import is_
from types import MappingProxyType
from typing import Any

import mlx.core as mx

from .construction import evolve
from .instance import Instance, Metadata, is_finished, keep_flat, level_of
from .levels import one_level, tree_level
from .shapes import LEAF
from .structure import Flat, flat_of
from .words import Path

_ARRAY = mx.array  # found faster than in mx


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
    is_module = isinstance(value, Instance)
    if is_module:
        metadata, children = level_of(value)
    else:
        node = None if value is None else one_level(value)
        if node is None:
            return next(rest) if isinstance(value, LEAF) else value
        metadata, children = node
    new = [next(rest) if type(child) is _ARRAY else _with_leaves(child, rest, evolved) for child in children]
    if all(map(is_, new, children)):
        return value
    if not is_module:
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
        metadata, children = level_of(tree)
        definition, old, changes = tree.__frostleaf__, tree.__dict__, {}
        checked = bool(metadata.ties) or (convert and definition.converts)
        for name, below in inside.items():
            if name in old and (value := with_values(old[name], below, convert)) is not old[name]:
                changes[name] = value
                checked = checked or name in definition.static or not _may_replace(old[name], value)
        if checked or not changes:
            return evolve(tree, changes, convert=convert)
        return definition.assemble(metadata, [changes.get(*each) for each in zip(definition.children, children, strict=True)])
    after: Any
    if type(tree) is tuple or type(tree) is MappingProxyType:
        entries = inside.keys() & (tree.keys() if isinstance(tree, Mapping) else range(len(tree)))
        after = dict(tree) if isinstance(tree, Mapping) else list(tree)
        for entry in entries:
            after[entry] = with_values(tree[entry], inside[entry], convert)
        if all(after[entry] is tree[entry] for entry in entries):
            return tree
        return MappingProxyType(after) if isinstance(after, dict) else tuple(after)
    here = tree_level(tree) if inside else None
    if here is None:
        return tree
    after = [
        with_values(child, inside[entry], convert) if entry in inside else child
        for entry, child in zip(here.entries, here.children, strict=True)
    ]
    return tree if all(map(is_, after, here.children)) else here.make(after)


def _may_replace(old: Any, new: Any) -> bool:
    """Return whether a new value needs no check: arrays and finished modules don't, nor containers of these."""
    if type(new) is _ARRAY or (isinstance(new, Instance) and is_finished(new)):
        return True
    if type(new) is MappingProxyType and type(old) is MappingProxyType and [*new] == [*old]:
        new, old = (*new.values(),), (*old.values(),)
    if type(new) is not tuple or type(old) is not tuple or len(new) != len(old):
        return False
    return all(_may_replace(before, after) for before, after in zip(old, new, strict=True) if after is not before)


def shared(old: Any, new: Any) -> Any:
    """Return ``new`` with the parts of ``old`` in it that have the same arrays and the same of everything else."""
    if old is new or isinstance(new, LEAF):
        return new
    if isinstance(old, Instance) and isinstance(new, Instance):
        before, after = level_of(old), level_of(new)
        by_name = dict(zip(old.__frostleaf__.children, before[1], strict=True))
        names = new.__frostleaf__.children
        children = [shared(by_name.get(name), child) for name, child in zip(names, after[1], strict=True)]
        if type(old) is type(new) and before[0] == after[0] and all(map(is_, children, before[1])):
            return old
        return new if all(map(is_, children, after[1])) else new.__frostleaf__.assemble(after[0], children)
    here = one_level(new)
    there = one_level(old) if here is not None and type(old) is type(new) else None
    if here is None or there is None or here[0] != there[0] or len(here[1]) != len(there[1]):
        return new
    parts = [shared(*each) for each in zip(there[1], here[1], strict=True)]
    if all(map(is_, parts, there[1])):
        return old
    return here[0].make(here[0].metadata, parts)
