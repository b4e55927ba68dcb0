"""Dividing the arrays of a model among the ranks of a group, and noting it in the model."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import mlx.core as mx

from ..core.construction import evolve
from ..core.fields import persistent
from ..core.instance import Instance, Metadata, metadata_of
from ..core.leaves import leaf_flags, leaf_spans
from ..core.shapes import ShapeDtypeStruct
from ..core.structure import Structure, flat_of, specs_in
from ..core.words import Path, describe
from ..module import Module
from ..transforms.collectives import all_gather
from ..transforms.group import Group
from ..transforms.shards import Divided, Segments, Shard, shards_in
from ..tree.walk import rewrite


class Sharded(Divided, Module):
    """A module whose arrays are shards."""


def with_shards(tree: Any, shards: Mapping[Path, Shard | None]) -> Any:
    """Return a tree whose modules note how some of their arrays are divided, by their paths; ``None`` for not any more."""
    specs = specs_in(flat_of(tree).structure)
    modules = {path for path, spec in specs if isinstance(spec, tuple) and isinstance(spec[1], Metadata)}
    noted: dict[Path, dict[Path, Shard | None]] = {}
    for path, shard in shards.items():
        around = next((path[:length] for length in range(len(path) - 1, -1, -1) if path[:length] in modules), None)
        if around is not None:
            noted.setdefault(around, {})[path[len(around) :]] = shard

    def leave(path: Path, value: Any) -> Any:
        if path not in noted:
            return value
        after = {**dict(metadata_of(value).shards), **noted[path]}
        return evolve(value, shards=tuple([(inside, shard) for inside, shard in after.items() if shard is not None]))

    return rewrite(tree, leave=leave) if noted else tree


# The groups among which an array is divided, the last division first. None if it is whole.
Groups = tuple[Group, ...]

# Of the arrays that the update of an optimizer hands on in dicts, which can't tell, the groups by name.
told: ContextVar[Mapping[str, Groups]] = ContextVar("told", default=MappingProxyType({}))


def groups_of(tree: Any) -> tuple[Groups | None, ...]:
    """Return for each leaf among which groups it is divided; ``None`` for an array outside modules of which nothing is told."""
    structure, by_name = flat_of(tree).structure, told.get()
    found = structure.remember(_groups_in)
    if not by_name or None not in found:
        return found
    names = structure.leaf_names()
    return tuple([by_name.get(name) if groups is None else groups for name, groups in zip(names, found, strict=True)])


def _groups_in(structure: Structure) -> tuple[Groups | None, ...]:
    inside = leaves_in(structure, Instance)
    each = zip(shards_in(structure), inside, strict=True)
    return tuple([tuple([shard.group for shard in shards]) if is_inside else None for shards, is_inside in each])


def groups_by_name(structure: Structure) -> Mapping[str, Groups]:
    """Return the groups of each leaf by its name, or nothing if none is divided."""
    return structure.remember(_groups_by_name)


def _groups_by_name(structure: Structure) -> Mapping[str, Groups]:
    groups = [tuple([shard.group for shard in shards]) for shards in shards_in(structure)]
    return dict(zip(structure.leaf_names(), groups, strict=True)) if any(groups) else {}


def leaves_in(structure: Structure, kind: type) -> list[bool]:
    """Return for each leaf whether it is in a module of a class."""
    inside = [False] * structure.num_leaves
    spans = structure.remember(leaf_spans)
    for path, spec in specs_in(structure):
        if isinstance(spec, tuple) and issubclass(spec[0], kind):
            start, stop = spans[path]
            inside[start:stop] = [True] * (stop - start)
    return inside


def saved_leaves(structure: Structure, but_in: type) -> Iterator[bool]:
    """Yield for each leaf whether it is saved with a model's parameters, and not in a module of a class."""
    saved, inside = leaf_flags(structure, persistent), leaves_in(structure, but_in)
    return (flag and not hidden for flag, hidden in zip(saved, inside, strict=True))


