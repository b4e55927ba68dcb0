"""Walking trees through all their fields, and editing them so that what is not touched is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..core.construction import evolve
from ..core.definition import Node
from ..core.depth import tells_depth
from ..core.instance import field_values, metadata_of
from ..core.levels import Level, tree_level
from ..core.shapes import LEAF
from ..core.words import Path, keystr


def field_level(value: Any, convert: bool = False) -> Level | None:
    """Return one level of a tree, with all fields of a module, static ones included; ``None`` for what is not a node.

    With ``convert``, making a module again runs the converters and validators of the fields that differ.
    """
    if not isinstance(value, Node):
        return tree_level(value)
    fields = field_values(value)
    entries = tuple(fields)
    return Level(entries, [*fields.values()], lambda new: evolve(value, dict(zip(entries, new, strict=True)), convert=convert))


class Descend:
    """What ``enter`` returns in :func:`rewrite` to keep a value and go on with its children."""


@tells_depth
def rewrite(
    value: Any,
    enter: Callable[[Path, Any], Any] | None = None,
    leave: Callable[[Path, Any], Any] | None = None,
    path: Path = (),
    convert: bool = False,
    tied: frozenset[Path] = frozenset(),
) -> Any:
    """Walk a tree and replace values; whatever holds no replaced value stays the same object.

    A tied array or module is visited once, at its source.

    Args:
        value: The tree.
        enter: Called with the path and the value of each node and leaf, before its children. Returns the replacement, or
            ``Descend`` to go on with the children.
        leave: Called with the path and the value of each node and leaf after its children. Returns the replacement.
        path: The path of ``value`` in a larger tree.
        convert: Whether the converters and validators of fields run on new values.
        tied: The paths of the tied places in the modules around ``value``.
    """
    return _rewrite(value, enter, leave, path, convert, tied)


def _rewrite(
    value: Any,
    enter: Callable[[Path, Any], Any] | None,
    leave: Callable[[Path, Any], Any] | None,
    path: Path,
    convert: bool,
    tied: frozenset[Path],
) -> Any:
    if tied and path in tied:
        return value
    if enter is not None:
        replacement = enter(path, value)
        if replacement is not Descend:
            return replacement
    here = field_level(value, convert)
    if here is not None and len(here.children):
        tied |= ties_in(value, path)
        new = [
            _rewrite(child, enter, leave, (*path, entry), convert, tied)
            for entry, child in zip(here.entries, here.children, strict=True)
        ]
        if any(after is not before for after, before in zip(new, here.children, strict=True)):
            value = here.make(new)
    return value if leave is None else leave(path, value)


def nodes_in(tree: Any) -> list[Any]:
    """Return every module in a tree."""
    found: list[Any] = []

    def enter(path: Path, value: Any) -> Any:
        if isinstance(value, Node):
            found.append(value)
        return Descend

    rewrite(tree, enter)
    return found


def ties_in(value: Any, path: Path = ()) -> frozenset[Path]:
    """Return the paths of a module's own tied places, where ``path`` is that of the module."""
    ties = metadata_of(value).ties if isinstance(value, Node) else ()
    return frozenset((*path, *target) for target, _ in ties)


def all_ties(tree: Any, of_mlx: bool = False) -> dict[Path, Path]:
    """Map each tied place in a tree to its source, both as paths from the root.

    With ``of_mlx`` only those in modules that stand for ones of MLX, which have the arrays under both names.
    """
    found: dict[Path, Path] = {}

    def enter(path: Path, value: Any) -> Any:
        if isinstance(value, Node) and (not of_mlx or hasattr(type(value), "__mlx__")):
            found.update(((*path, *target), (*path, *source)) for target, source in metadata_of(value).ties)
        return Descend

    rewrite(tree, enter)
    return found


def tied_leaves(tree: Any, of_mlx: bool = False) -> dict[Path, Path]:
    """As :func:`all_ties`, with each array in a tied module as well. A source is never tied itself."""
    found = all_ties(tree, of_mlx)
    for target, source in [*found.items()]:
        value = at_path(tree, source)
        inside = _places_of_leaves(value) if isinstance(value, Node) else ()
        found.update(((*target, *path), (*source, *path)) for path in inside)
    return {target: source_of(source, found) for target, source in found.items()}


def source_of(path: Path, ties: Mapping[Path, Path]) -> Path:
    """Return the path of the same place that leads through no tied one."""
    for length in range(1, len(path) + 1):
        if path[:length] in ties:
            return source_of((*ties[path[:length]], *path[length:]), ties)
    return path


def at_path(tree: Any, path: Path) -> Any:
    """Return what is at a path in all fields of modules, ``None`` if it leads nowhere."""
    for entry in path:
        here = field_level(tree)
        tree = dict(zip(here.entries, here.children, strict=True)).get(entry) if here else None
    return tree


def _places_of_leaves(value: Any) -> Iterator[Path]:
    """Yield the paths of all arrays, at their tied places too."""
    if isinstance(value, LEAF):
        yield ()
    here = None if isinstance(value, LEAF) else field_level(value)
    for entry, child in zip(here.entries, here.children, strict=True) if here else ():
        yield from [(entry, *path) for path in _places_of_leaves(child)]


def tied_places(tree: Any) -> dict[str, str]:
    """As :func:`tied_leaves`, with dotted paths."""
    return {keystr(target): keystr(source) for target, source in tied_leaves(tree).items()}
