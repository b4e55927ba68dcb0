"""Making a mutable module of ``mlx.nn`` of a tree."""

from __future__ import annotations

from typing import Any

from mlx.nn.layers.base import Module as MLXModule

from ..core.definition import Node
from ..core.leaves import require_seen
from ..core.structure import flat_of, require_numbers
from ..core.words import describe
from .live import module_of
from .surface import class_for

NO_TREE = "fl.to_mlx takes a module, and was given {given}"


def to_mlx(module: Node) -> Any:
    """Make an ordinary module of ``mlx.nn`` of a tree. It may be changed; neither sees what is done to the other.

    What :func:`frostleaf.from_mlx` made has its class again, layers of ``frostleaf.nn`` become their twins, and a module of
    another class one that holds its arrays under the same names and runs its ``__call__``. The arrays have the same memory.
    Tied ones are the same object, and so are modules that are tied as a whole.

    Args:
        module: The tree.

    Raises:
        TypeError: If it is something else, or a packed model, or holds shapes in the place of arrays.

    >>> import frostleaf as fl, mlx.core as mx, mlx.nn as nn
    >>> fl.to_mlx(fl.nn.Sequential(fl.nn.Linear(2, 3), fl.nn.ReLU()))
    Sequential(
      (layers.0): Linear(input_dims=2, output_dims=3, bias=True)
      (layers.1): ReLU()
    )
    """
    if not isinstance(module, Node):
        is_there = isinstance(module, MLXModule)
        given = f"a {type(module).__name__}, which is of mlx.nn already" if is_there else describe(module)
        raise TypeError(NO_TREE.format(given=given))
    require_seen("fl.to_mlx", module)
    require_numbers(flat_of(module))
    return module_of(module, class_for)
