"""Which arrays of a tree are shards, and of what: its structure tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx

from ..core.fields import persistent
from ..core.instance import Metadata
from ..core.levels import entries_of
from ..core.structure import Structure, child_specs
from ..core.words import Path
from .group import Group

# Into how many equal parts an axis is cut before each of them is divided; or where, in parts of its length or in numbers.
Segments = int | tuple[float, ...]


class Shard(NamedTuple):
    """How an array is divided: each rank of a group has an equal part of each segment of an axis.

    Attributes:
        group: The ranks.
        axis: The axis.
        segments: The segments of the whole axis.
        ndim: How many axes the array has. ``None`` if that is not known.
    """

    group: Group
    axis: int
    segments: Segments = 1
    ndim: int | None = None

    def __str__(self) -> str:
        inside = "" if self.segments == 1 else f" with segments {self.segments}"
        return f"1/{self.group.size()} of axis {self.axis}{inside}"  # as on all ranks


class Divided:
    """A class of modules whose arrays are shards. It has a static field ``group``, and may have ``segments``.

    Attributes:
        axes: The fields whose arrays are divided, and along which axis.
        ndims: How many axes these arrays have, where that is known.
    """

    axes: ClassVar[Mapping[str, int]]
    ndims: ClassVar[Mapping[str, int]] = {}

    @classmethod
    def _shards_below(cls, metadata: Metadata, name: str, around: tuple[Shard, ...]) -> tuple[Shard, ...]:
        """Return how the arrays in a field are divided, given how the module is that holds them; the outermost first."""
        if name not in cls.axes:
            return around
        shard = Shard(metadata.static["group"], cls.axes[name], metadata.static.get("segments", 1), cls.ndims.get(name))
        return (*around, shard)


def shards_in(structure: Structure) -> tuple[tuple[Shard, ...], ...]:
    """Return for each leaf how it is divided: nothing if it is whole; if it is a shard of a shard, the last division first.

    Gradients have the structure of their model, and so tell the same.
    """
    return structure.remember(_shards_in)


def _shards_in(structure: Structure) -> tuple[tuple[Shard, ...], ...]:
    return tuple(_shards_below(structure.spec, (), (), {}))


def _shards_below(spec: Any, path: Path, around: tuple[Shard, ...], noted: Mapping[Path, Shard]) -> Iterator[tuple[Shard, ...]]:
    """Yield for each leaf how it is divided.

    Args:
        spec: A structure or a spec.
        path: Where it is in the innermost module around it.
        around: How everything in there is divided.
        noted: What that module notes of its arrays, by their paths.
    """
    if isinstance(spec, Structure):
        if spec.is_of_module and not around:
            yield from shards_in(spec)
            return
        spec = spec.spec
    if spec is mx.array:
        yield (*around, noted[path]) if path in noted else around
    elif isinstance(spec, tuple):
        kind, metadata, specs = spec
        fields = {}
        if isinstance(metadata, Metadata):
            fields, path, noted = kind.__frostleaf__.fields, (), dict(metadata.shards)
        for entry, child in zip(entries_of(kind, metadata), child_specs(specs), strict=True):
            here = around if not fields or persistent(fields[entry]) else ()
            if issubclass(kind, Divided):
                here = kind._shards_below(metadata, entry, here)
            yield from _shards_below(child, (*path, entry), here, noted)
