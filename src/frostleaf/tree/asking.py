"""Functions that ask for instances of a class of MLX, of which no layer of a wrapped model is one."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from mlx.nn.layers.base import Module as MLXModule

from ..core.definition import Node
from ..core.words import describe, level_of_caller
from .walk import nodes_in

IN_VAIN = (
    "{fn} selects nothing, and asks for instances of {cls}, a class of MLX. No layer of a wrapped model is one, though some "
    "stand for one. Write model.at({cls}), or issubclass(layer.__mlx__, {cls})"
)


def warn_if_asked_in_vain(function: Any, tree: Any) -> None:
    """Warn of a function that selected no layer, and asks for a class of MLX that layers of a tree stand for."""
    if not _asks(function):
        return
    kinds = {type(node).__mlx__ for node in nodes_in(tree) if hasattr(type(node), "__mlx__")}
    for cls in asked_for(function, kinds):
        warnings.warn(IN_VAIN.format(fn=describe(function), cls=cls), UserWarning, stacklevel=level_of_caller())
        return


def asked_for(function: Any, kinds: Iterable[type]) -> list[str]:
    """Return the names of the classes that a function asks for with ``isinstance``, and of which one of some kinds is."""
    if not _asks(function):
        return []
    known = inspect.getclosurevars(function)
    values = [*known.nonlocals.values(), *known.globals.values()]
    for value in values:
        if type(value) is ModuleType:  # whose own modules come after
            found = [getattr(value, name, None) for name in function.__code__.co_names]
            values += [each for each in found if not any(each is value for value in values)]
    classes = [each for value in values for each in _modules_among(value)]
    return [each.__name__ for each in classes if any(issubclass(kind, each) for kind in kinds)]


def _asks(function: Any) -> bool:
    return type(function) is FunctionType and isinstance.__name__ in function.__code__.co_names


def _modules_among(value: Any) -> Iterator[type]:
    if isinstance(value, type) and issubclass(value, MLXModule | Node):
        yield value
    elif type(value) is tuple:  # as isinstance takes them
        for each in value:
            yield from _modules_among(each)
