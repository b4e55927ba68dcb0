"""Freezing parameters in copies, and finding out which are trainable.

A module keeps the names of its frozen fields; an array inside a container has its index or key in the name (``"ws.0"``). A
name covers everything below it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from ..core import fields
from ..core.arguments import require_bool
from ..core.construction import evolve, postpone
from ..core.definition import Node
from ..core.instance import Definition, Metadata, children_in_fields, children_of, level_of, metadata_of, names_above
from ..core.leaves import leaf_flags, leaf_spans
from ..core.levels import entries_of, tree_level
from ..core.shapes import LEAF
from ..core.sharing import change_modules, remade
from ..core.structure import Flat, Kind, Signature, Structure, child_specs, flat_of, kind_of
from ..core.words import Path, describe, keystr
from ..tree.walk import Descend, field_level, rewrite, tied_leaves
from .views import items, named_modules

T = TypeVar("T")


def freeze(module: T, recurse: bool, keys: str | Iterable[str] | None, strict: bool, frozen: bool) -> T:
    """Freeze or unfreeze fields by MLX's rules. See :meth:`Module.freeze`."""
    recurse, strict = require_bool("recurse", recurse), require_bool("strict", strict)
    names = None if keys is None else _names_given(keys)
    if isinstance(module, Node) and postpone(module, lambda finished: freeze(finished, recurse, names, strict, frozen)):
        return module
    if strict and names is not None:
        _require(module, names, recurse)
    by_field: dict[str, list[str]] = {}
    for name in names or ():
        by_field.setdefault(name.split(".")[0], []).append(name)

    def marked(node: Any, metadata: Metadata, children: Sequence[Any]) -> Any:
        before, definition = metadata.frozen, node.__frostleaf__
        if not frozen:
            after = before.difference(names) if names is not None else frozenset[str]()
        elif names is None:
            after = before.union(_own_parameters(definition, level_of(node)[1]))
        else:
            after = before.union(*[by_field.get(field, ()) for field in definition.children])
        return remade(node, metadata.evolve(metadata.training, after), children)

    if not recurse:
        node: Any = module
        metadata, children = level_of(node)
        return marked(node, metadata, children_in_fields(node) if metadata.ties else children)  # type: ignore[no-any-return]
    return change_modules(module, marked)  # type: ignore[no-any-return]


def _names_given(keys: Any) -> frozenset[str]:
    several = [keys] if isinstance(keys, str) else list(keys) if isinstance(keys, Iterable) else None
    if several is None or not all(isinstance(name, str) for name in several):
        given = describe(keys if several is None else several)
        raise TypeError(f"keys is the name of a field, such as 'bias', or several names, and was given as {given}")
    return frozenset(several)


def with_frozen(tree: T, selected: Collection[Path], frozen: bool) -> T:
    """Freeze the parameters at and below some paths, or make them trainable, and leave the others as they are.

    Raises:
        LookupError: If what stands at a path has no array of its own, and is tied to one that is not selected and would stay
            as it is.
    """
    structure = flat_of(tree).structure
    spans, status = structure.remember(leaf_spans), structure.remember(_status)
    wanted = [now for _, now in status]
    empty: set[Path] = set()
    for path in selected:
        start, stop = spans.get(path, (0, 0))
        wanted[start:stop] = [frozen if parameter else now for parameter, now in status[start:stop]]
        if start == stop:
            empty.add(path)
    if empty:
        pairs = zip(structure.leaf_paths(), status, wanted, strict=True)
        stay = {path for path, (parameter, _), after in pairs if parameter and after != frozen}
        _require_sources(empty, tied_leaves(tree), stay, "trainable" if frozen else "frozen")
    marks = [_Mark(after, after != now) for (_, now), after in zip(status, wanted, strict=True)]
    return _with_status(tree, iter(marks))  # type: ignore[no-any-return]


def require_no_static(tree: Any, paths: Iterable[Path]) -> None:
    """Require that no path leads to a static field, or into one.

    Raises:
        LookupError: If one does.
    """
    inside: dict[Path, Mapping[Any, Any]] = {}
    for path in paths:
        value = tree
        for depth, entry in enumerate(path):
            if isinstance(value, Node) and fields.kind(value.__frostleaf__.fields[entry]) == "static":
                field = f"{keystr(path)!r} is a static field of this {type(tree).__name__}"
                raise LookupError(f"{field}, which has no arrays to freeze: select a parameter, a module or a container")
            if path[:depth] not in inside:
                here = field_level(value)
                inside[path[:depth]] = dict(zip(here.entries, here.children, strict=True)) if here else {}
            value = inside[path[:depth]].get(entry)


