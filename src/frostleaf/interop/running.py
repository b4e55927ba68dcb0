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
from ..core.instance import Metadata, children_in_fields, field_values, metadata_of
from ..core.kept import Kept
from ..core.levels import one_level
from ..core.structure import Structure, flat_of, specs_in, unflatten
from ..module import Module
from ..transforms.stateful import stateful
from .checkpointed import WRAPPED
from .freezing import Freezer
from .layout import Layout, Wrapped

# Of a tree, makes a module.
Make = Callable[[Any], Any]


class Running(MLXModule):
    """Holds the arrays of a tree under its names, and calls the tree that they make now."""

    __native__: type[Node]
    _structure: Structure
    _trees: Trees
    _make: Make

    def keep(self, structure: Structure, trees: Trees, make: Make) -> None:
        """Keep what the tree is but for its arrays, what makes trees of it, and what makes a module of another tree."""
        object.__setattr__(self, "_structure", structure)
        object.__setattr__(self, "_trees", trees)
        object.__setattr__(self, "_make", make)

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
                advice = type(self).__native__._instead_of_reading(name)
                if advice is None:
                    raise
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}: {advice}") from None
        return functools.partial(_run, self, name) if inspect.isfunction(found) else getattr(self._trees.of(self), name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        return _empty, (type(self).__native__,), *reduced[2:]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).__native__.__frostleaf__.fields and not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no field {name!r}, and its code would not find it")
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _run(self, "__call__", *args, **kwargs)


