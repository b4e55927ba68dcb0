"""What the layers check in common: the sizes they are built with, and the shape they are called with."""

from __future__ import annotations

from typing import Any

from ..module import Module
from ..tree.compare import describe

NOT_SIZES = "{name} is an int or {count} of them in a tuple, and was given as {value!r}"
MISFIT = "{cls} takes an input of shape {shape}, and was given {x}. The layer is {layer!r}"


def sizes(name: str, value: Any, count: int) -> Any:
    """Return ``value`` as a tuple of ``count`` ints, for which one int stands for all of them.

    Raises:
        ValueError: If it is neither an int nor a tuple or list of ``count`` ints.

    >>> sizes("stride", 2, 3), sizes("stride", [1, 2], 2)
    ((2, 2, 2), (1, 2))
    """
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * count
    if len(values) != count or not all(isinstance(each, int) for each in values):
        raise ValueError(NOT_SIZES.format(name=name, count=count, value=value))
    return values


def misfit(layer: Module, shape: str, x: Any) -> ValueError:
    """Return the error for an input ``x`` that is not of the shape that the layer takes.

    >>> import frostleaf as fl, mlx.core as mx
    >>> print(misfit(fl.nn.Linear(2, 3), "[..., 2]", mx.ones((4, 5))))
    Linear takes an input of shape [..., 2], and was given f32[4,5]. The layer is Linear(weight=f32[3,2], bias=f32[3])
    """
    return ValueError(MISFIT.format(cls=type(layer).__name__, shape=shape, x=describe(x), layer=layer))