def trainable(tree: Any) -> list[bool]:
    """Return for each leaf whether it is trained: a parameter, not a buffer, not frozen, and of a floating-point dtype.

    An array outside any module is a parameter.
    """
    return trainable_leaves(flat_of(tree))


def trainable_leaves(flat: Flat) -> list[bool]:
    """Return the same of a tree that was taken apart."""
    if flat.signature is not None:
        return [*flat.signature.remember(trained_of)]
    return _trained_of_kinds(flat.structure, [*map(kind_of, flat.leaves)])


def trained_of(signature: Signature) -> list[bool]:
    """Return the same of trees of a signature."""
    return _trained_of_kinds(signature.structure, signature.leaves)


def _trained_of_kinds(structure: Structure, kinds: Sequence[Kind]) -> list[bool]:
    trained = structure.remember(unfrozen)
    dtypes = [dtype for _, dtype in kinds]
    exact = {dtype for dtype in {*dtypes} if not mx.issubdtype(dtype, mx.floating)}
    return [trains and dtype not in exact for trains, dtype in zip(trained, dtypes, strict=True)] if exact else [*trained]


def gradient_structure(structure: Structure, trained: Sequence[bool]) -> Structure:
    """Return the structure of a module's gradients, which have ``None`` for each leaf that is not trained."""
    known, key = structure.remember(_gradient_structures), tuple(trained)
    if key not in known:
        spec = _gradient_spec(structure.spec, iter(key))
        known[key] = None if spec == structure.spec else Structure(spec, sum(key))
    return known[key] or structure


def _gradient_structures(structure: Structure) -> dict[tuple[bool, ...], Structure | None]:
    """Return what is known of them: for what is trained the structure, or ``None`` for that of the module itself."""
    return {}


def _gradient_spec(spec: Any, trained: Iterator[bool]) -> Any:
    if spec is mx.array:
        return mx.array if next(trained) else None
    if type(spec) is not tuple:
        return None
    kind, metadata, specs = spec
    new = tuple([_gradient_spec(child, trained) for child in child_specs(specs)])
    return kind, metadata, len(new) if all(child is mx.array for child in new) else new


def unfrozen(structure: Structure) -> tuple[bool, ...]:
    """Return for each leaf whether it is a parameter that is not frozen."""
    return tuple([parameter and not frozen for parameter, frozen in structure.remember(_status)])


def frozen_leaves(structure: Structure) -> tuple[bool, ...]:
    """Return for each leaf whether it is a parameter that is frozen."""
    return tuple([parameter and frozen for parameter, frozen in structure.remember(_status)])


def parameter_names(structure: Structure) -> frozenset[str]:
    """Return the dotted names of the leaves that are parameters, frozen or not."""
    return structure.remember(_parameter_names)


def _parameter_names(structure: Structure) -> frozenset[str]:
    status = structure.remember(_status)
    return frozenset([name for name, (parameter, _) in zip(structure.leaf_names(), status, strict=True) if parameter])


_SOURCE_STAYS = (
    "{target!r} is tied to {source!r}, which is not selected and would stay {now}: select that as well, or instead, "
    "or untie the place first"
)


def _require_sources(selected: Collection[Path], ties: Mapping[Path, Path], stay: Collection[Path], now: str) -> None:
    """Require that no selected place is tied to one of the parameters that ``stay`` as they are."""
    for target, source in ties.items():
        if source in stay and any(target[:length] in selected for length in range(len(target) + 1)):
            raise LookupError(_SOURCE_STAYS.format(target=keystr(target), source=keystr(source), now=now))


def _status(structure: Structure) -> tuple[tuple[bool, bool], ...]:
    """Return for each leaf whether it is a parameter (and not a buffer), and whether it is frozen."""
    return tuple(zip(leaf_flags(structure, fields.is_parameter), _frozen(structure.spec), strict=True))


