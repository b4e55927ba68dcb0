"""Viewing a module's contents as fresh dicts and lists, under the names that ``mlx.nn.Module`` gives them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..core import fields
from ..core.arguments import require_callable
from ..core.definition import Node
from ..core.depth import tells_depth
from ..core.dropped import require_no_count, require_no_search, require_no_training
from ..core.instance import Metadata, children_in_fields, children_of, level_of, metadata_of
from ..core.levels import tree_level
from ..core.shapes import LEAF
from ..core.words import Path, keystr
from ..tree.walk import ties_in

Filter = Callable[[Any, str, Any], bool]

_WHOLE = (*LEAF, Node)
_CONTENT = (*_WHOLE, tuple, list, Mapping)


def node_children(value: Any) -> dict[Any, Any] | None:
    """Return the children of a node of a registered class by their names; ``None`` for a module, a tuple, a list or a mapping.

    Raises:
        ValueError: If two children have the same name.
    """
    if isinstance(value, _CONTENT) or (level := tree_level(value)) is None:
        return None
    named = dict(zip(level.entries, level.children, strict=True))
    if len(named) < len(level.children):
        raise ValueError(_SAME_NAME.format(kind=type(value).__name__))
    return named


def is_content(value: Any) -> bool:
    """Return whether a value is an array or may hold some, and not a number, a string or ``None``."""
    return type(value) is mx.array or isinstance(value, _CONTENT) or node_children(value) is not None


_SAME_NAME = "two children of a {kind} have the same name: return one name for each from what fl.register_pytree_node was given"


def items(module: Node) -> list[tuple[str, Any]]:
    """Return the names and values of the fields that MLX would keep in the module's dict, with fresh lists and dicts inside.

    A tied array is at its source only.
    """
    return [(name, _as_mlx(value)) for name, value in _contents(module)]


def valid_child(module: Any, key: str, value: Any) -> bool:
    """Return whether a value may hold modules, as a filter for :meth:`Module.filter_and_map`.

    >>> import frostleaf as fl
    >>> fl.nn.Sequential(fl.nn.Identity()).filter_and_map(fl.Module.valid_child_filter)
    {'layers': [{}]}
    """
    return isinstance(value, Node | dict | list)


def valid_parameter(module: Any, key: str, value: Any) -> bool:
    """Return whether a value is or may hold an array that is saved, as a filter for :meth:`Module.filter_and_map`.

    >>> import frostleaf as fl
    >>> list(fl.nn.BatchNorm(2).filter_and_map(fl.Module.valid_parameter_filter))
    ['weight', 'bias', 'running_mean', 'running_var']
    """
    field = module.__frostleaf__.fields[key.split(".")[0]]
    return isinstance(value, (Node, dict, list, *LEAF)) and fields.persistent(field)


def trainable_parameter(module: Any, key: str, value: Any) -> bool:
    """Return whether a value is or may hold a parameter that isn't frozen, as a filter for :meth:`Module.filter_and_map`.

    >>> import frostleaf as fl
    >>> list(fl.nn.BatchNorm(2).filter_and_map(fl.Module.trainable_parameter_filter))
    ['weight', 'bias']
    """
    field = module.__frostleaf__.fields[key.split(".")[0]]
    path = key.path if isinstance(key, _Key) else tuple(key.split("."))
    return valid_parameter(module, key, value) and fields.kind(field) == "parameter" and not metadata_of(module).freezes(path)


class _Key(str):
    """A key as MLX writes it, ``"layers.0"``, that knows its path: a dot may be in the key of a dict."""

    path: Path

    @classmethod
    def of(cls, path: Path) -> _Key:
        key = cls(keystr(path))
        key.path = path
        return key


@tells_depth
def filter_and_map(
    module: Node,
    filter_fn: Filter,
    map_fn: Callable[[Any], Any] | None = None,
    is_leaf_fn: Filter | None = None,
) -> dict[str, Any]:
    """Filter and map the contents of a module. See :meth:`Module.filter_and_map`.

    The functions see whole modules, with the array at each tied place; the result has a tied array at its source only, and of a
    module that is tied as a whole nothing but itself, where it is a leaf.
    """
    for name, function in ("filter_fn", filter_fn), ("is_leaf_fn", is_leaf_fn):
        if function is not None:
            require_callable(name, function, "a module, a key and a value")
    if map_fn is not None:
        require_callable("map_fn", map_fn, "a leaf")
    map_fn = map_fn or (lambda value: value)
    is_leaf_fn = is_leaf_fn or (lambda _, __, value: not isinstance(value, Node | dict | list))

    tied: set[Path] = set()

    def inside(node: Node, path: Path) -> dict[str, Any]:
        tied.update(ties_in(node, path))
        names = zip(node.__frostleaf__.children, children_in_fields(node), strict=True)
        values = [(name, _as_mlx(value)) for name, value in names if is_content(value)]
        return {
            name: shown(node, _Key.of((name,)), value, (*path, name))
            for name, value in values
            if is_seen(value, (*path, name)) and filter_fn(node, name, value)
        }

    def is_seen(value: Any, path: Path) -> bool:
        return path not in tied or isinstance(value, Node)

    def shown(owner: Node, key: _Key, value: Any, path: Path) -> Any:
        if is_leaf_fn(owner, key, value):
            return map_fn(value)
        if isinstance(value, Node):
            return {} if path in tied else inside(value, path)
        if isinstance(value, dict):
            return {name: element(owner, _Key.of((*key.path, name)), child, (*path, name)) for name, child in value.items()}
        if isinstance(value, list):
            return [element(owner, _Key.of((*key.path, index)), child, (*path, index)) for index, child in enumerate(value)]
        raise RuntimeError(f"is_leaf_fn says that {key!r} is not a leaf, and {type(value).__name__} can't be looked into")

    def element(owner: Node, key: _Key, value: Any, path: Path) -> Any:
        return shown(owner, key, value, path) if is_seen(value, path) and filter_fn(owner, key, value) else {}

    return inside(module, ())


def parameters(module: Node) -> dict[str, Any]:
    """Return the arrays that are saved with the model."""
    return _all_arrays_in(module, False)


def trainable_parameters(module: Node) -> dict[str, Any]:
    """Return the parameters that are neither frozen nor buffers."""
    require_no_training(sys._getframe(1).f_back)
    return _all_arrays_in(module, True)


@tells_depth
def _all_arrays_in(module: Node, trainable: bool) -> dict[str, Any]:
    return _arrays_in(module, trainable)


def _arrays_in(node: Node, trainable: bool) -> dict[str, Any]:
    metadata, children = level_of(node)
    definition = node.__frostleaf__
    names = definition.parameters.difference(metadata.frozen) if trainable else definition.persistent
    found: dict[str, Any] = {}
    for name, child in zip(definition.children, children, strict=True):
        if name in names:
            if type(child) is mx.array:
                found[name] = child
            elif isinstance(child, Node):
                found[name] = _arrays_in(child, trainable)
            elif child is not None and is_content(child):
                found[name] = _arrays_inside(child, (name,), metadata, trainable)
    return found


def _arrays_inside(value: Any, path: Path, around: Metadata, trainable: bool) -> Any:
    """Return the arrays in a container of a field, with ``{}`` for what is left out."""
    if trainable and around.freezes(path):
        return {}
    if isinstance(value, LEAF):
        return value
    if isinstance(value, Node):
        return _arrays_in(value, trainable)
    if isinstance(value, tuple | list):
        return [_arrays_inside(each, (*path, index), around, trainable) for index, each in enumerate(value)]
    named = value if isinstance(value, Mapping) else node_children(value)
    if named is None:
        return {}
    return {key: _arrays_inside(each, (*path, key), around, trainable) for key, each in named.items()}


def children(module: Node) -> dict[str, Any]:
    """Return the modules that a module holds itself or in its containers."""
    return filter_and_map(module, valid_child, is_leaf_fn=lambda _, __, value: isinstance(value, Node))


def leaf_modules(module: Node) -> dict[str, Any]:
    """Return the modules that hold no other."""
    require_no_count("Module.leaf_modules", sys._getframe(1).f_back)

    def is_leaf(owner: Any, key: str, value: Any) -> bool:
        return isinstance(value, Node) and not tree_flatten(children(value))

    return filter_and_map(module, valid_child, is_leaf_fn=is_leaf)


def named_modules(module: Node) -> list[tuple[str, Any]]:
    """Return each module with its path, in MLX's order."""
    require_no_search("Module.named_modules", sys._getframe(1).f_back)
    found: list[tuple[str, Any]] = []
    waiting: list[tuple[str, Any]] = [("", module)]
    while waiting:
        path, current = waiting.pop()
        found.append((path, current))
        before = f"{path}." if path else ""
        # The fields, since a module that holds a tied array is whole.
        for name, child in zip(current.__frostleaf__.children, children_in_fields(current), strict=True):
            if type(child) is not mx.array:
                waiting += _modules_in(f"{before}{name}", child)
    return found


def _modules_in(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the modules that a field holds itself or in its containers."""
    if isinstance(value, Node):
        yield path, value
        return
    items: Any = ()
    if isinstance(value, tuple | list):
        items = enumerate(value)
    elif isinstance(value, Mapping):
        items = value.items()
    elif not isinstance(value, LEAF) and (named := node_children(value)) is not None:
        items = named.items()
    for key, each in items:
        yield from _modules_in(f"{path}.{key}", each)


def _contents(module: Node) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in children_of(module).items() if is_content(value)]


def _as_mlx(value: Any) -> Any:
    """Return a field's value with fresh lists and dicts in place of tuples, mappings and registered nodes, however deep."""
    if isinstance(value, _WHOLE):
        return value
    if isinstance(value, tuple | list):
        return [_as_mlx(item) for item in value]
    contents = value if isinstance(value, Mapping) else node_children(value)
    return value if contents is None else {key: _as_mlx(item) for key, item in contents.items()}
