"""The structure of a tree: what is left of it when its arrays are taken out, and how it is put together again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, cast

import mlx.core as mx
import optree

from ..containers import packed, static_key, unpacked
from ..namespace import NAMESPACE
from ..node import Node, Path, flat_kept, keep_flat, opened

# An array, or all arrays of one module.
Group = mx.array | list[mx.array]


class Structure:
    """What is left of a tree when its arrays are taken out: classes, containers, names and static values.

    Two structures are equal when every part is, types included; a structure can be hashed when its static values can.

    Args:
        shape: ``mx.array`` for a leaf, ``None`` for ``None``, a :class:`Static`, or for a node its class, its metadata and the
            shapes of its children: their number if all are arrays. A module's metadata is its
            :class:`~frostleaf.node.Metadata`, that of other nodes a :class:`Recipe`.
        num_leaves: The number of arrays in a tree of this structure.
    """

    __slots__ = ("__weakref__", "_hash", "num_leaves", "shape")

    def __init__(self, shape: Any, num_leaves: int) -> None:
        self.shape = shape
        self.num_leaves = num_leaves
        self._hash: int | None = None

    def leaf_paths(self) -> list[Path]:
        """Return the path of each array: the names, keys and indices that lead to it."""
        return [path for path, shape in parts_of(self.shape, ()) if shape is mx.array]

    def static_values(self) -> Iterator[tuple[Path, Any]]:
        """Yield the path and the value of each part that is neither an array nor a container."""
        return ((path, shape.value) for path, shape in parts_of(self.shape, ()) if isinstance(shape, Static))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Structure) and self.shape == other.shape)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self.shape)
        return self._hash

    def __repr__(self) -> str:
        return f"Structure({put(self.shape, iter([_Star()] * self.num_leaves))!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Structure:
        return self  # it never changes

    def __reduce__(self) -> Any:
        return _structure, (packed(self.shape), self.num_leaves)


class Signature:
    """A structure with the shape and dtype of each leaf: what a trace is made for.

    Args:
        structure: The structure.
        leaves: The shape and the dtype of each leaf, in order.
    """

    __slots__ = ("__weakref__", "_hash", "leaves", "structure")

    def __init__(self, structure: Structure, leaves: tuple[tuple[tuple[int, ...], mx.Dtype], ...]) -> None:
        self.structure = structure
        self.leaves = leaves
        self._hash = hash((structure, leaves))

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Signature)
            and self._hash == other._hash
            and self.structure == other.structure
            and self.leaves == other.leaves
        )

    def __hash__(self) -> int:
        return self._hash


class Waiting:
    """The shape of a module that is put together when it is first looked into; with its signature, if that is known."""

    __slots__ = ("kind", "num_leaves", "signature", "structure")

    def __init__(self, structure: Structure, signature: Signature | None) -> None:
        self.kind = structure.shape[0]
        self.num_leaves = structure.num_leaves
        self.structure = structure
        self.signature = signature


class Flat:
    """A tree taken apart: its leaves and its structure. A module keeps its own, since neither can change."""

    __slots__ = ("leaves", "signature", "structure")

    def __init__(self, leaves: list[mx.array], structure: Structure, signature: Signature | None = None) -> None:
        self.leaves = leaves
        self.structure = structure
        self.signature = signature

    def signed(self) -> Signature:
        """Return the structure with shapes and dtypes."""
        if self.signature is None:
            self.signature = _only(Signature(self.structure, tuple([(leaf.shape, leaf.dtype) for leaf in self.leaves])))
        return self.signature

    def opened(self) -> tuple[Any, list[Any]]:
        """Return the metadata and the children of the module that this is."""
        _, metadata, shapes = self.structure.shape
        leaves = iter(self.leaves)
        return metadata, [put(shape, leaves) for shape in each_of(shapes)]


_interned: dict[Any, Any] = {}


def _only(signature: Signature) -> Signature:
    """Return one object for all equal signatures that are alive, so that comparing two of them is comparing two addresses."""
    reference = weakref.ref(signature, _forget)
    known = _interned.setdefault(reference, reference)()
    return signature if known is None else known


def _forget(reference: Any) -> None:
    _interned.pop(reference, None)


class Static:
    """The shape of a number, a string, a function: of whatever is neither array nor container. Equal if interchangeable."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and static_key(self.value) == static_key(other.value)

    def __hash__(self) -> int:
        return hash(static_key(self.value))

    def __reduce__(self) -> Any:
        return _static, (packed(self.value),)


