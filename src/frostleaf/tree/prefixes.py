"""Trees aligned with another tree: one value for each of its leaves, or one for a whole branch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..core.hidden import is_foreign_array
from ..core.instance import Instance, Metadata, Ties, children_in_fields, level_of, metadata_of
from ..core.levels import Recipe, entries_of, one_level
from ..core.shapes import LEAF
from ..core.structure import flat_of
from ..core.ties import taken_out
from ..core.words import BUILD_AGAIN, Path, describe, is_defined_again, keystr, listed
from .walk import at_path


def flatten_up_to(tree: Any, other: Any, what: str, tie_alike: str | None = None) -> list[Any]:
    """Return what another tree of the same structure has for each array: a leaf, a subtree, or ``None``.

    Args:
        tree: Any tree.
        other: A tree with the same nodes. The order of a dict's items does not matter. Static values are ignored, but where
            ``tree`` has one there may be no array.
        what: What to call ``other`` in an error.
        tie_alike: What to write if other places are tied in it, so that a value would be lost or used twice. Default: those
            that are tied in ``tree`` count.

    Raises:
        ValueError: If a node or ``None`` is something else in ``other``, an array stands for a static value, or other places
            are tied where that matters; the message names the path.
    """
    found: list[Any] = []
    _align(tree, other, _same_node, what, tie_alike, (), found)
    return found


def broadcast_prefix(prefix: Any, tree: Any, what: str) -> Iterator[tuple[Path, mx.array, Any]]:
    """Yield the path of each array in a tree, the array, and its value in a prefix of the tree.

    Args:
        prefix: A tree of the same names, or its outer part: ``None`` or a number instead of a node goes with every array in
            that. A list may stand for a tuple, and one mapping for another. Static values are ignored.
        tree: Any tree.
        what: What to call ``prefix`` in an error.

    Raises:
        ValueError: If ``prefix`` has something else instead of a node; the message names the path.
    """
    found: list[Any] = []
    _align(tree, prefix, _prefix_node, what, None, (), found)
    flat = flat_of(tree, hidden=True)  # what a prefix may go with is for the caller to say
    return zip(flat.structure.leaf_paths(), flat.leaves, found, strict=True)


def argument(path: Path) -> str:
    """Name a place in the arguments of a function, given its path, which begins with the number of the argument.

    >>> argument((0, "layers", 1, "weight")), argument((2,))
    ('layers.1.weight of argument 0', 'argument 2')
    """
    inside = keystr(path[1:])
    return f"{inside} of argument {path[0]}" if inside else f"argument {path[0]}"


def _align(
    tree: Any,
    other: Any,
    children_of: Callable[[Any, Any, Any], Sequence[Any] | None],
    what: str,
    tie_alike: str | None,
    path: Path,
    found: list[Any],
) -> None:
    """Append to ``found`` what ``other`` has for each array in ``tree``."""
    if isinstance(tree, LEAF):
        found.append(other)
        return
    if children_of is _prefix_node and (other is None or isinstance(other, int)):
        found += [other] * flat_of(tree, hidden=True).structure.num_leaves
        return
    node = one_level(tree)
    values = children_of(tree, node, other)
    if values is None:
        of_one_class = type(other) is type(tree) and node is not None and not isinstance(node[0], Recipe)
        said = _definition if of_one_class else _contents
        given, expected = said(other, one_level(other)), said(tree, node)
        given += " of another definition" * (given == expected)
        place = keystr(path) or "the root"
        advice = "" if node is not None or tree is None else " Only arrays are leaves: make it an array in the first tree too."
        if is_defined_again(type(tree), type(other)):
            advice = f" {BUILD_AGAIN.format(name=type(tree).__name__)}."
        mismatch = f"At {place}: {given} where there is {expected}."
        raise ValueError(f"{what} does not have the structure of the tree it goes with. {mismatch}{advice}")
    if node is not None:
        if tie_alike is not None and isinstance(tree, Instance) and isinstance(other, Instance):
            _require_ties(tree, other, what, tie_alike, path)
        for child, value, entry in zip(node[1], values, entries_of(type(tree), node[0]), strict=True):
            if value is _NOTHING:
                found += [None] * len(flat_of(child).leaves)
            elif type(child) is mx.array:
                found.append(value)
            else:
                _align(child, value, children_of, what, tie_alike, (*path, entry), found)


_OTHER_TIES = "{what} has other ties than the tree it goes with: {target} is tied to {source} in {which} alone. {advice}."


def _require_ties(tree: Instance, other: Instance, what: str, tie_alike: str, path: Path) -> None:
    """Require that what ``other`` has at two places is for two arrays of ``tree``, and what it has at one for one."""
    ours, theirs = metadata_of(tree).ties, metadata_of(other).ties
    if ours == theirs:
        return
    for which, ties, others in (("the tree", ours, dict(theirs)), (what, theirs, dict(ours))):
        for target, source in ties:
            is_one = others.get(target, target) == others.get(source, source)
            value = at_path(other, target)
            is_lost = which == what or value is not at_path(other, source)
            if not is_one and is_lost and _is_something(value) and all(_is_compared(tree, each) for each in (target, source)):
                places = {"target": keystr((*path, *target)), "source": keystr((*path, *source))}
                raise ValueError(_OTHER_TIES.format(what=what, which=which, advice=tie_alike, **places))


def _is_something(value: Any) -> bool:
    """Return whether there is a value, or a module with arrays in it."""
    return bool(flat_of(value, hidden=True).leaves) if isinstance(value, Instance) else value is not None


def _is_compared(tree: Instance, path: Path) -> bool:
    """Return whether what is at a path counts: not what a module of MLX keeps for itself, which :func:`_by_name` leaves out."""
    definition = tree.__frostleaf__
    return not hasattr(type(tree), "__mlx__") or path[0] in definition.parameters


def _same_node(tree: Any, node: Any, other: Any) -> Sequence[Any] | None:
    """Return the children of ``other`` in the order of those of ``tree``, or ``None`` if the two nodes differ."""
    if tree is None:
        return () if other is None else None
    if node is None:
        return _beside_static(tree, other)
    there = one_level(other) if type(other) is type(tree) else None
    original = getattr(type(tree), "__mlx__", None)
    if original is not None and original is getattr(type(other), "__mlx__", None):
        definition = tree.__frostleaf__
        has_private = len(definition.parameters) < len(definition.children)
        if there is None or has_private or there[0].static_key != node[0].static_key:
            return _by_name(tree, other)
    if there is None:
        return None
    if isinstance(other, Mapping):
        # A function that is given a whole dict may depend on the order of its items. Here the order does not matter.
        entries = node[0].entries
        if other.keys() == set(entries):
            return [other[entry] for entry in entries]
        # MLX's parameters() have empty branches for what holds none, which ours leave out.
        on_one_side = [tree.get(key, other.get(key)) for key in other.keys() ^ set(entries)]
        return None if tree_flatten(on_one_side) else [other.get(entry, _NOTHING) for entry in entries]
    if isinstance(node[0], Metadata):
        # A copy that is frozen, in another mode, or tied at other places has the same arrays.
        if there[0].static_key != node[0].static_key:
            return None
        return _children(other, node[0].ties)
    return there[1] if there[0] == node[0] and len(there[1]) == len(node[1]) else None


# What a tree has nothing for.
_NOTHING: Any = object()


def _by_name(tree: Any, other: Any) -> Sequence[Any]:
    """Return the children of ``other`` under the names that ``tree`` has.

    Both stand for modules of one class of MLX, whose code may set other attributes in each call, and keep more or less in its
    private containers.
    """
    definition = tree.__frostleaf__
    values = dict(zip(other.__frostleaf__.children, _children(other, metadata_of(tree).ties), strict=True))
    own = zip(definition.children, level_of(tree)[1], strict=True)
    compared = {name for name, child in own if name in definition.parameters or isinstance(child, LEAF)}
    return [values.get(name, _NOTHING) if name in compared else _NOTHING for name in definition.children]


def _children(node: Any, ties: Ties) -> Sequence[Any]:
    """Return the children of a module as they would be if these were its ties."""
    metadata, children = level_of(node)
    return children if metadata.ties == ties else taken_out(type(node), children_in_fields(node), ties)


def _prefix_node(tree: Any, node: Any, other: Any) -> Sequence[Any] | None:
    """Return what ``other`` has for each child of ``tree``; ``None`` if they differ."""
    if node is None:
        return ()
    entries = entries_of(type(tree), node[0])
    there = one_level(other)
    if there is None or _kind(other) is not _kind(tree):
        return None
    children = _children(other, node[0].ties) if isinstance(node[0], Metadata) else there[1]
    values = dict(zip(entries_of(type(other), there[0]), children, strict=True))
    return [values[entry] for entry in entries] if values.keys() == set(entries) else None


def _beside_static(tree: Any, other: Any) -> Sequence[Any] | None:
    """Return no children, or ``None`` if ``other`` has arrays, which would be lost, where ``tree`` has a static value."""
    if other is None or type(other) is type(tree):
        return ()
    return None if is_foreign_array(other) or flat_of(other).leaves else ()


def _kind(value: Any) -> type:
    """Return the class of a node, counting a list as a tuple and all mappings as one class."""
    return tuple if isinstance(value, list) else Mapping if isinstance(value, Mapping) else type(value)


def _contents(value: Any, node: Any) -> str:
    """Describe a node by its class and the names of its children, and any other value in a few words."""
    if node is None:
        return describe(value)
    entries = entries_of(type(value), node[0])
    return f"{type(value).__name__} of {len(entries)} ({listed(map(str, entries))})"


def _definition(value: Any, node: Any) -> str:
    """Describe a module by its class and what tells it from others of that class."""
    metadata, name = node[0], type(value).__name__
    said = [f"{field}={describe(each)}" for field, each in metadata.static.items()]
    said += ["in evaluation mode"] * (not metadata.training)
    said += [f"with {listed(sorted(metadata.frozen))} frozen"] * bool(metadata.frozen)
    ties = listed(f"{keystr(target)} tied to {keystr(source)}" for target, source in metadata.ties)
    said += [f"with {ties}"] * bool(ties)
    said += [f"with shards of {listed(keystr(path) for path, _ in metadata.shards)}"] * bool(metadata.shards)
    return f"{name} ({', '.join(said)})" if said else name
