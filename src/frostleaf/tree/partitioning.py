"""Dividing trees by a selection, and merging them again."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import optree

from ..core.registration import NAMESPACE
from .comparison import unlike
from .functions import flatten, unflatten
from .selecting import Where, is_path, mask, paths_in, require_no_alias

T = TypeVar("T")


def partition(tree: T, where: Where) -> tuple[T, T]:
    """Divide a tree in two: the selected arrays with ``None`` for the rest, and the rest with ``None`` for those.

    Both keep the static values. :func:`combine` merges the two again.

    Args:
        tree: Any tree.
        where: A path, glob, class, predicate ``(path, array) -> bool``, or a list of these (see :meth:`Module.at`).
            Selecting a container or a module selects the arrays in it. Selecting nothing is allowed.

    Raises:
        ValueError: If all that is at a path is tied, or if it names a field of a named tuple, which goes by its number.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.partition({"w": mx.array(1), "b": mx.array(2), "n": 3}, "w")
    ({'w': array(1, dtype=int32), 'b': None, 'n': 3}, {'w': None, 'b': array(2, dtype=int32), 'n': 3})
    """
    leaves, structure = flatten(tree)
    chosen = mask(tree, where)
    paths = paths_in(where)
    if paths and not (is_path(where) and any(chosen)):  # one path that selects something needs no walk
        require_no_alias(tree, paths)
    return (
        unflatten(structure, [leaf if keep else None for leaf, keep in zip(leaves, chosen, strict=True)]),
        unflatten(structure, [None if keep else leaf for leaf, keep in zip(leaves, chosen, strict=True)]),
    )


def combine(*trees: T) -> T:
    """Merge trees into one: each place gets its array from the first tree that has one there.

    Args:
        *trees: Trees of one shape, with ``None`` where an array is missing, as :func:`partition` and :func:`filter` return.

    Raises:
        ValueError: If the trees have different shapes; the message shows where.

    >>> import frostleaf as fl, mlx.core as mx
    >>> tree = {"w": mx.array(1), "b": mx.array(2)}
    >>> fl.tree.combine(*fl.tree.partition(tree, "b"))["b"] is tree["b"]
    True
    """
    flat: list[tuple[list[Any], Any]] = [
        optree.tree_flatten(cast(Any, tree), none_is_leaf=True, namespace=NAMESPACE) for tree in trees
    ]
    for number, (_, spec) in enumerate(flat[1:], 2):
        if spec != flat[0][1]:
            raise unlike(number, trees[0], trees[number - 1])
    merged = [
        next((value for value in values if value is not None), None)
        for values in zip(*(leaves for leaves, _ in flat), strict=True)
    ]
    return optree.tree_unflatten(flat[0][1], merged)  # type: ignore[return-value]


def filter(tree: T, where: Where) -> T:
    """Replace every array that ``where`` does not select by ``None``: the first half of :func:`partition`.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.filter([mx.array(1), mx.array(2.0)], lambda path, array: array.dtype == mx.float32)
    [None, array(2, dtype=float32)]
    """
    return partition(tree, where)[0]
