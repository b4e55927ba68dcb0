"""One level of a tree: a node's children, and how to make the node again from others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import mlx.core as mx
import optree

from .containers import static_key
from .instance import Instance, level_of
from .registration import NAMESPACE
from .shapes import LEAF
from .words import Path


class Recipe:
    """How optree makes a node that is not a module again, from metadata and children."""

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
        # Pickled as an example: from any node of the class, optree tells how such nodes are made.
        node = self.make(self.metadata, [_EXAMPLE] * len(self.entries))
        is_proxy = isinstance(node, MappingProxyType)  # can't be pickled
        return _recipe_of, (dict(node) if is_proxy else node, is_proxy)


# Stands for each child of the node that a recipe is pickled as.
_EXAMPLE = mx.array(0)


class Level(NamedTuple):
    """A node's children, their names, and the function that makes the node again from other children."""

    entries: Sequence[Any]
    children: Sequence[Any]
    make: Callable[[Sequence[Any]], Any]


def one_level(value: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return a node's metadata and children, or ``None`` for what is not a node: an array, ``None``, a static value.

    A module's metadata is its :class:`~frostleaf.core.instance.Metadata`, another node's a :class:`Recipe`.
    """
    if isinstance(value, Instance):
        return level_of(value)
    kind = type(value)
    if kind is tuple or kind is list:  # of which there are most, and which take optree ten times as long
        return Recipe(None, range(len(value)), _MAKERS[kind]), [*value]
    if value is None or isinstance(value, LEAF) or optree.tree_is_leaf(value, namespace=NAMESPACE):
        return None
    children, metadata, entries, make = optree.tree_flatten_one_level(value, namespace=NAMESPACE)
    return Recipe(metadata, entries, make), children


_MAKERS: dict[type, Callable[[Any, Sequence[Any]], Any]] = {
    tuple: lambda _, children: tuple(children),
    list: lambda _, children: list(children),
}


def entries_of(kind: type, metadata: Any) -> Sequence[Any]:
    """Return the names, keys or indices of a node's children."""
    return metadata.entries if isinstance(metadata, Recipe) else cast(Any, kind).__frostleaf__.children


def tree_level(value: Any) -> Level | None:
    """Return one level of a tree as :func:`one_level` opens it, or ``None`` for what is not a node."""
    node = one_level(value)
    if node is None:
        return None
    metadata, children = node
    if isinstance(metadata, Recipe):
        return Level(metadata.entries, children, lambda new: metadata.make(metadata.metadata, new))
    definition = value.__frostleaf__
    return Level(definition.children, children, lambda new: definition.assemble(metadata, new))


def replace_at(value: Any, new: Mapping[Path, Any]) -> Any:
    """Put new values at some paths of a tree, and share what lies on none of them.

    A path that leads nowhere is ignored.

    >>> replace_at({"a": (1, 2), "b": 3}, {("a", 1): 5})
    {'a': (1, 5), 'b': 3}
    """
    if () in new:
        return new[()]
    here = tree_level(value) if new else None
    if here is None:
        return value
    inside: dict[Any, dict[Path, Any]] = {}
    for (entry, *rest), each in new.items():
        inside.setdefault(entry, {})[tuple(rest)] = each
    children = [
        replace_at(child, inside[entry]) if entry in inside else child
        for entry, child in zip(here.entries, here.children, strict=True)
    ]
    same = all(after is before for after, before in zip(children, here.children, strict=True))
    return value if same else here.make(children)


def _recipe_of(node: Any, is_proxy: bool) -> Recipe:
    recipe, _ = cast(Any, one_level(MappingProxyType(node) if is_proxy else node))
    return recipe  # type: ignore[no-any-return]


def _plain(metadata: Any) -> Any:
    """Return the metadata of a dict without optree's own class of list."""
    if isinstance(metadata, list):
        return tuple(metadata)
    return tuple([_plain(each) for each in metadata]) if type(metadata) is tuple else metadata
