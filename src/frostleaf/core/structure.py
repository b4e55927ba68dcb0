"""The structure of a tree: what is left when its arrays are taken out, and how the tree is put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, TypeVar

import mlx.core as mx

from .containers import static_key
from .depth import tell_depth
from .hidden import is_foreign_array
from .instance import Instance, Metadata, flat_kept, keep_flat, keep_late, level_of
from .levels import entries_of, one_level
from .pickling import from_picklable, to_picklable
from .refused import ForeignArrayError, HiddenArrayError, hidden_in
from .shapes import LEAF, ShapeDtypeStruct
from .words import Path, describe

R = TypeVar("R")


# The shape and the dtype of an array.
Kind = tuple[tuple[int, ...], mx.Dtype]
kind_of: Callable[[mx.array], Kind] = attrgetter("shape", "dtype")


class Structure:
    """What is left of a tree when its arrays are taken out: classes, containers, names and static values.

    Two structures are equal if everything in them is, types included; a structure can be hashed if its static values can.

    Args:
        spec: ``mx.array`` for a leaf, ``None`` for ``None``, a ``Static``, or for a node its class, its metadata and the
            specs of its children, or just their number if all are arrays. A module's metadata is its ``Metadata``, another
            node's a ``Recipe``.
        num_leaves: The number of arrays in a tree of this structure.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.structure({"a": mx.array(1), "b": (2, None)})
    Structure({'a': *, 'b': (2, None)})
    """

    __slots__ = ("__weakref__", "_hash", "_remembered", "num_leaves", "spec")

    def __init__(self, spec: Any, num_leaves: int) -> None:
        self.spec = spec
        self.num_leaves = num_leaves
        self._hash: int | None = None
        self._remembered: dict[Any, Any] = {}

    def remember(self, work_out: Callable[[Structure], R]) -> R:
        """Return what a function works out of the structure, which is done once."""
        try:
            return self._remembered[work_out]  # type: ignore[no-any-return]
        except KeyError:
            result = self._remembered[work_out] = work_out(self)
            return result

    @property
    def is_of_module(self) -> bool:
        return type(self.spec) is tuple and type(self.spec[1]) is Metadata

    def leaf_paths(self) -> tuple[Path, ...]:
        """Return the path of each array: the names, keys and indices that lead to it."""
        return self.remember(_leaf_paths)

    def leaf_names(self) -> tuple[str, ...]:
        """Return the path of each array as a dotted name."""
        return self.remember(_leaf_names)

    def static_values(self) -> Iterator[tuple[Path, Any]]:
        """Yield the path and the value of everything that is neither an array nor a container."""
        return ((path, spec.value) for path, spec in self.remember(_static_specs))

    def module_classes(self) -> tuple[type, ...]:
        """Return the classes of the modules in the tree."""
        return self.remember(_module_classes)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Structure) and self.spec == other.spec)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self.spec)
        return self._hash

    def __repr__(self) -> str:
        stars = iter([_Shown("*")] * self.num_leaves)
        return f"Structure({unflatten(self.spec, stars, lambda value: _Shown(describe(value)))!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Structure:
        return self  # it never changes

    def __reduce__(self) -> Any:
        return _structure, (to_picklable(self.spec), self.num_leaves)


def _leaf_paths(structure: Structure) -> tuple[Path, ...]:
    return tuple(_paths_below(structure.spec, ()))


def _paths_below(spec: Any, path: Path) -> Iterator[Path]:
    if isinstance(spec, Structure):
        yield from [(*path, *inside) for inside in spec.leaf_paths()]
    elif spec is mx.array:
        yield path
    elif isinstance(spec, tuple):
        kind, metadata, specs = spec
        for entry, child in zip(entries_of(kind, metadata), child_specs(specs), strict=True):
            yield from _paths_below(child, (*path, entry))


def _leaf_names(structure: Structure) -> tuple[str, ...]:
    return tuple(_names_below(structure.spec, ""))


def _names_below(spec: Any, prefix: str) -> Iterator[str]:
    """Yield the name of each array, which is faster than by its path."""
    if isinstance(spec, Structure):
        spec = spec.spec
    if spec is mx.array:
        yield prefix[:-1]
    elif isinstance(spec, tuple):
        kind, metadata, specs = spec
        names = [f"{prefix}{entry!s}" for entry in entries_of(kind, metadata)]
        if isinstance(specs, int):
            yield from names
        else:
            for name, child in zip(names, specs, strict=True):
                yield from _names_below(child, f"{name}.")


class Signature:
    """A structure with the shape and dtype of each leaf: what a trace is made for.

    Args:
        structure: The structure.
        leaves: The shape and the dtype of each leaf, in order.
    """

    __slots__ = ("__weakref__", "_hash", "_remembered", "leaves", "structure")

    def __init__(self, structure: Structure, leaves: tuple[Kind, ...]) -> None:
        self.structure = structure
        self.leaves = leaves
        self._hash: int | None = None
        self._remembered: dict[Any, Any] = {}

    def remember(self, work_out: Callable[[Signature], R]) -> R:
        """Return what a function works out of the signature, which is done once."""
        try:
            return self._remembered[work_out]  # type: ignore[no-any-return]
        except KeyError:
            result = self._remembered[work_out] = work_out(self)
            return result

    def if_of(self, leaves: Iterable[mx.array]) -> Signature | None:
        """Return this if it is the signature of other arrays in the same structure as well."""
        return self if tuple(map(kind_of, leaves)) == self.leaves else None

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Signature) and self.leaves == other.leaves and self.structure == other.structure
        )

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((self.structure, self.leaves))
        return self._hash


class Static:
    """The spec of what is neither an array nor a container: a number, a string, a function. Equal if interchangeable."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and static_key(self.value) == static_key(other.value)

    def __hash__(self) -> int:
        return hash(static_key(self.value))

    def __reduce__(self) -> Any:
        return _static, (to_picklable(self.value),)


