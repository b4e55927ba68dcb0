"""Edits of a whole tree in one pass: other leaves, or other modules around the same leaves.

What holds nothing that differs stays the same object.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import is_
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx

from .construction import evolve
from .depth import tells_depth
from .instance import Instance, Metadata, children_in_fields, is_finished, keep_flat, level_of, parts_of
from .levels import one_level, tree_level
from .shapes import LEAF
from .structure import Flat, Signature, Structure, flat_of, specs_in, unflatten_late
from .words import Path

_ARRAY = mx.array  # found faster than in mx


@tells_depth
def with_leaves(tree: Any, leaves: Sequence[Any], convert: bool = False) -> Any:
    """Put other leaves in the place of a tree's own.

    Where no field converts or validates them, modules in which all are others are put together when somebody looks inside.

    Args:
        tree: Any tree.
        leaves: As many arrays as it has leaves, in order.
        convert: Whether the converters and validators of fields run on new values.
    """
    flat = flat_of(tree)
    converts = convert and flat.structure.remember(_converts)
    if {*map(type, leaves)} <= {_ARRAY} and not converts:
        return _put_late(tree, flat, leaves, None)
    if flat.structure.remember(has_ties):
        return _put_in_tied(tree, flat, leaves, convert)
    evolved: list[Any] = []
    new = _with_leaves(tree, iter(leaves), evolved if convert else None)
    if isinstance(new, Instance) and new is not tree and not evolved:
        keep_flat(new, Flat([*leaves], flat.structure, checked=False))
    return new


def _put_in_tied(tree: Any, flat: Flat, leaves: Sequence[Any], convert: bool) -> Any:
    """As :func:`with_leaves`, where modules have ties: those that hold a tied place are whole in the fields alone."""
    new = zip(flat.structure.leaf_paths(), leaves, flat.leaves, strict=True)
    return with_values(tree, {path: leaf for path, leaf, before in new if leaf is not before}, convert)


def has_ties(structure: Structure) -> bool:
    """Return whether a module in a tree has ties."""
    return any(spec[1].ties for _, spec in specs_in(structure) if type(spec) is tuple and type(spec[1]) is Metadata)


def _converts(structure: Structure) -> bool:
    """Return whether a field of one of the modules converts or validates arrays."""
    return any(kind.__frostleaf__.converts for kind in structure.module_classes())  # type: ignore[attr-defined]


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


def with_leaves_late(tree: Any, flat: Flat, leaves: Sequence[mx.array], signature: Signature | None = None) -> Any:
    """Put other arrays in the place of a tree's own; the modules in which all are others when somebody looks inside.

    Args:
        tree: Any tree.
        flat: The tree taken apart.
        leaves: As many arrays as it has leaves, in order.
        signature: That of the new tree, if it is known.
    """
    if signature is None and flat.signature is not None:
        signature = flat.signature.if_of(leaves)
    return _put_late(tree, flat, leaves, signature)


def _put_late(tree: Any, flat: Flat, leaves: Sequence[mx.array], signature: Signature | None) -> Any:
    same = [*map(is_, leaves, flat.leaves)]
    part = flat.structure.remember(_parts)
    if part.is_whole and flat.structure.is_of_module and not any(same):
        return unflatten_late(flat.structure, leaves, signature)
    if flat.structure.remember(has_ties):
        new = _put_in_tied(tree, flat, leaves, convert=False)
    else:
        new = _with_leaves_late(tree, part, leaves, same, 0)
    if isinstance(new, Instance) and new is not tree:
        keep_flat(new, Flat([*leaves], flat.structure, signature))
    return new


def _with_leaves_late(value: Any, part: _Part, leaves: Sequence[mx.array], same: Sequence[bool], start: int) -> Any:
    stop = start + part.size
    if all(same[start:stop]):
        return value
    if part.structure is not None and part.is_whole and not any(same[start:stop]):
        return unflatten_late(part.structure, leaves[start:stop])
    if part.inside is None:
        return leaves[start]
    metadata: Any
    metadata, children = one_level(value)  # type: ignore[misc]
    new: list[Any] = []
    for child, below in zip(children, part.inside, strict=True):
        new.append(leaves[start] if below is _LEAF_PART else _with_leaves_late(child, below, leaves, same, start))
        start += below.size
    return value.__frostleaf__.assemble(metadata, new) if isinstance(value, Instance) else metadata.make(metadata.metadata, new)


class _Part(NamedTuple):
    """A part of a structure: its size, which is the number of arrays in it, and its own parts.

    ``is_whole`` says that there are some in each module. A module below the outermost has its own ``structure``.
    """

    size: int
    is_whole: bool
    inside: Sequence[_Part] | None
    structure: Structure | None


_LEAF_PART, _OTHER_PART = _Part(1, True, None, None), _Part(0, True, None, None)


def _parts(structure: Structure) -> _Part:
    return _part(structure.spec)._replace(structure=None)  # which would hold itself


def _part(spec: Any) -> _Part:
    structure, spec = (spec, spec.spec) if isinstance(spec, Structure) else (None, spec)
    if type(spec) is not tuple:
        return _LEAF_PART if spec is mx.array else _OTHER_PART
    _, metadata, specs = spec
    is_module = type(metadata) is Metadata
    if type(specs) is int:
        inside, size = (_LEAF_PART,) * specs, specs
    else:
        inside = tuple(map(_part, specs))
        size = sum([each.size for each in inside])
    is_whole = all(each.is_whole for each in inside) and (size > 0 or not is_module)
    return _Part(size, is_whole, inside, structure or (Structure(spec, size) if is_module else None))


# Of a module, its metadata, and its children as they are after the edit: returns the module to stand there.
Change = Callable[[Any, Metadata, Sequence[Any]], Any]


@tells_depth
def change_modules(tree: Any, change: Change) -> Any:
    """Replace each module in a tree, those in static fields as well, by what ``change`` returns; inner ones first."""
    return _changed(tree, change)


def _changed(tree: Any, change: Change) -> Any:
    if isinstance(tree, Instance):
        metadata, children = level_of(tree)
        if metadata.ties:
            children = children_in_fields(tree)  # where what holds a tied array is whole
        new = _changed_inside(children, change)
        return change(tree, metadata.with_modules(lambda value: change_modules(value, change)), new)
    if (parts := parts_of(tree)) is not None:
        after = change_modules(parts, change)
        if after is parts:
            return tree
        return frozenset(after) if isinstance(tree, frozenset) else functools.partial(after[0], *after[1], **after[2])
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
    """Return a module with other metadata or children, as in :data:`Change`, or itself if they are its own."""
    own, own_children = level_of(module)
    if own.ties:
        static = {name: value for name, value in metadata.static.items() if value is not own.static[name]}
        changes = {**dict(zip(module.__frostleaf__.children, children, strict=True)), **static}
        return evolve(module, changes, training=metadata.training, frozen=metadata.frozen, convert=False)
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
    inside: dict[Any, Any] = {}
    for path, value in new.items():
        below = inside
        for entry in path:
            below = below.setdefault(entry, {})
        below[_HERE] = value
    return _with_values(tree, inside, convert)


# In nested dicts of the entries of paths, the key of the value for the path up to there.
_HERE = object()


def _with_values(tree: Any, inside: Mapping[Any, Any], convert: bool) -> Any:
    if _HERE in inside:
        return inside[_HERE]
    if isinstance(tree, Instance):
        metadata, children = level_of(tree)
        definition, old, changes = tree.__frostleaf__, tree.__dict__, {}
        checked = bool(metadata.ties) or (convert and definition.converts)
        for name, below in inside.items():
            if name in old and (value := _with_values(old[name], below, convert)) is not old[name]:
                changes[name] = value
                checked = checked or name in definition.static or not _is_sound(old[name], below)
        if checked or not changes:
            return evolve(tree, changes, convert=convert)
        return definition.assemble(metadata, [changes.get(*each) for each in zip(definition.children, children, strict=True)])
    after: Any
    if type(tree) is tuple or type(tree) is MappingProxyType:
        entries = inside.keys() & (tree.keys() if isinstance(tree, Mapping) else range(len(tree)))
        after = dict(tree) if isinstance(tree, Mapping) else list(tree)
        for entry in entries:
            after[entry] = _with_values(tree[entry], inside[entry], convert)
        if all(after[entry] is tree[entry] for entry in entries):
            return tree
        return MappingProxyType(after) if isinstance(after, dict) else tuple(after)
    here = tree_level(tree) if inside else None
    if here is None:
        return tree
    after = [
        _with_values(child, inside[entry], convert) if entry in inside else child
        for entry, child in zip(here.entries, here.children, strict=True)
    ]
    return tree if all(map(is_, after, here.children)) else here.make(after)


def _is_sound(old: Any, inside: Mapping[Any, Any]) -> bool:
    """Return whether what is put into a value needs no check: arrays and finished modules, and what is inside modules."""
    if _HERE in inside:
        new = inside[_HERE]
        return type(new) is _ARRAY or (issubclass(type(new), Instance) and is_finished(new))
    if isinstance(old, Instance):
        return True
    if type(old) is not tuple and type(old) is not MappingProxyType:
        return False
    entries = inside.keys() & (old.keys() if isinstance(old, Mapping) else range(len(old)))
    return all(_is_sound(old[entry], inside[entry]) for entry in entries)


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