def segments_of(given: Any) -> Segments:
    """Return segments as they were given: a number of equal ones, or where the axis is cut.

    Raises:
        ValueError: If they are neither an int of 1 or more nor numbers in a list or tuple.
    """
    if isinstance(given, list | tuple) and given and all(isinstance(each, int | float) for each in given):
        return tuple(given)
    try:
        count = operator.index(given)
    except TypeError:
        count = 0
    if count < 1:
        wanted = "how many equal parts an axis has (3), or where it is cut, in parts of its length ([0.5, 0.75])"
        raise ValueError(f"segments says {wanted}, and was given as {describe(given)}")
    return count


_NOT_DIVIDED = "can't shard {name}, {array}: the {length} of its axis {axis}{into} can't be divided among {ranks} ranks"


def shard_of(array: Any, shard: Shard, name: str, advice: str = "") -> Any:
    """Return this rank's part of an array.

    Args:
        array: The whole, or its shape.
        shard: How it is divided.
        name: What to call it in an error.
        advice: What else to say in one.

    Raises:
        ValueError: If it has no such axis, or can't be divided so.
    """
    group, axis = shard.group, shard.axis
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"can't shard {name}, {describe(array)}, along axis {axis}, which it does not have{advice}")
    edges = _edges(shard.segments, array.shape[axis])
    if edges is None or any((stop - start) % group.size() for start, stop in pairwise(edges)):
        length, into = array.shape[axis], "" if shard.segments == 1 else f" with segments {shard.segments}"
        raise ValueError(
            _NOT_DIVIDED.format(name=name, array=describe(array), length=length, axis=axis, into=into, ranks=group.size())
            + advice
        )
    if group.size() == 1:
        return array
    if isinstance(array, ShapeDtypeStruct):
        return _resized(array, axis, array.shape[axis] // group.size())
    widths = [(stop - start) // group.size() for start, stop in pairwise(edges)]
    starts = [start + group.rank() * width for start, width in zip(edges, widths, strict=False)]
    parts = [_part(array, axis, start, width) for start, width in zip(starts, widths, strict=True)]
    # A copy, so that the whole is not kept.
    return mx.contiguous(mx.concatenate(parts, axis=axis))


def whole_of(array: Any, shard: Shard) -> Any:
    """Return the array, or its shape, of which each rank gives its part, as :func:`shard_of` made it."""
    group, axis = shard.group, shard.axis
    if group.size() == 1:
        return array
    if isinstance(array, ShapeDtypeStruct):
        return _resized(array, axis, array.shape[axis] * group.size())
    edges = _edges(shard.segments, array.shape[axis] * group.size())
    assert edges is not None
    starts = [edge // group.size() for edge in edges]
    shards = all_gather(array[None], group)
    parts = [_part(shards[rank], axis, start, stop - start) for start, stop in pairwise(starts) for rank in range(group.size())]
    return mx.concatenate(parts, axis=axis)


def _edges(segments: Segments, length: int) -> list[int] | None:
    """Return where the segments of an axis begin, and where the last ends; ``None`` if it has no such segments."""
    if isinstance(segments, int):
        return None if length % segments else [*range(0, length, length // segments), length]
    cuts = [each if isinstance(segments[0], int) else int(each * length) for each in segments]
    edges = [0, *map(int, cuts), length]
    return edges if edges == sorted(edges) else None


def _part(array: mx.array, axis: int, start: int, width: int) -> mx.array:
    place = [slice(None)] * array.ndim
    place[axis] = slice(start, start + width)
    return array[tuple(place)]


def _resized(shape: ShapeDtypeStruct, axis: int, length: int) -> ShapeDtypeStruct:
    lengths = [*shape.shape]
    lengths[axis] = length
    return ShapeDtypeStruct(tuple(lengths), shape.dtype)
