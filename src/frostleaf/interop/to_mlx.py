"""Making a mutable module of ``mlx.nn`` of a tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx.nn.layers.base import Module as MLXModule

from ..core.definition import Node
from ..core.instance import children_in_fields, metadata_of
from ..core.structure import Structure, flat_of, require_numbers
from ..core.words import Path, describe
from .layout import Wrapped, at
from .live import Live, Put, Slot, setter
from .running import Running, running_class
from .twins import frozen_names, has_none, mlx_class, static_of_twin

NO_TREE = "fl.to_mlx takes a module, and was given {given}"


def to_mlx(module: Node) -> Any:
    """Make an ordinary module of ``mlx.nn`` of a tree. It may be changed; neither sees what is done to the other.

    What :func:`frostleaf.from_mlx` made has its class again, layers of ``frostleaf.nn`` become their twins, and a module of
    another class one that holds its arrays under the same names and runs its ``__call__``. The arrays have the same memory.
    Tied ones are the same object, and so are modules that are tied as a whole.

    Args:
        module: The tree.

    Raises:
        TypeError: If it is something else, or holds shapes in the place of arrays.

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
    flat = flat_of(module)
    require_numbers(flat)
    live = _Mutable(flat.structure)
    live.fill(flat.leaves, module)
    for running, path in live.running:
        running.keep(flat_of(at(module, path)).structure, to_mlx)
    return live.root


class _Mutable(Live):
    """A live module in which everything is of ``mlx.nn``."""

    def __init__(self, structure: Structure) -> None:
        self.running: list[tuple[Running, Path]] = []
        super().__init__(structure)

    def _module(self, node: Any, path: Path, tied: bool) -> MLXModule:
        if isinstance(node, Wrapped):
            return super()._module(node, path, tied)
        metadata = metadata_of(node)
        tied = self._note_ties(metadata, path, tied)
        kind: Any = type(node)
        twin = mlx_class(kind)
        made, is_known = self._new(twin or running_class(kind), node, path, tied)
        if is_known:
            return made  # type: ignore[no-any-return]
        if twin is None:
            self.running.append((made, path))
        own = vars(made)
        own["_no_grad"], own["_training"] = frozen_names(node), metadata.training
        for name, value in zip(node.__frostleaf__.children, children_in_fields(node), strict=True):
            if value is None and twin and not has_none(node):
                continue
            is_item = isinstance(value, Slot | Node | tuple | Mapping)
            self._fill_in(setter(made if is_item else own), name, value, path, (name,), {}, tied)
        for name, value in (static_of_twin(node) if twin else metadata.static).items():
            is_item = isinstance(value, list | tuple | dict) and twin
            setter(made if is_item else own)(name, value)
        return made  # type: ignore[no-any-return]

    def _fill_node(self, put: Put, key: Any, value: Any, path: Path, tied: bool) -> None:
        put(key, self._module(value, path, tied))