def _frozen(spec: Any, path: Path = (), around: Metadata | None = None, frozen: bool = False) -> Iterator[bool]:
    """Yield for each leaf whether it is frozen.

    Args:
        spec: A structure or a spec.
        path: Where it is in the innermost module around it.
        around: The metadata of that module.
        frozen: Whether that module is frozen from outside.
    """
    if isinstance(spec, Structure):
        spec = spec.spec
    if spec is mx.array:
        yield frozen or (around is not None and around.freezes(path))
    elif isinstance(spec, tuple):
        kind, metadata, specs = spec
        is_module = type(metadata) is Metadata
        if is_module:
            frozen = frozen or (around is not None and around.freezes(path))
            path, around = (), metadata
        if isinstance(specs, int) and (around is None or not around.frozen):
            yield from [frozen] * specs
            return
        for entry, child in zip(entries_of(kind, metadata), child_specs(specs), strict=True):
            yield from _frozen(child, (*path, entry), around, frozen)


class _Mark(NamedTuple):
    """Whether a leaf is to be frozen, and whether its module's names have to be looked at for that."""

    frozen: bool
    changes: bool


def _with_status(tree: Any, marks: Iterator[_Mark]) -> Any:
    """Freeze each leaf as its mark says, in the order of the leaves."""

    def enter(path: Path, value: Any) -> Any:
        if isinstance(value, LEAF):
            next(marks)
            return value
        return _node_with_status(value, islice(marks, len(flat_of(value).leaves))) if isinstance(value, Node) else Descend

    return rewrite(tree, enter)


_SAME_NAME = (
    "{cls} has two places of the name {name!r}, so that one can't be frozen without the other: rename a key of the dict that "
    "holds one of them"
)


def _node_with_status(node: Node, marks: Iterable[_Mark]) -> Node:
    rest = iter(inside := [*marks])
    if not any(mark.changes for mark in inside):
        return node
    before = metadata_of(node).frozen
    wants = {path: list(islice(rest, len(flat_of(value).leaves))) for _, (path, value) in _own(node)}
    partly = {path for path, want in wants.items() if not all(mark.frozen for mark in want)}
    # A name may stay if all that it covers is to be frozen; where one goes, what it covered is named piece by piece.
    goes = {name for path in partly for name in names_above(path) if name in before}
    stays = before - goes
    added: set[str] = set()

    def enter(path: Path, value: Any) -> Any:
        if path not in wants:
            return Descend
        if not stays or stays.isdisjoint(names_above(path)):
            if isinstance(value, Node):
                uncovered = bool(goes) and not goes.isdisjoint(names_above(path))
                return _node_with_status(value, [_Mark(mark.frozen, mark.changes or uncovered) for mark in wants[path]])
            if path not in partly:
                added.add(keystr(path))
        return value

    changes = {name: rewrite(child, enter, path=(name,)) for name, child in children_of(node).items()}
    for path in partly:
        if (name := keystr(path)) in added:
            raise ValueError(_SAME_NAME.format(cls=type(node).__name__, name=name))
    return evolve(node, changes, frozen=frozenset(stays | added), convert=False)


def _own(node: Node) -> Iterator[tuple[str, tuple[Path, Any]]]:
    """Yield the arrays and modules that a node holds itself or in its containers, with the field and the path of each."""
    for name, child in children_of(node).items():
        for found in _inside((name,), child):
            yield name, found


def _inside(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, (*LEAF, Node)):
        yield path, value
    elif (here := tree_level(value)) is not None:
        for entry, child in zip(here.entries, here.children, strict=True):
            yield from _inside((*path, entry), child)


def _own_parameters(definition: Definition, children: Sequence[Any]) -> Iterator[str]:
    for name, child in zip(definition.children, children, strict=True):
        if name not in definition.parameters or child is None:
            continue
        if isinstance(child, LEAF):
            yield name
        elif not isinstance(child, Node):
            yield from [keystr(path) for path, value in _inside((name,), child) if isinstance(value, LEAF)]


def _require(module: Any, names: Iterable[str], recurse: bool) -> None:
    holders = [node for _, node in named_modules(module)] if recurse else [module]
    there = {name for node in holders for name, _ in items(node)}
    for name in names:
        if name not in there:
            cls = type(module).__name__
            raise KeyError(f"no module in this {cls} has a field {name!r} that holds an array, a module or a container")
