"""What there is in a directory of checkpoints, and in what two of them differ, without reading an array."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from ..core.shapes import ShapeDtypeStruct
from ..core.shown import Shown
from ..core.words import dtype_name, in_a_line, listed
from ..tree.comparison import MISSING
from ..tree.differences import Change, Diff
from .directory import SavedArrays
from .safetensors import DTYPES

_LINES = 100
_BY_NAME = {dtype_name(dtype): dtype for dtype in DTYPES.values()}


class CheckpointInfo(NamedTuple):
    """What :meth:`frostleaf.Checkpointer.info` tells of a checkpoint.

    Attributes:
        step: Its step.
        saved: When it was saved, in the local time zone.
        metrics: The metrics that were given with it.
        own: The bytes of files that no other checkpoint of the directory needs: what removing it would free.
        shared: The bytes of files that others need too.

    >>> import frostleaf as fl, mlx.core as mx, tempfile
    >>> with tempfile.TemporaryDirectory() as folder, fl.Checkpointer(folder) as checkpoints:
    ...     saving = checkpoints.save(1, mx.zeros(10_000), metrics={"loss": 0.5})
    ...     info = checkpoints.info()[0]
    >>> info.step, info.metrics, 40_000 < info.own < 50_000, info.shared
    (1, {'loss': 0.5}, True, 0)
    """

    step: int
    saved: datetime
    metrics: dict[str, Any]
    own: int
    shared: int

    def __str__(self) -> str:
        metrics = "".join(f", {in_a_line(name)}={value}" for name, value in self.metrics.items())
        return f"{self.step}: saved {self.saved:%Y-%m-%d %H:%M:%S}, {self.own:,} bytes, {self.shared:,} shared{metrics}"


class CheckpointInfos(Shown, tuple[CheckpointInfo, ...]):
    """The checkpoints of a directory, by step: a tuple of :class:`CheckpointInfo`, printed a line each, a hundred at most.

    A notebook shows them as a table.

    >>> import frostleaf as fl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.Checkpointer(folder).info()
    no checkpoints
    """

    def __repr__(self) -> str:
        return listed(map(str, self), _LINES, "\n") if self else "no checkpoints"


class _ArraysDiff(Diff):
    def __repr__(self) -> str:
        return super().__repr__() if self else "no array differs"


def bytes_of_files(files: Mapping[int, Iterable[str]]) -> dict[int, tuple[int, int]]:
    """Return for each of some groups of files how many bytes it has to itself, and how many in common with others.

    Names of one file are one file.
    """
    sizes: dict[int, dict[tuple[int, int], int]] = {}
    for key, paths in files.items():
        statuses: list[os.stat_result] = []
        for path in paths:
            with suppress(FileNotFoundError):  # others prune
                statuses.append(os.stat(path))
        sizes[key] = {(status.st_dev, status.st_ino): status.st_size for status in statuses}
    groups = Counter(file for found in sizes.values() for file in found)
    common = {file for file, count in groups.items() if count > 1}
    return {
        key: (
            sum(size for file, size in found.items() if file not in common),
            sum(size for file, size in found.items() if file in common),
        )
        for key, found in sizes.items()
    }


def differences_of_arrays(saved_before: SavedArrays, saved_after: SavedArrays) -> Diff:
    """Return in what arrays differ, of which shape, dtype and checksum are known, by path."""
    before, after = (
        {path: (ShapeDtypeStruct(tuple(shape), _BY_NAME[dtype]), checksum) for path, (shape, dtype, checksum) in saved.items()}
        for saved in (saved_before, saved_after)
    )
    changes: list[Change] = []
    for path in dict.fromkeys([*before, *after]):
        if path not in after:
            changes.append(Change(path, "removed", before[path][0], MISSING))
        elif path not in before:
            changes.append(Change(path, "added", MISSING, after[path][0]))
        else:
            (one, checksum), (other, its) = before[path], after[path]
            if one.dtype != other.dtype:
                changes.append(Change(path, "dtype", one, other))
            elif one.shape != other.shape:
                changes.append(Change(path, "shape", one, other))
            elif checksum != its:
                changes.append(Change(path, "value", one, other))
    return _ArraysDiff(changes)
