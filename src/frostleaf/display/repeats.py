"""Modules in a row that are shown once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..core.definition import Node
from ..core.instance import is_finished, metadata_of
from ..core.structure import flat_of
from ..core.words import Path


def repeats(values: Sequence[Any], owner: Node | None, tied: bool) -> Iterator[tuple[int, int]]:
    """Yield the numbers of the first and the last of the modules in a row that differ in nothing that is shown.

    Each value is in one of the rows, most in one of their own.

    Args:
        values: What is in a tuple or a list.
        owner: The module that holds it, whose frozen names may tell one from another.
        tied: Whether there are tied places inside, which tell each from another.
    """
    single = tied or hasattr(values, "_fields") or (owner is not None and bool(metadata_of(owner).frozen))
    first = 0
    while first < len(values):
        last, like = first, None if single else _kind(values[first])
        while like is not None and last + 1 < len(values) and _kind(values[last + 1]) == like:
            last += 1
        yield first, last
        first = last + 1


def ties_in(tied: Iterable[Path], path: Path) -> bool:
    """Return whether one of the tied places lies below a path."""
    return any(place[: len(path)] == path for place in tied)


def _kind(value: Any) -> Any:
    """Return what is shown of a module: equal if all of it is the same. ``None`` for anything else."""
    try:
        flat = flat_of(value) if isinstance(value, Node) and is_finished(value) else None
        return flat and (flat.structure, [(leaf.shape, leaf.dtype) for leaf in flat.leaves])
    except (TypeError, AttributeError):  # a tree of something else than arrays
        return None
