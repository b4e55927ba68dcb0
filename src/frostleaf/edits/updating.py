"""Replacing parameters or submodules in copies, given as MLX gives them: dicts and lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import mlx.core as mx
from mlx.nn.layers.base import Module as MLXModule
from mlx.utils import tree_flatten

from ..core import fields
from ..core.arguments import require_callable
from ..core.definition import Node
from ..core.instance import children_in_fields, children_of
from ..core.leaves import leaf_flags
from ..core.shapes import LEAF
from ..core.sharing import has_ties, with_leaves, with_values
from ..core.structure import Structure, flat_of
from ..core.words import Path, describe, keystr, nearest
from ..tree.comparison import equal
from ..tree.selecting import warn_if_asked_in_vain
from ..tree.walk import rewrite, tied_leaves, tied_places
from .views import Filter, filter_and_map, is_content, node_children, parameters

T = TypeVar("T")
N = TypeVar("N", bound=Node)


def apply(module: N, map_fn: Callable[[mx.array], mx.array], filter_fn: Filter | None) -> N:
    """Map the parameters of a module. See :meth:`Module.apply`."""
    require_callable("map_fn", map_fn, "an array")
    if filter_fn is not None:
        return update(module, filter_and_map(module, filter_fn, map_fn), strict=True)
    flat = flat_of(module)
    saved = flat.structure.remember(persistent)
    new = [map_fn(leaf) if mapped else leaf for leaf, mapped in zip(flat.leaves, saved, strict=True)]
    for index, leaf in enumerate(new) if not {*map(type, new)}.issubset(LEAF) else ():
        if not isinstance(leaf, LEAF):
            raise ValueError(_INVALID.format(kind=type(leaf).__name__, path=flat.structure.leaf_names()[index]))
    return with_leaves(module, new, convert=True)  # type: ignore[no-any-return]


def persistent(structure: Structure) -> tuple[bool, ...]:
    """Return for each leaf whether it is saved with the parameters."""
    return tuple(leaf_flags(structure, fields.persistent))


_INVALID = "Received invalid type: {kind} for {path}."
_OF_MLX = (
    "Received invalid type: {kind} for {path}, a module of mlx.nn that frostleaf can't look into. Use the layer of that name "
    "in fl.nn, or fl.from_mlx(module)"
)


def update(module: N, parameters: Any, strict: bool) -> N:
    """Replace some parameters. See :meth:`Module.update`."""

    def new_leaf(current: Any, new: Any, path: Path) -> Any:
        if not isinstance(current, LEAF):
            return _DESCEND
        if not strict and isinstance(new, dict) and not new:
            return current  # in a list, {} stands for what is not named
        if strict and not isinstance(new, LEAF):
            raise ValueError(_INVALID.format(kind=type(new).__name__, path=keystr(path)))
        return new

    parameters = _as_parameters(parameters)
    if strict and flat_of(module).structure.remember(has_ties):
        parameters = _without_tied(parameters, tied_leaves(module, of_mlx=True))
    new = dict(_replacements(module, parameters, strict, new_leaf, "parameter", lambda path: _advice(module, path)))
    return with_values(module, new)  # type: ignore[no-any-return]


def _as_parameters(new: Any) -> Any:
    """Return the parameters of a module of either kind, whose items are more than these, and anything else as it is."""
    if isinstance(new, MLXModule):
        return new.parameters()  # type: ignore[no-untyped-call]
    return parameters(new) if isinstance(new, Node) else new


_ANOTHER = (
    "{target} is tied to {source}, and was given another array than that. Give the same at both, or leave {target} out, or "
    "take the tie away first: see untie"
)


def _without_tied(parameters: Any, ties: Mapping[Path, Path]) -> Any:
    """Leave out what a module of MLX has under a second name, which must be the same as under the first."""

    def given_at(path: Path) -> Any:
        value = parameters
        for entry in path:
            held = value if isinstance(value, Mapping) else dict(enumerate(value)) if isinstance(value, list | tuple) else {}
            value = held.get(entry)
        return value

    def rest(value: Any, path: Path) -> Any:
        value = _as_parameters(value)
        source, left = ties.get(path), value
        if isinstance(value, Mapping):
            inside = {name: rest(each, (*path, name)) for name, each in value.items()}
            left = {name: each for name, each in inside.items() if each is not _TIED}
        elif isinstance(value, list | tuple):
            left = [{} if each is _TIED else each for each in [rest(each, (*path, index)) for index, each in enumerate(value)]]
        elif source is not None and isinstance(value, LEAF) and isinstance(first := given_at(source), LEAF):
            if value is not first and not equal(value, first):
                raise ValueError(_ANOTHER.format(target=keystr(path), source=keystr(source)))
            return _TIED
        return _TIED if source is not None and not tree_flatten(left) else left

    return rest(parameters, ())


# What is not needed, because the tree has it elsewhere.
_TIED: Any = object()


def update_modules(module: N, modules: Any, strict: bool) -> N:
    """Replace some submodules. See :meth:`Module.update_modules`."""

    def new_leaf(current: Any, new: Any, path: Path) -> Any:
        if isinstance(current, Node) and isinstance(new, Node):
            return new
        if isinstance(current, Node) and isinstance(new, MLXModule):
            raise ValueError(_OF_MLX.format(kind=type(new).__name__, path=keystr(path)))
        if is_content(current) and not isinstance(current, mx.array):
            return _DESCEND
        if strict and new != {}:
            raise ValueError(_INVALID.format(kind=type(new).__name__, path=keystr(path)))
        return _DESCEND

    new = dict(_replacements(module, modules, strict, new_leaf, _MODULE, lambda path: _advice(module, path)))
    return with_values(module, new)  # type: ignore[no-any-return]


def map_modules(tree: T, fn: Callable[[str, Any], Any]) -> T:
    """Replace modules by what ``fn`` returns for them. See :meth:`Module.map_modules`."""
    require_callable("fn", fn, "a path and a module")

    def leave(path: Path, value: Any) -> Any:
        if not isinstance(value, Node):
            return value
        replacement = fn(keystr(path), value)
        if replacement is None:
            return value
        if not (_may_stand_for_module(replacement) if path else isinstance(replacement, Node)):
            given = f"for {keystr(path) or f'the {type(value).__name__} itself'}"
            raise TypeError(
                f"fn returned {describe(replacement)} {given}: it must return a module, or None to keep the one there"
            )
        return replacement

    after = rewrite(tree, leave=leave, convert=True)
    if after is tree:
        warn_if_asked_in_vain(fn, tree)
    return after  # type: ignore[no-any-return]


def _may_stand_for_module(value: Any) -> bool:
    """Return whether a value may be put where a module was: a tree, or something else to call, such as an activation."""
    return is_content(value) or (callable(value) and not isinstance(value, type))


_AT_SOURCE = " It is tied to {source!r}: update that, and both places have it."
_DOTTED = " Names with dots are for load_weights: model.load_weights({{{name!r}: ...}}, strict=False)."
_NESTED = " Dicts are nested here, as mlx.utils.tree_unflatten([({name!r}, ...)]) returns them."


def _advice(module: Node, path: Path) -> str:
    """Return what to say of a path where a module has nothing of its own: to what it is tied, and how to give dotted names."""
    name, sources = keystr(path), tied_places(module)
    told = _AT_SOURCE.format(source=sources[name]) if name in sources else ""
    name, names = sources.get(name, name), flat_of(module).structure.leaf_names()
    if path and "." in str(path[-1]) and any(f"{each}.".startswith(f"{name}.") for each in names):
        told += f"{_DOTTED if name in names else ''}{_NESTED}".format(name=name)
    return told


_DESCEND: Any = object()
_MODULE = "sub-module"


def _children_for(new: Mapping[Any, Any], target: Any, what: str) -> Mapping[Any, Any]:
    """Return what a mapping may name in a target: in a module its own children, so that what is kept is the same object."""
    if not isinstance(target, Node):
        return target if isinstance(target, Mapping) else {}
    # A tied module may be named at either place, an array at its source.
    whole = dict(zip(target.__frostleaf__.children, children_in_fields(target), strict=True))
    children = whole if what == _MODULE else children_of(target)
    # MLX has an empty branch for each string of a list.
    static = {name: getattr(target, name) for name in new.keys() & target.__frostleaf__.static}
    branches = {name: each for name, each in static.items() if isinstance(each, list | tuple | Mapping)}
    return {name: each for name, each in children.items() if is_content(each)} | branches


def _replacements(
    target: Any,
    new: Any,
    strict: bool,
    new_leaf: Callable[[Any, Any, Path], Any],
    what: str,
    advice: Callable[[Path], str],
    path: Path = (),
) -> Iterator[tuple[Path, Any]]:
    """Yield the path of everything in ``target`` that ``new`` names, and what ``new_leaf`` makes of it.

    If strict, names that ``target`` doesn't have and values that can't be there are errors, in MLX's words and with what
    ``advice`` says of the path.
    """
    at = f" in {keystr(path)}" if path else ""
    if isinstance(new, Node) or (isinstance(new, MLXModule) and what != _MODULE):
        new = _as_parameters(new)
    elif (given := node_children(new)) is not None:
        new = {name: value for name, value in given.items() if is_content(value)}
    if (named := node_children(target)) is not None:
        # Of what has numbers for names tree_unflatten makes a list.
        numbered = isinstance(new, list | tuple) and [*named] == [*range(len(named))]
        target = [*named.values()] if numbered else named
    if isinstance(new, Mapping):
        children: Any = _children_for(new, target, what)
        for name in new:
            if strict and name not in children:
                near, told = nearest(str(name), map(str, children)), advice((*path, name))
                raise ValueError(f'Module does not have {what} named "{name}"{at}{near}.{told}')
        pairs = [(name, value) for name, value in new.items() if name in children]
    elif isinstance(new, list | tuple) and isinstance(target, tuple | list):
        children = target
        if strict and len(new) > len(target):
            raise ValueError(f"List index {len(target)} is out of bounds for destination of length {len(target)}{at}.")
        pairs = list(enumerate(new))[: len(target)]
    elif strict:
        raise ValueError(f"Received invalid type: {type(new).__name__}{at}.{advice(path)}")
    else:
        return
    for name, value in pairs:
        below = (*path, name)
        replacement = new_leaf(children[name], value, below)
        if replacement is _DESCEND:
            yield from _replacements(children[name], value, strict, new_leaf, what, advice, below)
        else:
            yield below, replacement
