"""Making a mutable module of ``mlx.nn`` of a tree."""

from __future__ import annotations

from typing import Any

from mlx.nn.layers.base import Module as MLXModule

from ..core.structure import flat_of
from ..core.words import describe
from .layout import Wrapped
from .live import Live

NO_TREE = "fl.to_mlx takes a tree that fl.from_mlx made, and was given {given}"


def to_mlx(tree: Any) -> MLXModule:
    """Make an ordinary module of ``mlx.nn`` of a tree that :func:`frostleaf.from_mlx` made.

    It has the same class, arrays of the same memory, and the same of everything else, and may be changed: neither sees what is
    done to the other.

    Args:
        tree: The tree.

    Raises:
        TypeError: If it is something else.

    >>> import frostleaf as fl, mlx.core as mx, mlx.nn as nn
    >>> model = fl.from_mlx(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    >>> fl.to_mlx(model)
    Sequential(
      (layers.0): Linear(input_dims=2, output_dims=3, bias=True)
      (layers.1): ReLU()
    )
    """
    if not isinstance(tree, Wrapped):
        raise TypeError(NO_TREE.format(given=describe(tree)))
    flat = flat_of(tree)
    live = Live(flat.structure)
    live.fill(flat.leaves, tree)
    return live.root
