"""Modules of ``mlx.nn`` that run the code of a class of frostleaf."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.nn.layers.base import Module as MLXModule

from ..core import fields
from ..core.definition import Node
from ..core.levels import one_level
from ..core.structure import Structure, flat_of, unflatten
from ..transforms.stateful import stateful
from .freezing import Freezer
from .layout import Layout


class Running(MLXModule):
    """Holds the arrays of a tree under its names, and calls the tree that they make now."""

    __native__: type[Node]
    _structure: Structure
    _class_for: Callable[[Layout], Any]
    _plan: _Plan

    def keep(self, structure: Structure, class_for: Callable[[Layout], Any]) -> None:
        """Keep what the tree is but for its arrays, and what makes trees of other modules."""
        for name, value in {"_structure": structure, "_class_for": class_for, "_plan": _Plan()}.items():
            object.__setattr__(self, name, value)

    def __native_before__(self) -> Any:
        """Return the tree that it was made for, without the arrays."""
        structure = self._structure
        return unflatten(structure.spec, iter([mx.array] * structure.num_leaves))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = inspect.getattr_static(type(self).__native__, name, None)
            if found is None or name.startswith("__"):
                raise
        return functools.partial(_run, self, name) if inspect.isfunction(found) else getattr(_tree(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).__native__.__frostleaf__.fields and not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no field {name!r}, and its code would not find it")
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _run(self, "__call__", *args, **kwargs)


def _run(live: Running, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the tree, and put the arrays that it records in their places."""
    tree = _tree(live)
    method = getattr(tree, name)
    if not (tree.training and flat_of(tree).structure.remember(_has_buffers)):
        return method(*args, **kwargs)
    out, after = stateful(method, *args, **kwargs)
    _write(tree, after, live)
    return out


def _tree(live: Running) -> Any:
    """Return the tree that the arrays make now."""
    return live._plan.tree(live, live._class_for)


def trees_of(class_for: Callable[[Layout], Any], template: Any) -> Callable[[MLXModule], Any]:
    """Return a function that returns the tree that a module makes now.

    Args:
        class_for: Returns the class of a layout.
        template: The native module that it stands for, if it does, with anything in the place of arrays.
    """
    plan = _Plan()
    return lambda live: plan.tree(live, class_for, template)


class _Plan:
    """How a tree was made of a module: as long as nothing but arrays is another, the next is made of those alone."""

    def __init__(self) -> None:
        self._made: _Made | None = None

    def tree(self, live: MLXModule, class_for: Callable[[Layout], Any], template: Any = None) -> Any:
        """Return the tree that a module makes now."""
        made = self._made
        tree = made.next() if made is not None and made.owner is live else None
        if tree is None:
            tree = Freezer(class_for, lambda array: array).inside(live, (), template)
            self._made = _made(live, tree)
        return tree

    def __reduce__(self) -> Any:
        return _Plan, ()  # that of a copy is its own


class _Made(NamedTuple):
    """What a module had when a tree was made of it.

    Attributes:
        owner: The module.
        views: What is in the dicts and lists of the module, and of what is inside.
        rest: All of that when the tree was made, with ``None`` in the places of arrays.
        places: Where the leaves of the tree are among it.
        structure: The structure of the tree.
    """

    owner: MLXModule
    views: Sequence[Iterable[Any]]
    rest: Sequence[Any]
    places: Sequence[int]
    structure: Structure

    def next(self) -> Any:
        """Return the tree that the module makes now, or ``None`` if more than arrays may be another."""
        values: list[Any] = [*chain.from_iterable(self.views)]
        if len(values) != len(self.rest):
            return None
        leaves = [values[place] for place in self.places]
        for place in self.places:
            values[place] = None
        same = all(map(is_, values, self.rest)) and {*map(type, leaves)} <= {mx.array}
        return unflatten(self.structure, iter(leaves)) if same else None


def _made(live: MLXModule, tree: Any) -> _Made | None:
    flat = flat_of(tree)
    views = [dict.values(each) if isinstance(each, dict) else each for each in _holders(live)]
    values = [*chain.from_iterable(views)]
    places = {id(value): place for place, value in enumerate(values) if type(value) is mx.array}
    if {*places} != {*map(id, flat.leaves)} or len(places) < len(flat.leaves):
        return None  # some are tied, or in no tree
    found = [places[id(leaf)] for leaf in flat.leaves]
    for place in found:
        values[place] = None
    return _Made(live, views, values, found, flat.structure)


def _holders(value: Any) -> list[Any]:
    """Return the dicts and lists of a module and of what is inside."""
    found: list[Any] = [value]
    if isinstance(value, MLXModule):
        found.append(vars(value))
    for each in dict.values(value) if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            found += _holders(each)
    return found


def _has_buffers(structure: Structure) -> bool:
    classes: Any = structure.module_classes()
    return any(fields.kind(field) == "buffer" for cls in classes for field in cls.__frostleaf__.fields.values())


@functools.cache
def running_class(kind: type[Node]) -> Any:
    """Return the class that runs the code of a class of frostleaf."""
    members = {"__native__": kind, "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (Running,), members)


def _write(before: Any, after: Any, live: Any) -> None:
    """Put the arrays that a call recorded in their places."""
    if before is after:
        return
    here, there = one_level(before), one_level(after)
    assert here is not None
    assert there is not None
    entries = before.__frostleaf__.children if isinstance(before, Node) else here[0].entries
    for name, old, new in zip(entries, here[1], there[1], strict=True):
        if isinstance(new, mx.array) and new is not old:
            live[name] = new
        elif new is not old:
            _write(old, new, _inside(live, name))


def _inside(live: Any, name: Any) -> Any:
    own = vars(live) if isinstance(live, MLXModule) else {}
    return own[name] if name in own else live[name] if isinstance(live, list) else dict.__getitem__(live, name)
