"""Trees that go with a tree: one value for each of its leaves, or one for a whole part of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from ..node import Path
from ..tree.compare import describe
from ..tree.functions import MISMATCH, dotted
from ..tree.structure import entries_of, one_level


def paired(tree: Any, other: Any, what: str, path: Path = ()) -> Iterator[tuple[Path, mx.array, Any]]:
    """Yield the path of each array in ``tree``, the array, and what goes with it in ``other``.

    Args:
        tree: Any tree.
        other: A tree of the same classes and names, or the beginning of one: ``None`` or a number in the place of a part goes
            with every array in it. What stands in the place of a static value is passed over.
        what: What ``other`` is, for the error.
        path: The path of ``tree`` in a larger tree.

    Raises:
        ValueError: If ``other`` has something else in the place of a node; the message names the path.
    """
    if isinstance(tree, mx.array):
        yield path, tree, other
        return
    node = one_level(tree)
    if node is None:
        return
    metadata, children = node
    entries = entries_of(type(tree), metadata)
    values = dict.fromkeys(entries, other) if other is None or isinstance(other, int) else _children(other)
    if values is None or values.keys() != set(entries) or _kind(tree) is not _kind(other, tree):
        place = dotted(path) or "the root"
        given = describe(other) if values is None else _shown(other, values)
        raise ValueError(MISMATCH.format(what=what, path=place, given=given, expected=_shown(tree, entries)))
    for entry, child in zip(entries, children, strict=True):
        yield from paired(child, values[entry], what, (*path, entry))


def argument(path: Path) -> str:
    """Return the name of a place in the arguments of a function, whose path begins with the number of the argument.

    >>> argument((0, "layers", 1, "weight")), argument((2,))
    ('layers.1.weight of argument 0', 'argument 2')
    """
    inside = dotted(path[1:])
    return f"{inside} of argument {path[0]}" if inside else f"argument {path[0]}"


def _children(value: Any) -> dict[Any, Any] | None:
    node = None if isinstance(value, mx.array) else one_level(value)
    return None if node is None else dict(zip(entries_of(type(value), node[0]), node[1], strict=True))


def _kind(value: Any, stands_for: Any = None) -> type:
    """Return the class of a node, in which a list is a tuple and all mappings are one; of a number, that of what it is for."""
    if stands_for is not None and (value is None or isinstance(value, int)):
        return _kind(stands_for)
    return tuple if isinstance(value, list) else Mapping if isinstance(value, Mapping) else type(value)


def _shown(value: Any, entries: Any) -> str:
    return f"{type(value).__name__} of {len(entries)} ({', '.join(map(str, entries))})"