class Deferred:
    """The spec of a module that is put together when something first looks inside it; with its signature, if known."""

    __slots__ = ("kind", "num_leaves", "signature", "structure")

    def __init__(self, structure: Structure, signature: Signature | None) -> None:
        self.kind = structure.spec[0]
        self.num_leaves = structure.num_leaves
        self.structure = structure
        self.signature = signature


class Flat:
    """A tree taken apart: its leaves and its structure. A module keeps its own, since neither can change.

    A module that was put together from leaves keeps those; they need not be arrays, which :meth:`valid` finds out.
    """

    __slots__ = ("_checked", "built", "leaves", "signature", "structure")

    def __init__(
        self, leaves: list[mx.array], structure: Structure, signature: Signature | None = None, checked: bool = True
    ) -> None:
        self.leaves = leaves
        self.structure = structure
        self.signature = signature
        self.built: Any = None
        self._checked = checked

    def valid(self) -> bool:
        """Return whether all leaves are ones."""
        if not self._checked:
            self._checked = all(isinstance(leaf, LEAF) for leaf in self.leaves)
        return self._checked

    def signed(self) -> Signature:
        """Return the structure with shapes and dtypes.

        Raises:
            TypeError: If one of the leaves has no numbers.
        """
        if self.signature is None:
            require_numbers(self)
            self.signature = Signature(self.structure, tuple(map(kind_of, self.leaves)))
        return self.signature

    def level(self) -> tuple[Any, list[Any]]:
        """Return the metadata and the children of the module that was taken apart."""
        _, metadata, specs = self.structure.spec
        leaves = iter(self.leaves)
        return metadata, [unflatten(spec, leaves) for spec in child_specs(specs)]


def require_numbers(flat: Flat) -> None:
    """Raise an error if one of the leaves is a ``ShapeDtypeStruct``.

    Raises:
        TypeError: If that is so; the message names the first.
    """
    for name, leaf in zip(flat.structure.leaf_names(), flat.leaves, strict=True) if _has_shapes(flat.leaves) else ():
        if isinstance(leaf, ShapeDtypeStruct):
            raise TypeError(f"{name or 'it'} is a ShapeDtypeStruct, {leaf!r}, and has no numbers to compute with")


def _has_shapes(leaves: list[mx.array]) -> bool:
    return ShapeDtypeStruct in {*map(type, leaves)}


_ARRAY = mx.array  # found faster than in mx, by the loops that look at every array


