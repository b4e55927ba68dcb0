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
from ..core.instance import level_of
from ..core.levels import one_level
from ..core.structure import Structure, unflatten
from ..core.words import Path, keystr
from ..transforms.stateful import stateful
from .freezing import Freezer
from .layout import Layout, Wrapped
from .twins import mlx_class

CHANGED = "{cls} has no {name!r} any more, so that its code can't run. Put an array or a module there"


class Running(MLXModule):
    """Holds the arrays of a tree under its names, and calls the tree that they make now."""

    __native__: type[Node]
    _structure: Structure
    _class_for: Callable[[Layout], Any]

    def keep(self, structure: Structure, class_for: Callable[[Layout], Any]) -> None:
        """Keep what the tree is but for its arrays, and what makes trees of other modules."""
        object.__setattr__(self, "_structure", structure)
        object.__setattr__(self, "_class_for", class_for)

    def __frozen__(self, freezer: Freezer, path: Path) -> Any:
        """Return the tree, with the leaves of a freezer, in which it is at a path."""
        structure = self._structure
        template = unflatten(structure.spec, iter([mx.array] * structure.num_leaves))
        return _frozen(template, self, freezer, path, type(self).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tree = self.__frozen__(Freezer(self._class_for, lambda array: array), ())
        if not (tree.training and any(map(_has_buffers, self._structure.module_classes()))):
            return tree(*args, **kwargs)
        out, after = stateful(tree, *args, **kwargs)
        _write(tree, after, self)
        return out


def _has_buffers(kind: Any) -> bool:
    return any(fields.kind(field) == "buffer" for field in kind.__frostleaf__.fields.values())


@functools.cache
def running_class(kind: type[Node]) -> Any:
    """Return the class that runs the code of a class of frostleaf."""
    members = {"__native__": kind, "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (Running,), members)


def _frozen(template: Any, live: Any, freezer: Freezer, path: Path, owner: str) -> Any:
    """Return what a live value is in a tree in which ``template`` stands at its place."""

    def inside(name: Any, template: Any) -> Any:
        return _frozen(template, _part(live, name, owner), freezer, (*path, name), owner)

    if template is mx.array:
        return freezer.array(live, path)
    if isinstance(template, Node):
        kind: Any = type(template)
        if isinstance(template, Wrapped) or type(live) not in (mlx_class(kind), running_class(kind)):
            return freezer.node(live, path)  # a layer of another kind may have taken its place, such as a quantized one
        metadata, children = level_of(template)
        definition, own = template.__frostleaf__, vars(live)
        new = [
            child if child is None else inside(name, child)
            for name, child in zip(definition.children, children, strict=True)
        ]
        frozen = frozenset([name for name in own["_no_grad"] if name.split(".")[0] in definition.parameters])
        return definition.assemble(metadata.evolve(bool(own["_training"]), frozen), new)
    if type(template) is tuple:
        return tuple([inside(at, each) for at, each in enumerate(template)])
    if type(template) is MappingProxyType:
        return MappingProxyType({key: inside(key, each) for key, each in template.items()})
    return template


def _part(live: Any, name: Any, owner: str) -> Any:
    try:
        return dict.__getitem__(live, name) if isinstance(live, dict) else live[name]
    except (KeyError, IndexError):
        found = vars(live).get(name, live) if isinstance(live, MLXModule) else live
        if found is live:
            raise ValueError(CHANGED.format(cls=owner, name=keystr((name,)))) from None
        return found


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
            _write(old, new, _part(live, name, type(live).__name__))
