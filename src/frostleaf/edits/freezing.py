"""Copies with other parameters frozen, and which parameters are trainable.

A module keeps the names of its frozen fields; an array inside a container is named with its index or key (``"ws.0"``). A
name covers everything below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import mlx.core as mx

from .. import fields
from ..node import Node, Path, children_of, edited, metadata_of
from ..tree.functions import dotted, flatten
from ..tree.parts import selected
from ..tree.walk import Descend, level, rewrite
from ..tree.where import Where
from .views import items, named_modules

T = TypeVar("T")

NO_SUCH_KEY = "no module in this {cls} has a field {key!r} that holds an array, a module or a container"


def freeze(module: T, recurse: bool, keys: str | Iterable[str] | None, strict: bool, frozen: bool) -> T:
    """Return the module with fields frozen, or unfrozen, by MLX's rules. See :meth:`Module.freeze`."""
    names = None if keys is None else [keys] if isinstance(keys, str) else list(keys)
    if strict and names is not None:
        _require(module, names, recurse)

    def marked(node: Node) -> Node:
        before = metadata_of(node).frozen
        if not frozen:
            return edited(node, frozen=frozenset() if names is None else before.difference(names))
        wanted = _own_parameters(node) if names is None else [name for name in names if name.split(".")[0] in node.__children__]
        return edited(node, frozen=before.union(wanted))

    if not recurse:
        return marked(module)  # type: ignore[arg-type, return-value]

    def leave(path: Path, value: Any) -> Any:
        return marked(value) if isinstance(value, Node) else value

    return rewrite(module, leave=leave)  # type: ignore[no-any-return]


def with_frozen(tree: T, where: Where, frozen: bool) -> T:
    """Return the tree with the selected parameters frozen, or trainable, and the others as they were."""
    chosen = selected(tree, where)
    wanted = [frozen if pick and parameter else now for pick, (parameter, now) in zip(chosen, _standing(tree), strict=True)]
    return _with_standing(tree, iter(wanted))  # type: ignore[no-any-return]


def trainable(tree: Any) -> list[bool]:
    """Return for each leaf whether it is trained: a parameter, not a buffer, not frozen, and of a floating-point dtype.

    An array outside any module is a parameter.
    """
    return [
        parameter and not frozen and mx.issubdtype(leaf.dtype, mx.floating)
        for leaf, (parameter, frozen) in zip(flatten(tree)[0], _standing(tree), strict=True)
    ]


def is_frozen(node: Node, name: str) -> bool:
    """Return whether the node's frozen names cover ``name``."""
    return _covering(name, metadata_of(node).frozen) is not None


def _standing(value: Any, parameter: bool = True, frozen: bool = False) -> Iterator[tuple[bool, bool]]:
    """Yield for each leaf whether it is a parameter (and not a buffer), and whether it is frozen."""
    if isinstance(value, mx.array):
        yield parameter, frozen
    elif isinstance(value, Node):
        names = metadata_of(value).frozen
        for name, (path, part) in _own(value):
            field = value.__fields__[name]
            trains = parameter and fields.kind(field) == "parameter" and not name.startswith("_")
            yield from _standing(part, trains, frozen or _covering(dotted(path), names) is not None)
    else:
        here = level(value)
        for child in here.children if here else ():
            yield from _standing(child, parameter, frozen)


def _with_standing(tree: Any, wanted: Iterator[bool]) -> Any:
    """Return the tree in which each leaf is frozen as ``wanted`` says, in the order of the leaves."""

    def enter(path: Path, value: Any) -> Any:
        if isinstance(value, mx.array):
            next(wanted)
            return value
        return _node_with_standing(value, wanted) if isinstance(value, Node) else Descend

    return rewrite(tree, enter)


def _node_with_standing(node: Node, wanted: Iterator[bool]) -> Node:
    before = metadata_of(node).frozen
    wants = {path: list(islice(wanted, len(flatten(value)[0]))) for _, (path, value) in _own(node)}
    # A name may stay if all that it covers is to be frozen; where one goes, what it covered is named piece by piece.
    goes = {name for path, want in wants.items() if not all(want) for name in _names_above(dotted(path)) if name in before}
    stays = before - goes
    added: set[str] = set()

    def enter(path: Path, value: Any) -> Any:
        if path not in wants:
            return Descend
        if _covering(dotted(path), stays) is None:
            if isinstance(value, Node):
                return _node_with_standing(value, iter(wants[path]))
            if all(wants[path]):
                added.add(dotted(path))
        return value

    changes = {name: rewrite(child, enter, path=(name,)) for name, child in children_of(node).items()}
    return edited(node, changes, frozen=frozenset(stays | added), convert=False)


def _own(node: Node) -> Iterator[tuple[str, tuple[Path, Any]]]:
    """Yield the arrays and modules that a node holds itself or in its containers, with the field and the path of each."""

    def inside(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
        if isinstance(value, mx.array | Node):
            yield path, value
        elif (here := level(value)) is not None:
            for entry, child in zip(here.entries, here.children, strict=True):
                yield from inside((*path, entry), child)

    for name, child in children_of(node).items():
        for found in inside((name,), child):
            yield name, found


def _own_parameters(node: Node) -> list[str]:
    return [
        dotted(path)
        for name, (path, value) in _own(node)
        if isinstance(value, mx.array) and fields.kind(node.__fields__[name]) == "parameter" and not name.startswith("_")
    ]


def _covering(name: str, frozen: frozenset[str]) -> str | None:
    """Return a frozen name that is ``name`` or stands above it, if there is one."""
    return next((each for each in _names_above(name) if each in frozen), None) if frozen else None


def _names_above(name: str) -> Iterator[str]:
    """Yield the dotted name, and each shorter one that stands above it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _require(module: Any, names: list[str], recurse: bool) -> None:
    holders = [node for _, node in named_modules(module)] if recurse else [module]
    for name in names:
        if not any(name in dict(items(node)) for node in holders):
            raise KeyError(NO_SUCH_KEY.format(cls=type(module).__name__, key=name))