def flat_of(tree: Any, hidden: bool = False) -> Flat:
    """Return the tree taken apart, as it is kept with a module.

    Args:
        tree: Any tree.
        hidden: Whether static values may hide arrays and modules. Those of a module never do, which is checked as it is built.

    Raises:
        TypeError: If there is an array of another library in it, or one that is hidden; the message has its path.
        RecursionError: If it is nested too deeply, or contains itself; the message has the way down.
    """
    leaves: list[mx.array] = []
    try:
        if not isinstance(tree, Instance):
            return Flat(leaves, Structure(_flatten_around(tree, leaves, hidden), len(leaves)))
        flat = flat_kept(tree)
        if flat is None or not flat.valid():
            level_of(tree)  # raises while its __init__ runs, where a __getattr__ of its class might answer for it
            structure = Structure(_flatten(tree, leaves), len(leaves))
            flat = Flat(leaves, structure)
            keep_flat(tree, flat)
        return flat  # type: ignore[no-any-return]
    except (ForeignArrayError, HiddenArrayError):  # which was raised without its path, since only this has it
        raise next(_no_leaves((), tree, hidden)) from None
    except RecursionError:
        tell_depth(tree)
        raise


def _flatten_around(value: Any, leaves: list[mx.array], hidden: bool) -> Any:
    """As :func:`_flatten`, around modules: a module found here keeps its leaves and structure, which stands as its spec."""
    if isinstance(value, Instance):
        flat = flat_of(value)
        leaves += flat.leaves
        return flat.structure
    node = None if isinstance(value, LEAF) else one_level(value)
    if node is None:
        spec = _flatten(value, leaves)
        if type(spec) is Static and not hidden and (found := hidden_in(value)):
            raise HiddenArrayError((), value, found)
        return spec
    metadata, children = node
    for child in children:
        if type(child) is not _ARRAY and type(child) is not ShapeDtypeStruct:
            return type(value), metadata, tuple([_flatten_around(child, leaves, hidden) for child in children])
    leaves += children
    return type(value), metadata, len(children)


def _no_leaves(path: Path, value: Any, hidden: bool) -> Iterator[TypeError]:
    node = one_level(value)
    if is_foreign_array(value):
        yield ForeignArrayError(path, value)
    elif node is None and not hidden and not isinstance(value, LEAF) and (found := hidden_in(value)):
        yield HiddenArrayError(path, value, found)
    hidden = hidden or isinstance(value, Instance)  # which is checked as it is built
    for entry, child in zip(entries_of(type(value), node[0]), node[1], strict=True) if node else ():
        yield from _no_leaves((*path, entry), child, hidden)


def _flatten(value: Any, leaves: list[mx.array]) -> Any:
    """Append the arrays in ``value`` to ``leaves`` and return its spec.

    The same as ``optree.tree_flatten`` in a fraction of the time: modules are opened without asking optree, and their arrays
    are not looked up in the registry one by one.
    """
    if isinstance(value, Instance):
        level = value._frostleaf_level  # type: ignore[attr-defined]
        metadata, children = level if type(level) is tuple else level_of(value)
    else:
        node = one_level(value)
        if node is None:
            if isinstance(value, LEAF):
                leaves.append(value)  # type: ignore[arg-type]
                return mx.array
            if is_foreign_array(value):
                raise ForeignArrayError((), value)
            return None if value is None else Static(value)
        metadata, children = node
    for child in children:
        if type(child) is not _ARRAY and type(child) is not ShapeDtypeStruct:
            return type(value), metadata, tuple([_flatten(child, leaves) for child in children])
    leaves += children
    return type(value), metadata, len(children)


def unflatten(spec: Any, leaves: Iterator[Any], static: Callable[[Any], Any] | None = None) -> Any:
    """Put a tree together from a structure or a spec, leaves from an iterator, and ``static(value)`` for each static value.

    For a :class:`Deferred` spec the iterator gives all its leaves as a list, as what :func:`cuts_of` returns cuts them.
    """
    if type(spec) is tuple:
        kind, metadata, specs = spec
        if type(specs) is int:
            children: Iterable[Any] = islice(leaves, specs)
        else:
            children = [next(leaves) if each is _ARRAY else unflatten(each, leaves, static) for each in specs]
        if type(metadata) is Metadata:
            return kind.__frostleaf__.assemble(metadata, children)
        return tuple(children) if kind is tuple else metadata.make(metadata.metadata, list(children))
    if type(spec) is Deferred:
        node = object.__new__(spec.kind)
        keep_late(node, Flat(next(leaves), spec.structure, spec.signature))
        return node
    if spec is mx.array:
        return next(leaves)
    if spec is None:
        return None
    if isinstance(spec, Structure):
        own = list(islice(leaves, spec.num_leaves))
        tree = unflatten(spec.spec, iter(own), static)
        if static is None and isinstance(tree, Instance):
            keep_flat(tree, Flat(own, spec, checked=False))
        return tree
    return spec.value if static is None else static(spec.value)


