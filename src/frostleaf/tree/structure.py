"""A tree taken apart and put together: arrays are the leaves, everything else is structure."""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import optree

from ..containers import static_key
from ..namespace import NAMESPACE

T = TypeVar("T")

_ARRAYS_ONLY = frozenset({mx.array})

LEAF_COUNT = "the structure has {expected} leaves and {given} were given"
MISMATCH = "{what} is not of the same structure as the first tree:\n{difference}"


class Structure:
    """What is left of a tree when its arrays are taken out: classes, containers, names and static values.

    Two structures are equal when every part is, types included; a structure can be hashed when its static values can.

    Args:
        spec: The structure in optree's terms, where a value that is not an array is a leaf as well.
        static: Those values, each with its position among optree's leaves.
    """

    __slots__ = ("__weakref__", "_hash", "spec", "static")

    def __init__(self, spec: optree.PyTreeSpec, static: tuple[tuple[int, Any], ...]) -> None:
        self.spec = spec
        self.static = static
        self._hash: int | None = None

    @property
    def num_leaves(self) -> int:
        """The number of arrays in a tree of this structure."""
        return self.spec.num_leaves - len(self.static)

    def leaf_paths(self) -> list[tuple[Any, ...]]:
        """Return the path of each array: the names, keys and indices that lead to it."""
        skipped = {position for position, _ in self.static}
        return [path for position, path in enumerate(self.spec.paths()) if position not in skipped]

    def _key(self) -> Any:
        return tuple((position, static_key(value)) for position, value in self.static)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Structure) and self.spec == other.spec and self._key() == other._key()
        )

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((self.spec, self._key()))
        return self._hash

    def __repr__(self) -> str:
        shown = ", ".join(repr(value) for _, value in self.static)
        return f"Structure({self.spec}{', static=(' + shown + ')' if shown else ''})"

    def __reduce__(self) -> Any:
        return Structure, (self.spec, self.static)


def flatten(tree: Any) -> tuple[list[mx.array], Structure]:
    """Return the arrays of a tree, in order, and the structure that is left.

    A leaf is an ``mx.array``, and nothing else is. ``None`` and empty containers have no leaves; numbers, strings,
    functions and whatever else is not a container are part of the structure.

    Args:
        tree: Any nesting of modules, tuples, lists, dicts and registered classes.

    >>> import frostleaf as fl, mlx.core as mx
    >>> leaves, structure = fl.tree.flatten({"a": mx.array(1), "b": (None, "text", mx.array(2.0))})
    >>> len(leaves), structure.num_leaves
    (2, 2)
    >>> fl.tree.unflatten(structure, [1, 2])
    {'a': 1, 'b': (None, 'text', 2)}
    >>> fl.tree.flatten(None)[0]
    []
    """
    values, spec = optree.tree_flatten(tree, namespace=NAMESPACE)
    if _ARRAYS_ONLY.issuperset(builtins.map(type, values)):
        return values, Structure(spec, ())
    static = tuple((position, value) for position, value in enumerate(values) if not isinstance(value, mx.array))
    return [value for value in values if isinstance(value, mx.array)], Structure(spec, static)


def unflatten(structure: Structure, leaves: Iterable[Any]) -> Any:
    """Return the tree of the given structure with the given leaves.

    The inverse of :func:`flatten`: classes and static values are those of the first tree, and the leaves are the very
    objects given. They need not be arrays.

    Args:
        structure: As returned by :func:`flatten` or :func:`structure`.
        leaves: As many values as the structure has leaves.

    Raises:
        ValueError: If there are more or fewer leaves.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.unflatten(fl.tree.structure([mx.array(1), {"n": 3}]), ["leaf"])
    ['leaf', {'n': 3}]
    """
    values = list(leaves)
    if len(values) != structure.num_leaves:
        raise ValueError(LEAF_COUNT.format(expected=structure.num_leaves, given=len(values)))
    for position, value in structure.static:
        values.insert(position, value)
    return optree.tree_unflatten(structure.spec, values)


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
    others = [_up_to(shape, other, f"tree {number}", tree) for number, other in enumerate(rest, 2)]
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
    others = [_up_to(shape, other, f"tree {number}", tree) for number, other in enumerate(rest, 2)]
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


def _up_to(structure: Structure, tree: Any, what: str, first: Any) -> Sequence[Any]:
    """Return what stands in ``tree`` at each leaf of ``structure``."""
    try:
        values = structure.spec.flatten_up_to(tree)
    except ValueError:
        from .compare import diff

        raise ValueError(MISMATCH.format(what=what, difference=diff(first, tree))) from None
    skipped = {position for position, _ in structure.static}
    return [value for position, value in enumerate(values) if position not in skipped]
