"""What the layers check in common: the arguments they are built with, and the shape they are called with."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

import attrs
import mlx.core as mx

from ..module import Module
from ..tree.compare import describe

NOT_A_SIZE = "{cls} takes {kind} as {name}, and was given {value!r}"
NOT_SIZES = "{cls} takes an int, or {count} of them in a tuple, as {name}, and was given {value!r}"
NOT_A_NUMBER = "{cls} takes a number as {name}, and was given {value!r}"
NOT_POSITIVE = "{cls} takes {name} > 0, and was given {value!r}"
WITHIN = "{cls} was called with {inputs}. In it, {error}"
NOT_INDICES = "{cls} takes integers, an array of them or one, and was given {x}{reason}. The layer is {layer!r}"
NOT_CALLABLE = "{cls} takes a function or a module as {name}, and was given {value!r}"
MISFIT = "{cls} takes an input of shape {shape}, and was given {x}{reason}. The layer is {layer!r}"


class MisfitError(ValueError):
    """The error for an input that a layer can't take, so that a model around it can say what it was called with."""


def size(layer: Module, name: str, value: Any, *, least: int = 1) -> int:
    """Return ``value`` as an int, for the argument ``name`` of a layer.

    Raises:
        ValueError: If it is not an int, or less than ``least``, which is 1 or 0.

    >>> import frostleaf as fl
    >>> size(fl.nn.Linear(2, 3), "input_dims", 2)
    2
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < least:
        kind = "a positive int" if least else "an int of 0 or more"
        raise ValueError(NOT_A_SIZE.format(cls=type(layer).__name__, kind=kind, name=name, value=value))
    return number


def sizes(layer: Module, name: str, value: Any, count: int) -> Any:
    """Return ``value`` as a tuple of ``count`` ints, for which one int stands for all of them.

    Raises:
        ValueError: If it is neither an int nor a tuple or list of ``count`` ints.

    >>> import frostleaf as fl
    >>> sizes(fl.nn.MaxPool2d(2), "stride", 2, 3), sizes(fl.nn.MaxPool2d(2), "stride", [1, 2], 2)
    ((2, 2, 2), (1, 2))
    """
    values = value if isinstance(value, tuple | list) else (value,) * count
    try:
        values = tuple(map(operator.index, values))
    except TypeError:
        values = ()
    if len(values) != count:
        raise ValueError(NOT_SIZES.format(cls=type(layer).__name__, name=name, count=count, value=value))
    return values


def positive(layer: Module, field: attrs.Attribute[Any], value: Any) -> None:
    """Raise the error for a field of a number, or a tuple of numbers, unless all are > 0. A validator, as attrs has them."""
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(each, Real) and each > 0 for each in values):  # type: ignore[operator]
        raise ValueError(NOT_POSITIVE.format(cls=type(layer).__name__, name=field.name, value=value))


def number(layer: Module, field: attrs.Attribute[Any], value: Any) -> None:
    """Raise the error for a field of a number unless it is one. A validator, as attrs has them."""
    if not isinstance(value, Real):
        raise ValueError(NOT_A_NUMBER.format(cls=type(layer).__name__, name=field.name, value=value))


def function(layer: Module, name: str, value: Any) -> Any:
    """Return ``value``, if it can be called.

    Raises:
        TypeError: If it can't.
    """
    if not callable(value):
        raise TypeError(NOT_CALLABLE.format(cls=type(layer).__name__, name=name, value=value))
    return value


def lookup(layer: Module, weight: mx.array, x: Any) -> mx.array:
    """Return the rows of a layer's weight that an input of integers stands for.

    Raises:
        ValueError: If MLX does not take the input as indices.
    """
    try:
        return weight[x]
    except ValueError as error:
        shown = {"x": describe(x), "reason": because(error), "layer": layer}
        raise MisfitError(NOT_INDICES.format(cls=type(layer).__name__, **shown)) from error


def misfit(layer: Module, shape: str, x: Any, error: Exception | None = None) -> MisfitError:
    """Return the error for an input ``x`` that is not of the shape that the layer takes, with what MLX said, if it did.

    >>> import frostleaf as fl, mlx.core as mx
    >>> print(misfit(fl.nn.Linear(2, 3), "[..., 2]", mx.ones((4, 5))))
    Linear takes an input of shape [..., 2], and was given f32[4,5]. The layer is Linear(weight=f32[3,2], bias=f32[3])
    """
    shown = {"shape": shape, "x": describe(x), "reason": because(error), "layer": layer}
    return MisfitError(MISFIT.format(cls=type(layer).__name__, **shown))


def because(error: Exception | None) -> str:
    """Return the end of a message: what an error within said, without the signatures that MLX may list."""
    return "" if error is None else f": {str(error).partition(chr(10))[0].rstrip('.')}"


def within(model: Module, inputs: Iterable[Any], error: MisfitError) -> MisfitError:
    """Return the error for a model in which a layer could not take its input, from that layer's own error."""
    return MisfitError(WITHIN.format(cls=type(model).__name__, inputs=", ".join(map(describe, inputs)), error=error))
