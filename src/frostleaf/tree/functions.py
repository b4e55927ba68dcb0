"""Trees taken apart and put together, and functions of their leaves."""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx

from ..node import Path
from .structure import Recipe, Static, Structure, each_of, entries_of, flat_of, one_level, put

T = TypeVar("T")

LEAF_COUNT = "the structure has {expected} leaves and {given} were given"
MISMATCH = "{what} does not have the structure of the tree it goes with. At {path}: {given} where there is {expected}."


def flatten(tree: Any) -> tuple[list[mx.array], Structure]:
    """Return the arrays of a tree, in order, and the structure that is left.

    A leaf is an ``mx.array``, and nothing else is. ``None`` and empty containers have no leaves; numbers, strings,
    functions and whatever else is not a container are part of the structure.

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
    flat = flat_of(tree)
    return list(flat.leaves), flat.structure


def unflatten(structure: Structure, leaves: Iterable[Any], static: Callable[[Any], Any] | None = None) -> Any:
    """Return the tree of the given structure with the given leaves.

    The inverse of :func:`flatten`: classes and static values are those of the first tree, and the leaves are the very
    objects given. They need not be arrays.

    Args:
        structure: As returned by :func:`flatten` or :func:`structure`.
        leaves: As many values as the structure has leaves.
        static: Called with each value that is neither leaf nor container nor in a static field; returns what is to stand in its
            place. Default: the identity.

    Raises:
        ValueError: If there are more or fewer leaves.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.unflatten(fl.tree.structure([mx.array(1), {"n": 3}]), ["leaf"])
    ['leaf', {'n': 3}]
    """
    values = list(leaves)
    if len(values) != structure.num_leaves:
        raise ValueError(LEAF_COUNT.format(expected=structure.num_leaves, given=len(values)))
    return put(structure.shape, iter(values), static)


def leaves(tree: Any) -> list[mx.array]:
    """Return the arrays of a tree, in the order of :func:`flatten`.

    >>> import frostleaf as fl, mlx.core as mx
    >>> [leaf.item() for leaf in fl.tree.leaves({"b": mx.array(1), "a": (mx.array(2), "text")})]
    [1, 2]
    """
    return flatten(tree)[0]


def structure(tree: Any) -> Structure:
    """Return the structure of a tree: what :func:`flatten` leaves when the arrays are taken out.

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
    return [dotted(path) for path in structure(tree).leaf_paths()]


def map(function: Callable[..., Any], tree: T, *rest: Any) -> T:
    """Return a tree of the same structure whose leaves are ``function`` of the leaves.

    Args:
        function: Called with each leaf, and with what stands at the same place in each tree of ``rest``.
        tree: The tree that gives the structure.
        *rest: Trees of that structure. Where the first tree has a leaf, another may have a whole subtree, or ``None``.

    Raises:
        ValueError: If a tree of ``rest`` has another structure; the message shows where.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.map(lambda a, b: (a + b).item(), {"x": mx.array(1), "n": 7}, {"x": mx.array(2), "n": 8})
    {'x': 3, 'n': 7}
    """
    first, shape = flatten(tree)
    others = [aligned(tree, other, f"tree {number}") for number, other in enumerate(rest, 2)]
    return unflatten(shape, [function(*values) for values in zip(first, *others, strict=True)])  # type: ignore[no-any-return]


def map_with_path(function: Callable[..., Any], tree: T, *rest: Any) -> T:
    """Return a tree of the same structure whose leaves are ``function(path, leaf, ...)``.

    As :func:`map`, with the dotted name of each leaf (see :func:`paths`) as the first argument.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.map_with_path(lambda path, leaf: path, {"a": [mx.array(1), mx.array(2)]})
    {'a': ['a.0', 'a.1']}
    """
    first, shape = flatten(tree)
    names = [dotted(path) for path in shape.leaf_paths()]
    others = [aligned(tree, other, f"tree {number}") for number, other in enumerate(rest, 2)]
    return unflatten(shape, [function(*values) for values in zip(names, first, *others, strict=True)])  # type: ignore[no-any-return]


_NO_INITIALIZER: Any = object()


def reduce(function: Callable[[Any, mx.array], Any], tree: Any, initializer: Any = _NO_INITIALIZER) -> Any:
    """Return the leaves folded from the left: ``function(function(initializer, first), second)`` and so on.

    Args:
        function: Called with what has been folded so far and the next leaf.
        tree: Any tree.
        initializer: What to begin with. Without it, the first leaf.

    Raises:
        TypeError: If the tree has no leaf and there is no initializer.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.reduce(lambda total, leaf: total + leaf.size, [mx.zeros(3), mx.zeros((2, 2))], 0)
    7
    """
    if initializer is _NO_INITIALIZER:
        return functools.reduce(function, leaves(tree))
    return functools.reduce(function, leaves(tree), initializer)


def dotted(path: Iterable[Any]) -> str:
    """Return a path as one name: ``("layers", 0, "weight")`` is ``"layers.0.weight"``."""
    return ".".join([str(entry) for entry in path])


def aligned(first: Any, tree: Any, what: str) -> list[Any]:
    """Return what stands in ``tree`` at the place of each leaf of ``first``; ``what`` names ``tree`` in the error."""
    found: list[Any] = []
    _align(structure(first), tree, what, (), found)
    return found


def _align(shape: Any, value: Any, what: str, path: Path, found: list[Any]) -> None:
    """Append to ``found`` what stands in ``value`` at the place of each leaf of the shape."""
    if isinstance(shape, Structure):
        shape = shape.shape
    if shape is mx.array:
        found.append(value)
        return
    if isinstance(shape, Static) or (shape is None and value is None):
        return
    if shape is None:
        place = dotted(path) or "the root"
        raise ValueError(MISMATCH.format(what=what, path=place, given=type(value).__name__, expected="None"))
    kind, metadata, shapes = shape[0], shape[1], each_of(shape[2])
    node = one_level(value)
    entries = entries_of(kind, metadata)
    if node is not None and type(value) is kind and isinstance(value, Mapping) and value.keys() == set(entries):
        # Here, unlike for a function that is given the whole dict, the order of the items does not matter.
        children: Sequence[Any] = [value[entry] for entry in entries]
    elif node is not None and type(value) is kind and node[0] == metadata and len(node[1]) == len(shapes):
        children = node[1]
    else:
        place = dotted(path) or "the root"
        given = "no node" if node is None else _described(type(value), *node)
        expected = _described(kind, metadata, shapes)
        if given == expected:
            given += " of another definition"
        raise ValueError(MISMATCH.format(what=what, path=place, given=given, expected=expected))
    for part, child, entry in zip(shapes, children, entries, strict=True):
        _align(part, child, what, (*path, entry), found)


def _described(kind: type, metadata: Any, children: Sequence[Any]) -> str:
    """Return a node's class, and what tells it from others of the class, in a few words."""
    if isinstance(metadata, Recipe):
        return f"{kind.__name__} of {len(children)} ({', '.join(builtins.map(str, metadata.entries))})"
    said = [f"{name}={value!r}" for name, value in metadata.static.items()]
    said += ["in evaluation mode"] * (not metadata.training)
    said += [f"with {', '.join(sorted(metadata.frozen))} frozen"] * bool(metadata.frozen)
    said += [f"with {dotted(target)} tied to {dotted(source)}" for target, source in metadata.ties]
    return f"{kind.__name__} ({', '.join(said)})" if said else kind.__name__
