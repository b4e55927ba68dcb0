"""Modules in a row that are shown once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..core.definition import Node
from ..core.instance import is_finished, metadata_of
from ..core.structure import flat_of
from ..core.words import Path, keystr


def repeats(values: Sequence[Any], apart: bool) -> Iterator[tuple[int, int]]:
    """Yield the numbers of the first and the last of the modules in a row that differ in nothing that is shown.

    Each value is in one of the rows, most in one of their own.

    Args:
        values: What is in a tuple or a list.
        apart: Whether something outside tells each from another, by :func:`told_apart`.
    """
    apart = apart or hasattr(values, "_fields")
    first = 0
    while first < len(values):
        last, like = first, kind_of(values[first]) if isinstance(values[first], Node) and not apart else None
        while like is not None and last + 1 < len(values) and kind_of(values[last + 1]) == like:
            last += 1
        yield first, last
        first = last + 1


def told_apart(owner: Node | None, path: Path, start: int, tied: Iterable[Path]) -> bool:
    """Return whether ties or frozen names tell apart what lies below a path, which begins at ``start`` in the module around."""
    below = f"{keystr(path[start:])}."
    names = () if owner is None else metadata_of(owner).frozen
    return any(name.startswith(below) for name in names) or any(place[: len(path)] == path for place in tied)


def kind_of(value: Any) -> Any:
    """Return what is shown of a tree: equal if all of it is the same. ``None`` for a tree of something else than arrays."""
    try:
        flat = None if isinstance(value, Node) and not is_finished(value) else flat_of(value)
        return flat and (flat.structure, [(leaf.shape, leaf.dtype) for leaf in flat.leaves])
    except (TypeError, AttributeError):
        return None
