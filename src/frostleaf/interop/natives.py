"""Making native modules again of the modules of MLX that stood for them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module as MLXModule

from ..core.construction import evolve
from ..core.definition import Node
from ..core.instance import Metadata, level_of
from ..core.words import Path
from .checkpointed import KEPT, held, plain_class
from .layout import Wrapped, is_module
from .twins import mlx_class, static_of_twin

CHANGED = "{cls} has no {name!r} any more, so that its code can't run. Put an array or a module there"
_OWN = {"_no_grad", "_training", KEPT}
_MISSING = object()


class Freezer(Protocol):
    """Makes trees of modules and leaves of arrays that are at a path."""

    def array(self, array: mx.array, path: Path) -> mx.array:
        """Return the leaf for an array."""

    def node(self, module: MLXModule, path: Path, template: Any = None) -> Any:
        """Return the tree of a module."""


def native_of(template: Any, live: Any, freezer: Freezer, path: Path) -> Any:
    """Return the native module that ``live`` stands for, without its ties, or ``None`` if it has become another.

    Args:
        template: The native module that it stood for, with anything in the place of arrays.
        live: The module of MLX: of the twin's class, or one that runs the code of the native class.
        freezer: Makes leaves and trees of what is inside.
        path: Where it is.
    """
    kind: Any = type(template)
    runs = getattr(type(live), "__native__", None) is kind
    if isinstance(template, Wrapped) or not (runs or (plain_class(live) is mlx_class(kind) and _is_set_as(template, live))):
        return None
    metadata, children = level_of(template)
    definition, own, new = template.__frostleaf__, vars(live), []
    for name, child in zip(definition.children, children, strict=True):
        value = dict.get(live, name, own.get(name, _MISSING))
        if value is _MISSING:
            if runs:
                raise ValueError(CHANGED.format(cls=kind.__name__, name=name))
            value = None
        new.append(_again(child, value, freezer, (*path, name)))
    frozen = frozenset([name for name in own["_no_grad"] if name.split(".")[0] in definition.parameters])
    untied = Metadata(metadata.static, metadata.training, metadata.frozen, (), metadata.shards) if metadata.ties else metadata
    node = definition.assemble(untied.evolve(bool(own["_training"]), frozen), new)
    if runs:
        set_now = {name: own.get(name, value) for name, value in metadata.static.items()}
        node = evolve(node, {name: value for name, value in set_now.items() if not _equal(value, metadata.static[name])})
    return node


def _is_set_as(template: Any, live: Any) -> bool:
    """Return whether a twin has the static values of its native layer, and no names of other things."""
    expected = static_of_twin(template)
    found = {**live, **{name: value for name, value in vars(live).items() if name not in _OWN}}
    if not {*found} <= {*expected, *template.__frostleaf__.children}:
        return False
    return all(name in found and _equal(found[name], value) for name, value in expected.items())


def _equal(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))


def _again(template: Any, live: Any, freezer: Freezer, path: Path) -> Any:
    """Return what a live value is in a tree in which ``template`` stood at its place."""
    if type(live) is mx.array:
        return freezer.array(live, path)
    if is_module(live):
        stood = template if held(template) is None else held(template)
        return freezer.node(live, path, stood if isinstance(stood, Node) else None)
    if isinstance(live, list | tuple):
        known = template if isinstance(template, tuple) and len(template) == len(live) else (None,) * len(live)
        inside = [_again(known[at], each, freezer, (*path, at)) for at, each in enumerate(live)]
        return type(template)(*inside) if hasattr(template, "_fields") else tuple(inside)
    if isinstance(live, dict):
        below = template if isinstance(template, Mapping) else {}
        return MappingProxyType({key: _again(below.get(key), each, freezer, (*path, key)) for key, each in live.items()})
    return live
