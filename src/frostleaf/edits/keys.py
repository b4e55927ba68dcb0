"""A module's arrays and modules by key, as in the dict that a module of MLX is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..core.definition import Node
from ..core.words import describe, nearest


def contains(module: Node, key: object) -> bool:
    """Return whether a field of that name holds an array, a module, or a container. See :meth:`Module.__contains__`."""
    is_child = isinstance(key, str) and key in module.__frostleaf__.children
    return is_child and isinstance(_value(module, key), mx.array | Node | tuple | Mapping)


NO_SUCH_KEY = "{cls} has no array or module {key}{near}"
NOT_IN_THE_DICT = "{cls} has no array or module {key}: it is {value}, which {cls}.{name} returns"


def item(module: Node, key: Any) -> Any:
    """Return what a field holds. See :meth:`Module.__getitem__`."""
    if contains(module, key):
        return _value(module, key)
    cls = type(module).__name__
    definition = module.__frostleaf__
    if isinstance(key, str) and key in definition.fields:
        raise KeyError(NOT_IN_THE_DICT.format(cls=cls, key=describe(key), name=key, value=describe(_value(module, key))))
    there = [name for name in definition.children if contains(module, name)]
    raise KeyError(NO_SUCH_KEY.format(cls=cls, key=describe(key), near=nearest(str(key), there)))


def _value(module: Node, key: Any) -> Any:
    return getattr(module, key, None)  # which a module that is being built need not have yet