class Recipe:
    """How a node that is not a module is made again, as optree tells it: from its metadata and its children."""

    __slots__ = ("entries", "make", "metadata")

    def __init__(self, metadata: Any, entries: Sequence[Any], make: Callable[[Any, Sequence[Any]], Any]) -> None:
        self.metadata = metadata
        self.entries = entries
        self.make = make

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> Any:
        return static_key(_plain(self.metadata))

    def __reduce__(self) -> Any:
        # How a node is made is known by its class, and told by any node of it.
        node = self.make(self.metadata, [_EXAMPLE] * len(self.entries))
        is_proxy = isinstance(node, MappingProxyType)  # which can't be pickled
        return _recipe_of, (dict(node) if is_proxy else node, is_proxy)


# Stands for the children of a node that is pickled for its recipe.
_EXAMPLE = mx.array(0)


def _recipe_of(node: Any, is_proxy: bool) -> Recipe:
    recipe, _ = cast(Any, one_level(MappingProxyType(node) if is_proxy else node))
    return recipe  # type: ignore[no-any-return]


def _static(value: Any) -> Static:
    return Static(unpacked(value))


def _structure(shape: Any, num_leaves: int) -> Structure:
    return Structure(unpacked(shape), num_leaves)


def _plain(metadata: Any) -> Any:
    """Return the metadata of a dict without optree's own class of list."""
    if isinstance(metadata, list):
        return tuple(metadata)
    return tuple([_plain(part) for part in metadata]) if type(metadata) is tuple else metadata


class _Star:
    """Stands for an array where a structure is printed."""

    def __repr__(self) -> str:
        return "*"


_ARRAY = mx.array  # found faster than in mx, by the loops that look at every array


def flat_of(tree: Any) -> Flat:
    """Return the tree taken apart, as it is kept with a module."""
    if isinstance(tree, Node):
        flat = flat_kept(tree)
        if flat is None:
            leaves: list[mx.array] = []
            structure = Structure(_take(tree, leaves), len(leaves))
            flat = Flat(leaves, structure)
            keep_flat(tree, flat)
        return flat  # type: ignore[no-any-return]
    leaves = []
    return Flat(leaves, Structure(_take_outside(tree, leaves), len(leaves)))


