"""Taking trees apart and putting them together, and functions of their leaves."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import attrs
import mlx.core as mx
import optree

from ..core import structure as core
from ..core.definition import Node
from ..core.hidden import is_foreign_array
from ..core.refused import ForeignArrayError
from ..core.registration import NAMESPACE
from ..core.shapes import LEAF
from ..core.words import describe
from .prefixes import flatten_up_to

T = TypeVar("T")


def flatten(tree: Any) -> tuple[list[mx.array], core.Structure]:
    """Take a tree apart into its arrays, in order, and the structure that is left.

    Only an ``mx.array`` is a leaf, or a :class:`frostleaf.ShapeDtypeStruct` that stands for one. ``None`` and empty containers
    have no leaves; numbers, strings, functions and all else that is not a container are part of the structure.

    Args:
        tree: Any nesting of modules, tuples, lists, dicts and registered classes.

    >>> import frostleaf as fl, mlx.core as mx
    >>> leaves, structure = fl.tree.flatten({"a": mx.array(1), "b": (None, "text", mx.array(2.0))})
    >>> len(leaves), structure
    (2, Structure({'a': *, 'b': (None, 'text', *)}))
    >>> fl.tree.unflatten(structure, [1, 2])
    {'a': 1, 'b': (None, 'text', 2)}
    >>> fl.tree.flatten(None)[0]
    []
    """
    flat = core.flat_of(tree)
    return list(flat.leaves), flat.structure


def unflatten(structure: core.Structure, leaves: Iterable[Any], static: Callable[[Any], Any] | None = None) -> Any:
    """Put a tree together from a structure and leaves.

    The inverse of :func:`flatten`: classes and static values come from the structure, and the leaves are the very objects
    given. They need not be arrays.

    Args:
        structure: As returned by :func:`flatten` or :func:`structure`.
        leaves: As many values as the structure has leaves.
        static: Called with each value that is neither leaf nor container nor in a static field; returns its replacement.
            Default: the identity.

    Raises:
        ValueError: If there are more or fewer leaves.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.unflatten(fl.tree.structure([mx.array(1), {"n": 3}]), ["leaf"])
    ['leaf', {'n': 3}]
    """
    values = list(leaves)
    if len(values) != structure.num_leaves:
        raise ValueError(f"the structure has {structure.num_leaves} leaves and {len(values)} were given")
    return core.unflatten(structure, iter(values), static)


def leaves(tree: Any) -> list[mx.array]:
    """Return the arrays of a tree, in the order of :func:`flatten`.

    >>> import frostleaf as fl, mlx.core as mx
    >>> [leaf.item() for leaf in fl.tree.leaves({"b": mx.array(1), "a": (mx.array(2), "text")})]
    [1, 2]
    """
    return flatten(tree)[0]


def structure(tree: Any) -> core.Structure:
    """Return the structure of a tree: what :func:`flatten` leaves without the arrays.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.structure((mx.array(1), 1)) == fl.tree.structure((mx.array(2), 1))
    True
    >>> fl.tree.structure((mx.array(1), 1)) == fl.tree.structure((mx.array(1), True))
    False
    """
    return flatten(tree)[1]


def paths(tree: Any) -> list[str]:
    """Return the dotted name of each leaf, in the order of :func:`flatten`, as MLX writes it.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.paths({"layers": [{"weight": mx.array(1)}, None, mx.array(2)]})
    ['layers.0.weight', 'layers.2']
    """
    return list(structure(tree).leaf_names())


def map(function: Callable[..., Any], tree: T, *rest: Any) -> T:
    """Apply a function to each leaf and return a tree of the results, of the same structure.

    Args:
        function: Called with each leaf and the value at the same place in each tree of ``rest``.
        tree: The tree that gives the structure. If it is the only one, it may have arrays of NumPy, which the function is given
            too: ``fl.tree.map(mx.array, batch)`` converts a batch.
        *rest: Trees of that structure. Where the first has a leaf, the others may have a whole subtree, or ``None``.

    Raises:
        TypeError: If the tree is in the place of the function, or the function can't take a ``None`` of ``rest``.
        ValueError: If a tree of ``rest`` has another structure, or an array where the first has a static value, such as a
            number; the message shows where.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.map(lambda a, b: (a + b).item(), {"x": mx.array(1), "n": 7}, {"x": mx.array(2), "n": 8})
    {'x': 3, 'n': 7}
    """
    _require_function_first("map", function, tree)
    try:
        first, shape = flatten(tree)
    except ForeignArrayError:
        if rest:
            raise
        return _map_foreign(function, tree)  # type: ignore[no-any-return]
    return unflatten(shape, _mapped(function, shape, first, *_beside(tree, rest)))  # type: ignore[no-any-return]


def _map_foreign(function: Callable[..., Any], tree: Any) -> Any:
    def mapped(value: Any) -> Any:
        return function(value) if isinstance(value, LEAF) or is_foreign_array(value) else value

    return optree.tree_map(mapped, tree, namespace=NAMESPACE)


def map_with_path(function: Callable[..., Any], tree: T, *rest: Any) -> T:
    """Apply ``function(path, leaf, ...)`` to each leaf and return a tree of the results.

    As :func:`map`, with the dotted name of each leaf (see :func:`paths`) as the first argument.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.map_with_path(lambda path, leaf: path, {"a": [mx.array(1), mx.array(2)]})
    {'a': ['a.0', 'a.1']}
    """
    _require_function_first("map_with_path", function, tree)
    first, shape = flatten(tree)
    new = _mapped(function, shape, shape.leaf_names(), first, *_beside(tree, rest))
    return unflatten(shape, new)  # type: ignore[no-any-return]


def _require_function_first(name: str, function: Any, tree: Any) -> None:
    """Raise a ``TypeError`` if a tree was given as the function, where it can't be called or a function is the tree."""
    if not callable(function) or (isinstance(function, Node) and callable(tree) and not isinstance(tree, Node)):
        given = f"{describe(function)} as the function and {describe(tree)} as the tree"
        raise TypeError(f"fl.tree.{name} takes the function first, and was given {given}")


