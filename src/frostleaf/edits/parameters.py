"""Copies with other parameters or other submodules, given as MLX gives them: dicts and lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import mlx.core as mx

from ..node import Node, Path, children_of, edited, nearest
from ..tree.functions import dotted
from ..tree.walk import rewrite
from .views import Filter, filter_and_map, items, parameters, valid_parameter

T = TypeVar("T")
N = TypeVar("N", bound=Node)

NO_PARAMETER = 'Module does not have parameter named "{name}"{at}{nearest}.'
NO_MODULE = 'Module does not have sub-module named "{name}"{at}{nearest}.'
INVALID_TYPE = "Received invalid type: {kind}{at}."
OUT_OF_BOUNDS = "List index {index} is out of bounds for destination of length {length}{at}."


def apply(module: N, map_fn: Callable[[mx.array], mx.array], filter_fn: Filter | None) -> N:
    """Return the module with its parameters mapped. See :meth:`Module.apply`."""
    return update(module, filter_and_map(module, filter_fn or valid_parameter, map_fn), strict=True)


def update(module: N, parameters: Any, strict: bool) -> N:
    """Return the module with some parameters replaced. See :meth:`Module.update`."""

    def new_leaf(current: Any, new: Any, at: str) -> Any:
        if not isinstance(current, mx.array):
            return _RECURSE
        if not strict and isinstance(new, dict) and not new:
            return current  # the place of what is not named, in a list
        if strict and not isinstance(new, mx.array):
            raise ValueError(INVALID_TYPE.format(kind=type(new).__name__, at=at))
        return new

    return _merged(module, parameters, strict, new_leaf, NO_PARAMETER)  # type: ignore[no-any-return]


def update_modules(module: N, modules: Any, strict: bool) -> N:
    """Return the module with some submodules replaced. See :meth:`Module.update_modules`."""

    def new_leaf(current: Any, new: Any, at: str) -> Any:
        if isinstance(current, Node) and isinstance(new, Node):
            return new
        if isinstance(current, Node | Mapping | tuple):
            return _RECURSE
        if strict and new != {}:
            raise ValueError(INVALID_TYPE.format(kind=type(new).__name__, at=at))
        return current

    return _merged(module, modules, strict, new_leaf, NO_MODULE)  # type: ignore[no-any-return]


def map_modules(tree: T, fn: Callable[[str, Any], Any]) -> T:
    """Return the tree with modules replaced. See :meth:`Module.map_modules`."""

    def leave(path: Path, value: Any) -> Any:
        if not isinstance(value, Node):
            return value
        replacement = fn(dotted(path), value)
        return value if replacement is None else replacement

    return rewrite(tree, leave=leave, convert=True)  # type: ignore[no-any-return]


_RECURSE: Any = object()


def _merged(
    target: Any, new: Any, strict: bool, new_leaf: Callable[[Any, Any, str], Any], missing: str, path: Path = ()
) -> Any:
    """Return ``target`` with what ``new`` names replaced by what ``new_leaf`` makes of it.

    What is not named stays. Names that ``target`` doesn't have, and values that can't be there, are errors when strict.
    """
    at = f" in {dotted(path)}" if path else ""
    if isinstance(new, Node):
        new = parameters(new)
    if isinstance(new, Mapping):
        current: dict[Any, Any] = dict(
            items(target) if isinstance(target, Node) else target if isinstance(target, Mapping) else {}
        )
        pairs: list[tuple[Any, Any]] = list(new.items())
        for name, _ in pairs:
            if strict and name not in current:
                raise ValueError(missing.format(name=name, at=at, nearest=nearest(str(name), map(str, current))))
        pairs = [(name, value) for name, value in pairs if name in current]
    elif isinstance(new, list | tuple) and isinstance(target, tuple | list):
        current = dict(enumerate(target))
        if strict and len(new) > len(current):
            raise ValueError(OUT_OF_BOUNDS.format(index=len(current), length=len(current), at=at))
        pairs = list(enumerate(new))[: len(current)]
    elif strict:
        raise ValueError(INVALID_TYPE.format(kind=type(new).__name__, at=at))
    else:
        return target
    changes: dict[Any, Any] = {}
    for name, value in pairs:
        # A module's own child, and not the view of it, so that what stays is the same object.
        old = children_of(target)[str(name)] if isinstance(target, Node) else current[name]
        below = (*path, name)
        replacement = new_leaf(old, value, f" for {dotted(below)}")
        if replacement is _RECURSE:
            replacement = _merged(old, value, strict, new_leaf, missing, below)
        if replacement is not old:
            changes[name] = replacement
    if not changes:
        return target
    if isinstance(target, Node):
        return edited(target, changes)
    merged = {**current, **changes}
    if isinstance(target, tuple):
        return type(target)(*merged.values()) if hasattr(target, "_fields") else tuple(merged.values())
    return merged