def one_level(value: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return a node's metadata and children: ``None`` for an array, ``None``, or a static value, which have no inside."""
    if isinstance(value, Node):
        return opened(value)[:2]
    if value is None or isinstance(value, mx.array) or optree.tree_is_leaf(value, namespace=NAMESPACE):
        return None
    children, metadata, entries, make = optree.tree_flatten_one_level(value, namespace=NAMESPACE)
    return Recipe(metadata, entries, make), children


def entries_of(kind: type, metadata: Any) -> Sequence[Any]:
    """Return the names, keys or indices of a node's children."""
    return metadata.entries if isinstance(metadata, Recipe) else kind.__children__  # type: ignore[attr-defined]


def _take_outside(value: Any, leaves: list[mx.array]) -> Any:
    """As :func:`_take`, for what is not in a module: a module found here is kept with its leaves, as a structure of its own."""
    if isinstance(value, Node):
        flat = flat_of(value)
        leaves += flat.leaves
        return flat.structure
    node = None if isinstance(value, mx.array) else one_level(value)
    if node is None:
        return _take(value, leaves)
    metadata, children = node
    for child in children:
        if type(child) is not _ARRAY:
            return type(value), metadata, tuple([_take_outside(child, leaves) for child in children])
    leaves += children
    return type(value), metadata, len(children)


def _take(value: Any, leaves: list[mx.array]) -> Any:
    """Append the arrays in ``value`` to ``leaves`` and return its shape.

    This is ``optree.tree_flatten``, in a fraction of its time: a module is opened without asking optree, and its arrays are not
    looked up in the registry one by one.
    """
    if isinstance(value, Node):
        parts = value._frostleaf_parts  # type: ignore[attr-defined]
        metadata, children, arrays_only = parts if type(parts) is tuple else opened(value)
        if not arrays_only:
            return type(value), metadata, tuple([_take(child, leaves) for child in children])
        leaves += children
        return type(value), metadata, len(children)
    node = one_level(value)
    if node is None:
        if isinstance(value, mx.array):
            leaves.append(value)
            return mx.array
        return None if value is None else Static(value)
    metadata, children = node
    for child in children:
        if type(child) is not _ARRAY:
            return type(value), metadata, tuple([_take(child, leaves) for child in children])
    leaves += children
    return type(value), metadata, len(children)


def put(shape: Any, leaves: Iterator[Any], static: Callable[[Any], Any] | None = None) -> Any:
    """Return the tree of a shape with leaves taken from an iterator, and with ``static(value)`` for each static value.

    For a :class:`Waiting` the iterator has the list of its leaves.
    """
    if type(shape) is tuple:
        kind, metadata, shapes = shape
        if type(shapes) is int:
            children: Iterable[Any] = islice(leaves, shapes)
        else:
            children = [next(leaves) if each is mx.array else put(each, leaves, static) for each in shapes]
        if kind is tuple:
            return tuple(children)
        if type(metadata) is Recipe:
            return metadata.make(metadata.metadata, list(children))
        return kind.__assemble__(metadata, children)
    if type(shape) is Waiting:
        node = object.__new__(shape.kind)
        keep_flat(node, Flat(next(leaves), shape.structure, shape.signature))
        return node
    if shape is mx.array:
        return next(leaves)
    if shape is None:
        return None
    if isinstance(shape, Structure):
        return put(shape.shape, leaves, static)
    return shape.value if static is None else static(shape.value)


def waiting(shape: Any, leaves: Iterator[mx.array], shapeless: bool) -> Any:
    """Return the shape of a tree so that its modules are put together when they are first looked into.

    Args:
        shape: The shape of a structure, as :func:`flatten` makes it.
        leaves: Arrays of the shapes and dtypes that the leaves will have, unless ``shapeless``.
        shapeless: Whether leaves of other shapes may come.
    """
    if isinstance(shape, Structure):
        own = list(islice(leaves, shape.num_leaves))
        if not shape.shape[0].__can_wait__:
            return shape
        return Waiting(shape, None if shapeless else Flat(own, shape).signed())
    if shape is mx.array:
        next(leaves)
        return shape
    if not isinstance(shape, tuple):
        return shape
    kind, metadata, shapes = shape
    if isinstance(shapes, int):
        return kind, metadata, len(list(islice(leaves, shapes)))
    return kind, metadata, tuple([waiting(each, leaves, shapeless) for each in shapes])


def group_sizes(shape: Any) -> list[int | None]:
    """Return how the leaves of a shape are grouped for :func:`put`: ``None`` for one by itself, or how many are in a list."""
    if isinstance(shape, Waiting):
        return [shape.num_leaves]
    if shape is mx.array:
        return [None]
    if isinstance(shape, Structure):
        return group_sizes(shape.shape)
    return [size for each in each_of(shape[2]) for size in group_sizes(each)] if isinstance(shape, tuple) else []


def grouped(leaves: Iterable[mx.array], sizes: Sequence[int | None]) -> list[Group]:
    """Return leaves in groups of the sizes given."""
    rest = iter(leaves)
    return [next(rest) if size is None else list(islice(rest, size)) for size in sizes]


def ungrouped(groups: Iterable[Group]) -> list[mx.array]:
    """Return the leaves of all groups, in order."""
    return [leaf for each in groups for leaf in (each if isinstance(each, list) else [each])]


def parts_of(shape: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the shape of each part, outer parts first."""
    if isinstance(shape, Structure):
        shape = shape.shape
    yield path, shape
    if isinstance(shape, tuple):
        kind, metadata, shapes = shape
        for entry, child in zip(entries_of(kind, metadata), each_of(shapes), strict=True):
            yield from parts_of(child, (*path, entry))


def each_of(shapes: Any) -> Sequence[Any]:
    return (mx.array,) * shapes if isinstance(shapes, int) else shapes
