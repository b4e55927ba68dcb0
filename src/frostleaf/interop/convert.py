"""Putting native layers in the place of wrapped ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from ..core.instance import Metadata
from ..core.leaves import require_seen
from ..core.sharing import change_modules, remade
from ..core.words import class_name
from ..transforms.shards import Divided
from .layout import Wrapped, is_module
from .twins import native

T = TypeVar("T")

NO_TREE = "fl.convert takes a tree, and was given {given}: give it fl.from_mlx(model)"


def convert(tree: T) -> T:
    """Put layers of ``frostleaf.nn`` in the place of the layers of ``mlx.nn`` in a tree that :func:`frostleaf.from_mlx` made.

    The layers compute the same, bit for bit, and share the arrays. Called by native code they check what they are given, and a
    tree that consists of them is called faster. Layers of other classes stay as they are, those of subclasses too: their code
    runs with the layers inside, and finds there what it finds in MLX: an ``mlx.nn.Linear`` with parameters, to which it may
    assign, and which checks nothing.

    Args:
        tree: Any tree.

    Raises:
        TypeError: If it is a module of ``mlx.nn`` itself, or a packed model.

    >>> import frostleaf as fl, mlx.core as mx, mlx.nn as nn
    >>> model = fl.convert(fl.from_mlx(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.25))))
    >>> model
    Sequential(layers=(Linear(weight=f32[3,2], bias=f32[3]), Dropout(p=0.25)))
    >>> type(model) is fl.nn.Sequential
    True
    """
    if is_module(tree):
        raise TypeError(NO_TREE.format(given=class_name(tree)))
    require_seen("fl.convert", tree)
    return change_modules(tree, _converted)  # type: ignore[no-any-return]


def in_order(tree: T) -> T:
    """Put layers of ``frostleaf.nn`` in the place of those of ``mlx.nn`` of which each rank of a group has a part.

    They know that their arrays are shards, and exchange in the order of the program.
    """
    return change_modules(tree, _sharded)  # type: ignore[no-any-return]


def _sharded(module: Any, metadata: Metadata, children: Sequence[Any]) -> Any:
    module = remade(module, metadata, children)
    twin = native(module) if isinstance(module, Wrapped) else None
    return twin if isinstance(twin, Divided) else module


def _converted(module: Any, metadata: Metadata, children: Sequence[Any]) -> Any:
    module = remade(module, metadata, children)
    twin = native(module) if isinstance(module, Wrapped) else None
    return module if twin is None else twin