def _run(live: Running, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the tree, and put what it records in its places."""
    tree = live._trees.of(live)
    method = getattr(tree, name)
    structure = flat_of(tree).structure
    if not (structure.remember(_has_wrapped) or (tree.training and structure.remember(_has_buffers))):
        return method(*args, **kwargs)
    out, after = stateful(method, *args, **kwargs)
    _write(tree, after, live, live._make)
    return out


class Trees:
    """Makes the tree that a module of MLX stands for. As long as nothing but arrays is another, it is made of those alone.

    Args:
        class_for: Returns the class of a layout.
        template: The module of a tree that it stands for, if it does, with anything in the place of arrays.
    """

    def __init__(self, class_for: Callable[[Layout], Any], template: Any = None) -> None:
        self._class_for = class_for
        self._template = template
        self._last: _Made | None = None

    def of(self, live: MLXModule) -> Any:
        """Return the tree of a module as it is now."""
        tree = self._last.next(live) if self._last is not None else None
        if tree is None:
            tree = Freezer(self._class_for, lambda array: array).inside(live, (), self._template)
            self._last = _made(live, tree)
        return tree

    def __deepcopy__(self, memo: dict[int, Any]) -> Trees:
        return Trees(self._class_for, self._template)

    def __reduce__(self) -> Any:
        return Trees, (self._class_for, self._template)


class _Made(NamedTuple):
    """What a module had when a tree was made of it. The module is not among it, which would be alive until it is collected.

    Attributes:
        views: What is in the dicts and lists inside the module.
        rest: What is in it and in these when the tree was made, with ``None`` for arrays and for what made the tree.
        places: Where the leaves of the tree are among it.
        blank: Where these ``None`` are.
        structure: The structure of the tree.
    """

    views: Sequence[Iterable[Any]]
    rest: Sequence[Any]
    places: Sequence[int]
    blank: Sequence[int]
    structure: Structure

    def next(self, live: MLXModule) -> Any:
        """Return the tree of a module as it is now, or ``None`` if more than arrays may be another."""
        values = _values(live, self.views)
        if len(values) != len(self.rest):
            return None
        leaves = [values[place] for place in self.places]
        for place in self.blank:
            values[place] = None
        same = all(map(is_, values, self.rest)) and {*map(type, leaves)} <= {mx.array}
        return unflatten(self.structure, iter(leaves)) if same else None


def _values(live: MLXModule, views: Sequence[Iterable[Any]]) -> list[Any]:
    return [*dict.values(live), *vars(live).values(), *chain.from_iterable(views)]


def _made(live: MLXModule, tree: Any) -> _Made | None:
    flat = flat_of(tree)
    views = [dict.values(each) if isinstance(each, dict) else each for each in _holders(live)[2:]]
    values = _values(live, views)
    arrays = [(id(value), place) for place, value in enumerate(values) if type(value) is mx.array]
    places = dict(arrays)
    if {*places} != {*map(id, flat.leaves)} or len(arrays) > len(places) or len(places) < len(flat.leaves):
        return None  # some are tied, or in no tree
    if flat.structure.remember(_has_objects):
        return None  # which may change in place
    found = [places[id(leaf)] for leaf in flat.leaves]
    blank = [*found, *[place for place, value in enumerate(values) if type(value) is Trees]]
    for place in blank:
        values[place] = None
    return _Made(views, values, found, blank, flat.structure)


def _holders(value: Any) -> list[Any]:
    """Return the dicts and lists of a module and of what is inside."""
    found: list[Any] = [value]
    if isinstance(value, MLXModule):
        found.append(vars(value))
    for each in dict.values(value) if isinstance(value, dict) else value:
        if issubclass(type(each), dict | list):
            found += _holders(each)
    return found


def _has_objects(structure: Structure) -> bool:
    metadata = [spec[1] for _, spec in specs_in(structure) if type(spec) is tuple and type(spec[1]) is Metadata]
    return any(type(value) is Kept for each in metadata for value in each.static.values())


def _has_wrapped(structure: Structure) -> bool:
    classes: Any = structure.module_classes()
    return any(issubclass(cls, Wrapped) for cls in classes)


def _has_buffers(structure: Structure) -> bool:
    classes: Any = structure.module_classes()
    return any(fields.kind(field) == "buffer" for cls in classes for field in cls.__frostleaf__.fields.values())


@functools.cache
def running_class(kind: type[Node]) -> Any:
    """Return the class that runs the code of a class of frostleaf."""
    members = {"__native__": kind, "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    own = {name: member for name, member in _OF_A_DICT.items() if getattr(kind, name, None) is not getattr(Module, name, None)}
    if own:
        own["__contains__"] = _has
    return type(kind.__name__, (Running,), members | own)


def _empty(kind: Any) -> Any:
    """Return a module that runs the code of a class, before there is anything in it."""
    return dict.__new__(running_class(kind))


def _item(live: Running, key: Any) -> Any:
    """Return what MLX looks for by its name, or an item of the tree."""
    return dict.__getitem__(live, key) if _is_name(live, key) else _run(live, "__getitem__", key)


def _has(live: Running, key: Any) -> bool:
    return _is_name(live, key) or key in live._trees.of(live)


def _is_name(live: Running, key: Any) -> bool:
    return isinstance(key, str) and dict.__contains__(live, key)


def _runs(name: str) -> Any:
    return lambda live: _run(live, name)


# What a module of MLX has as a dict, where the class of the tree has it too.
_OF_A_DICT: dict[str, Any] = {
    "__contains__": _has, "__getitem__": _item, **{name: _runs(name) for name in ("__iter__", "__len__", "__reversed__")},
}  # fmt: skip


def _write(before: Any, after: Any, live: Any, make: Make) -> None:
    """Put what a call recorded in its places."""
    if before is after:
        return
    if isinstance(after, Wrapped) and not _differ_only_inside(before, after):
        _become(live, make(after), before, after)
        return
    here, there = one_level(before), one_level(after)
    assert here is not None
    assert there is not None
    entries = before.__frostleaf__.children if isinstance(before, Node) else here[0].entries
    for name, old, new in zip(entries, here[1], there[1], strict=True):
        if isinstance(new, mx.array) and new is not old:
            live[name] = new
        elif new is not old:
            _write(old, new, _inside(live, name), make)


def _inside(live: Any, name: Any) -> Any:
    if name == WRAPPED:
        return live
    own = vars(live) if isinstance(live, MLXModule) else {}
    return own[name] if name in own else live[name] if isinstance(live, list) else dict.__getitem__(live, name)


def _differ_only_inside(before: Any, after: Any) -> bool:
    """Return whether two modules differ in nothing but the arrays in them and what modules in them have."""
    if type(before) is not type(after) or metadata_of(before) != metadata_of(after):
        return False
    return all(map(_fits, children_in_fields(before), children_in_fields(after)))


def _fits(old: Any, new: Any) -> bool:
    """Return whether what stood for one value can stand for another, with other arrays and attributes."""
    if isinstance(old, Wrapped) and isinstance(new, Wrapped):
        return type(old).__mlx__ is type(new).__mlx__
    here, there = one_level(old), one_level(new)
    if here is None or there is None or isinstance(old, Node):
        return here is there is None or type(old) is type(new)
    return type(old) is type(new) and here[0].entries == there[0].entries and all(map(_fits, here[1], there[1]))


def _become(live: Any, made: Any, before: Any, after: Any) -> None:
    """Make a module what another is, with its own parts where they are as they were."""
    old, new = field_values(before), field_values(after)
    parts = {name: dict.get(live, name) for name, value in new.items() if old.get(name) is value}
    for holder, other in ((live, made), (vars(live), vars(made))):
        dict.clear(holder)
        dict.update(holder, {name: parts.get(name, value) for name, value in dict.items(other)})
