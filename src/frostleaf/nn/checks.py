"""What the layers check in common: the sizes they are built with, and the shape they are called with."""

from __future__ import annotations

import operator
from typing import Any

from ..module import Module
from ..tree.compare import describe

NOT_A_SIZE = "{cls} takes a positive int as {name}, and was given {value!r}"
NOT_SIZES = "{name} is an int or {count} of them in a tuple, and was given as {value!r}"
MISFIT = "{cls} takes an input of shape {shape}, and was given {x}. The layer is {layer!r}"


def size(layer: Module, name: str, value: Any) -> int:
    """Return ``value`` as an int, for the argument ``name`` of a layer.

    Raises:
        ValueError: If it is not a positive int.

    >>> import frostleaf as fl
    >>> size(fl.nn.Linear(2, 3), "input_dims", 2)
    2
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number <= 0:
        raise ValueError(NOT_A_SIZE.format(cls=type(layer).__name__, name=name, value=value))
    return number


def sizes(name: str, value: Any, count: int) -> Any:
    """Return ``value`` as a tuple of ``count`` ints, for which one int stands for all of them.

    Raises:
        ValueError: If it is neither an int nor a tuple or list of ``count`` ints.

    >>> sizes("stride", 2, 3), sizes("stride", [1, 2], 2)
    ((2, 2, 2), (1, 2))
    """
    values = value if isinstance(value, tuple | list) else (value,) * count
    try:
        values = tuple(map(operator.index, values))
    except TypeError:
        values = ()
    if len(values) != count:
        raise ValueError(NOT_SIZES.format(name=name, count=count, value=value))
    return values


def misfit(layer: Module, shape: str, x: Any) -> ValueError:
    """Return the error for an input ``x`` that is not of the shape that the layer takes.

    >>> import frostleaf as fl, mlx.core as mx
    >>> print(misfit(fl.nn.Linear(2, 3), "[..., 2]", mx.ones((4, 5))))
    Linear takes an input of shape [..., 2], and was given f32[4,5]. The layer is Linear(weight=f32[3,2], bias=f32[3])
    """
    return ValueError(MISFIT.format(cls=type(layer).__name__, shape=shape, x=describe(x), layer=layer))
