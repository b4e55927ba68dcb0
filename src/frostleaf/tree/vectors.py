"""Trees as numbers in a row: many trees stacked into one, one tree laid out as a vector, and how much is in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx

from .compare import UNLIKE, describe, diff
from .functions import dotted, flatten, unflatten

T = TypeVar("T")

NOTHING_TO_STACK = "there is no tree to stack: give at least one"
STACK_SHAPES = "can't stack {path!r}: it is {shapes} in the trees given, and must be of one shape"
NO_AXIS = "can't unstack {path!r} along axis {axis}: it is {array}"
UNEQUAL_LENGTHS = "can't unstack along axis {axis}: {first!r} has length {length} there and {path!r} is {array}"
WRONG_VECTORS = "unravel expects {expected} and was given {given}"


def stack(trees: Sequence[T], axis: int = 0) -> T:
    """Return one tree whose leaves are those of the trees, stacked along a new axis.

    Args:
        trees: At least one tree; all of one structure and with the same shapes.
        axis: Where the new axis goes. Default: ``0``.

    Raises:
        ValueError: If there is no tree, or structures or shapes differ; the message names the path.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.stack([{"a": mx.array(1)}, {"a": mx.array(2)}])
    {'a': array([1, 2], dtype=int32)}
    """
    flat = [flatten(tree) for tree in trees]
    if not flat:
        raise ValueError(NOTHING_TO_STACK)
    structure = flat[0][1]
    for number, (_, other) in enumerate(flat[1:], 2):
        if other != structure:
            raise ValueError(UNLIKE.format(number=number, difference=diff(trees[0], trees[number - 1])))
    stacked = []
    for position, values in enumerate(zip(*(leaves for leaves, _ in flat), strict=True)):
        if len({value.shape for value in values}) > 1:
            shapes = " and ".join(dict.fromkeys(map(describe, values)))
            raise ValueError(STACK_SHAPES.format(path=dotted(structure.leaf_paths()[position]), shapes=shapes))
        stacked.append(mx.stack(list(values), axis))
    return unflatten(structure, stacked)  # type: ignore[no-any-return]


def unstack(tree: T, axis: int = 0) -> list[T]:
    """Return the trees that :func:`stack` put together: one for each index along an axis of the leaves.

    Args:
        tree: A tree with at least one leaf, all of one length along ``axis``.
        axis: The axis that is taken apart. Default: ``0``.

    Raises:
        ValueError: If a leaf has no such axis or another length; the message names its path.

    >>> import frostleaf as fl, mlx.core as mx
    >>> [each["a"].item() for each in fl.tree.unstack({"a": mx.array([1, 2])})]
    [1, 2]
    """
    leaves, structure = flatten(tree)
    if not leaves:
        raise ValueError(NOTHING_TO_STACK)
    names = [dotted(path) for path in structure.leaf_paths()]
    for name, leaf in zip(names, leaves, strict=True):
        if not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(NO_AXIS.format(path=name, axis=axis, array=describe(leaf)))
        if leaf.shape[axis] != leaves[0].shape[axis]:
            shown = UNEQUAL_LENGTHS.format(
                axis=axis, first=names[0], length=leaves[0].shape[axis], path=name, array=describe(leaf)
            )
            raise ValueError(shown)
    length = leaves[0].shape[axis]
    moved = [mx.moveaxis(leaf, axis, 0) for leaf in leaves]
    return [unflatten(structure, [leaf[index] for leaf in moved]) for index in range(length)]


def ravel(tree: T) -> tuple[dict[str, mx.array], Callable[[Mapping[str, mx.array]], T]]:
    """Return the leaves laid end to end, one vector for each dtype, and the function that makes the tree of them again.

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
    groups: dict[str, list[int]] = {}
    for position, leaf in enumerate(leaves):
        groups.setdefault(dtype_name(leaf), []).append(position)
    shapes = {name: [leaves[position].shape for position in group] for name, group in groups.items()}
    laid = {name: laid_end_to_end([leaves[position] for position in group]) for name, group in groups.items()}
    expected = _described(laid)

    def unravel(vectors: Mapping[str, mx.array]) -> T:
        given = _described(vectors)
        if given != expected:
            raise ValueError(WRONG_VECTORS.format(expected=expected, given=given))
        values: list[Any] = [None] * structure.num_leaves
        for name, group in groups.items():
            for position, array in zip(group, _taken_apart_for_gradients(vectors[name], shapes[name]), strict=True):
                values[position] = array
        return unflatten(structure, values)  # type: ignore[no-any-return]

    return laid, unravel


def dtype_name(array: mx.array) -> str:
    """Return the name of an array's dtype, such as ``"float32"``."""
    return str(array.dtype).removeprefix("mlx.core.")


def laid_end_to_end(arrays: Sequence[mx.array]) -> mx.array:
    """Return the numbers of the arrays, of which there is at least one, as one vector."""
    return arrays[0].reshape(-1) if len(arrays) == 1 else mx.concatenate([array.reshape(-1) for array in arrays])


def taken_apart(vector: mx.array, shapes: Sequence[tuple[int, ...]]) -> list[mx.array]:
    """Return arrays of the shapes that were laid end to end, as views of the vector."""
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    return [part.reshape(shape) for part, shape in zip(mx.split(vector, ends[:-1]), shapes, strict=True)]


def _described(vectors: Any) -> Any:
    return {name: describe(each) for name, each in vectors.items()} if isinstance(vectors, Mapping) else describe(vectors)


def _taken_apart_for_gradients(vector: mx.array, shapes: Sequence[tuple[int, ...]]) -> list[mx.array]:
    # MLX's gradient of taking a vector apart adds one vector of that length for each part.
    parts: Any = mx.custom_function(lambda vector: taken_apart(vector, shapes))
    parts.vjp(lambda vector, cotangents, outputs: laid_end_to_end(cotangents))
    return parts(vector)  # type: ignore[no-any-return]


def size(tree: Any) -> int:
    """Return how many numbers the leaves of a tree hold together.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.size([mx.zeros((2, 3)), mx.array(1), "text"])
    7
    """
    return sum(leaf.size for leaf in flatten(tree)[0])


def nbytes(tree: Any) -> int:
    """Return how many bytes the leaves of a tree take. An array object that stands at several places counts once.

    >>> import frostleaf as fl, mlx.core as mx
    >>> shared = mx.zeros(4, mx.float16)
    >>> fl.tree.nbytes([shared, shared, mx.zeros(1)])
    12
    """
    return sum({id(leaf): leaf.nbytes for leaf in flatten(tree)[0]}.values())