def _beside(tree: Any, rest: Sequence[Any]) -> list[list[Any]]:
    """Return what each of other trees has for each leaf of a tree."""
    others = []
    for number, other in enumerate(rest, 2):
        try:
            others.append(flatten_up_to(tree, other, f"tree {number}"))
        except ValueError as error:
            if not _goes_with(other, tree):
                raise
            advice = f"Put tree {number} first, which has arrays where the first has None"
            raise ValueError(f"{error} {advice}.") from None
    return others


def _goes_with(tree: Any, other: Any) -> bool:
    try:
        flatten_up_to(tree, other, "")
    except ValueError:
        return False
    return True


BESIDE_NONE = (
    "the function failed at {path}, where it was called with the None of a tree after the first, as gradients have for what is "
    "frozen. Say what it returns for None, or begin from a tree that has None there too, such as "
    "fl.tree.map(mx.zeros_like, grads)"
)


def _mapped(function: Callable[..., Any], structure: core.Structure, *columns: Sequence[Any]) -> list[Any]:
    """Return what a function returns for each leaf of a structure."""
    new: list[Any] = []
    try:
        new += itertools.starmap(function, zip(*columns, strict=True))
    except TypeError as error:
        # A list keeps what it was given before the error, so that its length says for which leaf it was raised.
        if len(new) == structure.num_leaves or all(column[len(new)] is not None for column in columns):
            raise
        path = structure.leaf_names()[len(new)] or "the root"
        raise TypeError(BESIDE_NONE.format(path=path)) from error
    return new


def reduce(function: Callable[[Any, mx.array], Any], tree: Any, initializer: Any = attrs.NOTHING) -> Any:
    """Fold the leaves from the left: ``function(function(initializer, first), second)`` and so on.

    Args:
        function: Called with the result so far and the next leaf.
        tree: Any tree.
        initializer: What to begin with. Default: the first leaf.

    Raises:
        TypeError: If the tree has no leaf and there is no initializer.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.reduce(lambda total, leaf: total + leaf.size, [mx.zeros(3), mx.zeros((2, 2))], 0)
    7
    """
    _require_function_first("reduce", function, tree)
    if initializer is attrs.NOTHING:
        return functools.reduce(function, leaves(tree))
    return functools.reduce(function, leaves(tree), initializer)
