"""Stacking trees, laying a tree out as vectors, and counting the numbers in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx

from ..core.shapes import require_no_shapes
from ..core.words import describe, dtype_name, listed
from .comparison import require_alike
from .functions import flatten, unflatten

T = TypeVar("T")


def stack(trees: Sequence[T], axis: int = 0) -> T:
    """Stack the leaves of trees along a new axis.

    Args:
        trees: At least one tree; all with the same structure and shapes.
        axis: Where the new axis goes. Default: ``0``.

    Raises:
        ValueError: If there is no tree, or structures or shapes differ; the message names the path.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.stack([{"a": mx.array(1)}, {"a": mx.array(2)}])
    {'a': array([1, 2], dtype=int32)}
    """
    if not trees:
        raise ValueError("there is no tree to stack: give at least one")
    structure = require_alike(trees)
    stacked = []
    each_leaves = [flatten(tree)[0] for tree in trees]
    for leaves in each_leaves:
        require_no_shapes("fl.tree.stack", leaves)
    for name, *values in zip(structure.leaf_names(), *each_leaves, strict=True):
        if len({value.shape for value in values}) > 1:
            shapes = listed(dict.fromkeys(map(describe, values)), separator=" and ")
            raise ValueError(f"can't stack {name!r}: it is {shapes} in the trees given, and must be of one shape")
        stacked.append(mx.stack(values, axis))
    return unflatten(structure, stacked)  # type: ignore[no-any-return]


def unstack(tree: T, axis: int = 0) -> list[T]:
    """Undo :func:`stack`: return one tree for each index along an axis of the leaves.

    Args:
        tree: A tree with at least one leaf; all leaves have the same length along ``axis``.
        axis: The axis to split. Default: ``0``.

    Raises:
        ValueError: If there is no leaf, or one has no such axis or another length; the message names its path.

    >>> import frostleaf as fl, mlx.core as mx
    >>> [each["a"].item() for each in fl.tree.unstack({"a": mx.array([1, 2])})]
    [1, 2]
    """
    leaves, structure = flatten(tree)
    require_no_shapes("fl.tree.unstack", leaves)
    if not leaves:
        raise ValueError("there is nothing to unstack: the tree has no array")
    names = structure.leaf_names()
    for name, leaf in zip(names, leaves, strict=True):
        if not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(f"can't unstack {name!r} along axis {axis}: it is {describe(leaf)}")
        length = leaves[0].shape[axis]
        if leaf.shape[axis] != length:
            raise ValueError(
                f"can't unstack along axis {axis}: {names[0]!r} has length {length} there and {name!r} is {describe(leaf)}"
            )
    moved = [mx.moveaxis(leaf, axis, 0) for leaf in leaves]
    return [unflatten(structure, [leaf[index] for leaf in moved]) for index in range(length)]


def ravel(tree: T) -> tuple[dict[str, mx.array], Callable[[Mapping[str, mx.array]], T]]:
    """Lay the leaves end to end in one vector for each dtype, and return these with a function that makes the tree again.

    Args:
        tree: Any tree.

    Returns:
        A dict from the name of a dtype (``"float32"``) to a vector, and ``unravel``, which takes such a dict and returns a tree
        of the first tree's structure, shapes and dtypes. Both ways are differentiable.

    >>> import frostleaf as fl, mlx.core as mx
    >>> vectors, unravel = fl.tree.ravel({"w": mx.ones((2, 2)), "b": mx.zeros(1), "n": mx.array(3)})
    >>> vectors
    {'float32': array([1, 1, 1, 1, 0], dtype=float32), 'int32': array([3], dtype=int32)}
    >>> fl.tree.map(lambda leaf: leaf.shape, unravel(vectors))
    {'w': (2, 2), 'b': (1,), 'n': ()}
    """
    leaves, structure = flatten(tree)
    require_no_shapes("fl.tree.ravel", leaves)
    groups: dict[str, list[int]] = {}
    for position, leaf in enumerate(leaves):
        groups.setdefault(dtype_name(leaf.dtype), []).append(position)
    shapes = {name: [leaves[position].shape for position in group] for name, group in groups.items()}
    laid = {name: concatenate([leaves[position] for position in group]) for name, group in groups.items()}
    expected = _described(laid)

    def unravel(vectors: Mapping[str, mx.array]) -> T:
        given = _described(vectors)
        if given != expected:
            raise ValueError(f"unravel expects {expected} and was given {given}")
        values: list[Any] = [None] * structure.num_leaves
        for name, group in groups.items():
            for position, array in zip(group, _split_for_gradients(vectors[name], shapes[name]), strict=True):
                values[position] = array
        return unflatten(structure, values)  # type: ignore[no-any-return]

    return laid, unravel


def concatenate(arrays: Sequence[mx.array]) -> mx.array:
    """Lay arrays, at least one, end to end in a vector."""
    return arrays[0].reshape(-1) if len(arrays) == 1 else mx.concatenate([array.reshape(-1) for array in arrays])


def split(vector: mx.array, shapes: Sequence[tuple[int, ...]]) -> list[mx.array]:
    """Undo :func:`concatenate`: return arrays of the shapes, as views of the vector."""
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    return [piece.reshape(shape) for piece, shape in zip(mx.split(vector, ends[:-1]), shapes, strict=True)]


def _described(vectors: Any) -> Any:
    return {name: describe(each) for name, each in vectors.items()} if isinstance(vectors, Mapping) else describe(vectors)


def _split_for_gradients(vector: mx.array, shapes: Sequence[tuple[int, ...]]) -> list[mx.array]:
    # MLX's own gradient of a split adds up one vector of the full length for each piece.
    splitting: Any = mx.custom_function(lambda vector: split(vector, shapes))
    splitting.vjp(lambda vector, cotangents, outputs: concatenate(cotangents))
    return splitting(vector)  # type: ignore[no-any-return]


def size(tree: Any) -> int:
    """Count the numbers in the leaves of a tree. An array object at several places counts at each, tied places as one.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.size([mx.zeros((2, 3)), mx.array(1), "text"])
    7
    """
    return sum(leaf.size for leaf in flatten(tree)[0])


def nbytes(tree: Any) -> int:
    """Count the bytes in the leaves of a tree. An array object at several places counts once.

    >>> import frostleaf as fl, mlx.core as mx
    >>> shared = mx.zeros(4, mx.float16)
    >>> fl.tree.nbytes([shared, shared, mx.zeros(1)])
    12
    """
    return sum({id(leaf): leaf.nbytes for leaf in flatten(tree)[0]}.values())