def unflatten_late(structure: Structure, leaves: Sequence[mx.array], signature: Signature | None = None) -> Any:
    """Put a tree together from arrays: a module when something first looks inside it, if its class allows that.

    The signature is that of the arrays, if it is known.
    """
    is_late = structure.is_of_module and structure.spec[0].__frostleaf__.deferrable
    return unflatten(Deferred(structure, signature), iter([[*leaves]])) if is_late else unflatten(structure, iter(leaves))


def defer(spec: Any, leaves: Iterator[mx.array], shapeless: bool) -> Any:
    """Return the spec of a tree whose modules are put together when something first looks inside them.

    Args:
        spec: The spec of a structure, as :func:`flat_of` makes it.
        leaves: Arrays of the shapes and dtypes that the leaves will have, unless ``shapeless``.
        shapeless: Whether leaves of other shapes may come.
    """
    if isinstance(spec, Structure):
        own = list(islice(leaves, spec.num_leaves))
        if not spec.spec[0].__frostleaf__.deferrable:
            return spec
        return Deferred(spec, None if shapeless else Flat(own, spec).signed())
    if spec is mx.array:
        next(leaves)
        return spec
    if not isinstance(spec, tuple):
        return spec
    kind, metadata, specs = spec
    if isinstance(specs, int):
        return kind, metadata, len(list(islice(leaves, specs)))
    return kind, metadata, tuple([defer(each, leaves, shapeless) for each in specs])


def cuts_of(spec: Any) -> list[int | slice]:
    """Return what cuts the leaves of a spec into what :func:`unflatten` takes one after another; nothing if no module waits."""
    cuts: list[int | slice] = []
    end = 0
    for _, each in specs_in(spec):
        if type(each) is Deferred:
            cuts.append(slice(end, end + each.num_leaves))
            end += each.num_leaves
        elif each is _ARRAY:
            cuts.append(end)
            end += 1
    return cuts if slice in map(type, cuts) else []


def specs_in(spec: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the spec of each node and leaf, outer ones first."""
    if isinstance(spec, Structure):
        spec = spec.spec
    yield path, spec
    if isinstance(spec, tuple):
        kind, metadata, specs = spec
        for entry, child in zip(entries_of(kind, metadata), child_specs(specs), strict=True):
            yield from specs_in(child, (*path, entry))


def child_specs(specs: Any) -> Sequence[Any]:
    """Return the spec of each child of a node; a number stands for that many arrays."""
    return (mx.array,) * specs if isinstance(specs, int) else specs


def _static_specs(structure: Structure) -> tuple[tuple[Path, Static], ...]:
    return tuple(_static_specs_in(structure.spec, ()))


def _static_specs_in(spec: Any, path: Path) -> Iterator[tuple[Path, Static]]:
    if isinstance(spec, Static):
        yield path, spec
    elif isinstance(spec, Structure):
        yield from [((*path, *inside), each) for inside, each in spec.remember(_static_specs)]
    elif isinstance(spec, tuple) and not isinstance(spec[2], int):
        kind, metadata, specs = spec
        for entry, child in zip(entries_of(kind, metadata), specs, strict=True):
            if child is not _ARRAY:
                yield from _static_specs_in(child, (*path, entry))


def _module_classes(structure: Structure) -> tuple[type, ...]:
    return tuple(dict.fromkeys(_module_classes_in(structure.spec)))


def _module_classes_in(spec: Any) -> Iterator[type]:
    if isinstance(spec, Structure):
        yield from spec.module_classes()
    elif isinstance(spec, tuple):
        kind, metadata, specs = spec
        if isinstance(metadata, Metadata):
            yield kind
        for child in () if isinstance(specs, int) else specs:
            yield from _module_classes_in(child)


class _Shown(str):
    """What stands for an array or a static value in the ``repr`` of a structure."""

    def __repr__(self) -> str:
        return str(self)


def _static(value: Any) -> Static:
    return Static(from_picklable(value))


def _structure(spec: Any, num_leaves: int) -> Structure:
    return Structure(from_picklable(spec), num_leaves)
