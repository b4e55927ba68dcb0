"""Modules of ``mlx.nn`` that run the code of a class of frostleaf."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module as MLXModule

from ..core import fields
from ..core.definition import Node
from ..core.instance import field_values, level_of, metadata_of
from ..core.levels import one_level
from ..core.structure import Structure, unflatten
from ..core.words import keystr
from ..transforms.stateful import stateful
from .freezing import Freezer
from .layout import Wrapped
from .surface import class_for
from .twins import mlx_class

CHANGED = "{cls} has no {name!r} any more, so that its code can't run. Put an array or a module there"


class Running(MLXModule):
    """Holds the arrays of a tree under its names, and calls the tree that they make now."""

    __native__: type[Node]
    _structure: Structure
    _make: Callable[[Any], Any]

    def keep(self, structure: Structure, make: Callable[[Any], Any]) -> None:
        """Keep what the tree is but for its arrays, and what makes a module of another tree."""
        object.__setattr__(self, "_structure", structure)
        object.__setattr__(self, "_make", make)

    def __frozen__(self, freezer: Freezer) -> Any:
        """Return the tree, with the leaves of a freezer."""
        structure = self._structure
        template = unflatten(structure.spec, iter([mx.array] * structure.num_leaves))
        return _frozen(template, self, freezer, type(self).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tree = self.__frozen__(Freezer(class_for, lambda array: array))
        kinds = self._structure.module_classes()
        if any(issubclass(kind, Wrapped) for kind in kinds) or (tree.training and any(map(_has_buffers, kinds))):
            out, after = stateful(tree, *args, **kwargs)
            _write(tree, after, self, self._make)
            return out
        return tree(*args, **kwargs)


def _has_buffers(kind: Any) -> bool:
    return any(fields.kind(field) == "buffer" for field in kind.__frostleaf__.fields.values())


@functools.cache
def running_class(kind: type[Node]) -> Any:
    """Return the class that runs the code of a class of frostleaf."""
    members = {"__native__": kind, "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (Running,), members)


def _frozen(template: Any, live: Any, freezer: Freezer, owner: str) -> Any:
    """Return what a live value is in a tree in which ``template`` stands at its place."""
    if template is mx.array:
        return freezer.leaf(live)
    if isinstance(template, Node):
        kind: Any = type(template)
        if isinstance(template, Wrapped) or type(live) not in (mlx_class(kind), running_class(kind)):
            return freezer.tree(live)  # a layer of another kind may have taken its place, such as a quantized one
        metadata, children = level_of(template)
        definition, own = template.__frostleaf__, vars(live)
        new = [
            child if child is None else _frozen(child, _part(live, name, owner), freezer, owner)
            for name, child in zip(definition.children, children, strict=True)
        ]
        frozen = frozenset([name for name in own["_no_grad"] if name.split(".")[0] in definition.parameters])
        return definition.assemble(metadata.evolve(bool(own["_training"]), frozen), new)
    if type(template) is tuple:
        return tuple([_frozen(each, _part(live, at, owner), freezer, owner) for at, each in enumerate(template)])
    if type(template) is MappingProxyType:
        return MappingProxyType({key: _frozen(each, _part(live, key, owner), freezer, owner) for key, each in template.items()})
    return template


def _part(live: Any, name: Any, owner: str) -> Any:
    try:
        return dict.__getitem__(live, name) if isinstance(live, dict) else live[name]
    except (KeyError, IndexError):
        found = vars(live).get(name, live) if isinstance(live, MLXModule) else live
        if found is live:
            raise ValueError(CHANGED.format(cls=owner, name=keystr((name,)))) from None
        return found


def _write(before: Any, after: Any, live: Any, make: Callable[[Any], Any]) -> None:
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
            _write(old, new, _part(live, name, type(live).__name__), make)


def _differ_only_inside(before: Any, after: Any) -> bool:
    """Return whether two modules differ in nothing but their arrays and modules."""
    return type(before) is type(after) and metadata_of(before) == metadata_of(after)


def _become(live: Any, made: Any, before: Any, after: Any) -> None:
    """Make a module what another is, with its own parts where they are as they were."""
    old, new = field_values(before), field_values(after)
    parts = {name: dict.get(live, name) for name, value in new.items() if old.get(name) is value}
    for holder, other in ((live, made), (vars(live), vars(made))):
        dict.clear(holder)
        dict.update(holder, {name: parts.get(name, value) for name, value in dict.items(other)})
