"""Tied places: one array that stands at two places of a module, and is one leaf of its tree.

The fields of the module that has the ties hold the array at both places, for whoever reads them. In the tree ``None`` stands at
the tied place: the array is taken out where a module is taken apart (:func:`taken_out`), put back where it is put together
(:func:`fill`), and after an edit one place follows the other (:func:`follow`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import optree

from .namespace import NAMESPACE
from .node import Node, Path, Ties, opened

GONE = (
    "{cls}.{target} is tied to {source}, and after this edit there is nothing at {missing}. Take the tie away first: "
    ".untie({target!r})"
)
CONFLICT = (
    "{cls}.{target} is tied to {source}, and this edit leaves unlike arrays there: {given} and {expected}. Change both alike, "
    "or take the tie away first: .untie({target!r})"
)

MISSING: Any = object()


def taken_out(cls: type[Node], children: tuple[Any, ...], ties: Ties) -> tuple[Any, ...]:
    """Return the children of a node with ``None`` in each tied place."""
    values = dict(zip(cls.__children__, children, strict=True))
    for target, _ in ties:
        _put(values, target, None)
    return tuple(values.values())


def fill(node: Node, ties: Ties) -> None:
    """Put the arrays in their tied places, in a node that was put together of children without them.

    The children may be anything, since trees are mapped to trees of other things. A place that is not there stays so.
    """
    for target, source in ties:
        value = _get(node.__dict__, source)
        if value is not MISSING and _get(node.__dict__, target) is not MISSING:
            _put(node.__dict__, target, value)


def follow(node: Node, ties: Ties, old: Mapping[str, Any]) -> None:
    """Bring both places of each tie in line, in a node that was edited: whichever was changed, the other follows.

    Where both were changed, as by an edit of every layer, their shapes and dtypes must be the same, and the source's array
    stands for both. One alone may change in dtype or shape, but not into the array of another class: the packed bits of a
    quantized layer are of no use to one that is not.

    Args:
        node: The node, whose fields have their new values.
        ties: Its ties.
        old: The fields' values before the edit.

    Raises:
        ValueError: If one of the places is gone, or two different arrays were put there.
    """
    values = node.__dict__
    for target, source in ties:
        before, given, expected = _get(old, source), _get(values, target), _get(values, source)
        for path, value in ((target, given), (source, expected)):
            if value is MISSING:
                names = {"cls": type(node).__name__, "target": _dotted(target), "source": _dotted(source)}
                raise ValueError(GONE.format(**names, missing=_dotted(path)))
        if given is expected:
            continue
        target_changed = given is not None and given is not before
        if target_changed and expected is not before:
            fits = _shape(given) == _shape(expected) and given.dtype == expected.dtype
        else:
            fits = _shape(given if target_changed else before) == _shape(expected) or all(
                _holder(old, path) is _holder(values, path) for path in (target, source)
            )
        if not fits:
            names = {"cls": type(node).__name__, "target": _dotted(target), "source": _dotted(source)}
            raise ValueError(CONFLICT.format(**names, given=_shown(given), expected=_shown(expected)))
        if target_changed and expected is before:
            _put(values, source, given)
        else:
            _put(values, target, expected)


def _get(values: Mapping[str, Any], path: Path) -> Any:
    """Return what stands at a path below a dict of fields, or ``MISSING``."""
    value: Any = values
    for name in path:
        if isinstance(value, Node):
            opened(value)
            value = value.__dict__
        if isinstance(value, Mapping):
            value = value.get(name, MISSING)
        else:
            entries, children, _ = _one_level(value)
            value = children[entries.index(name)] if name in entries else MISSING
    return value


def _put(values: dict[str, Any], path: Path, new: Any) -> None:
    name, *rest = path
    values[name] = _replaced(values[name], rest, new)


def _replaced(value: Any, path: Sequence[Any], new: Any) -> Any:
    """Return a tree with something else at a path, which is there; what does not lie on the path is shared."""
    if not path:
        return new
    entries, children, make = _one_level(value)
    name, *rest = path
    return make(
        [_replaced(child, rest, new) if entry == name else child for entry, child in zip(entries, children, strict=True)]
    )


def _one_level(value: Any) -> tuple[Sequence[Any], Sequence[Any], Callable[[Sequence[Any]], Any]]:
    """Return the names of what is in a node or container, what is in it, and the function that makes it again."""
    if isinstance(value, Node):
        metadata, children, _ = opened(value)
        return type(value).__children__, children, partial(type(value).__assemble__, metadata)
    if value is None or isinstance(value, mx.array) or optree.tree_is_leaf(value, namespace=NAMESPACE):
        return (), (), lambda _: value
    inside, recipe, entries, make = optree.tree_flatten_one_level(value, namespace=NAMESPACE)
    return entries, inside, partial(make, recipe)


def _holder(values: Mapping[str, Any], path: Path) -> type | None:
    """Return the class of the innermost node that a path leads through."""
    above = [_get(values, path[:length]) for length in range(1, len(path))]
    return next((type(value) for value in reversed(above) if isinstance(value, Node)), None)


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _shown(value: Any) -> str:
    is_array = isinstance(value, mx.array)
    return f"{value.dtype}{list(value.shape)}".removeprefix("mlx.core.") if is_array else repr(value)


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
