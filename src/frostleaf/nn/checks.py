"""What the layers check alike: the arguments they are built with, and the inputs they are called with."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

import attrs
import mlx.core as mx

from ..core.shapes import LEAF, ShapeDtypeStruct
from ..core.structure import flat_of
from ..core.words import describe, listed, with_article
from ..module import Module

REAL = (float, int, Real)  # most numbers are of the first two, which are found faster


class MisfitError(ValueError):
    """Say that a layer can't take its input; a model around it catches this and adds what it was called with itself.

    >>> import frostleaf as fl, mlx.core as mx
    >>> try:
    ...     fl.nn.Linear(2, 3)(mx.ones(5))
    ... except fl.nn.MisfitError as error:
    ...     print(error)
    Linear takes an input of shape [..., 2], and was given f32[5]. The layer is Linear(weight=f32[3,2], bias=f32[3])
    """


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
        raise ValueError(f"{type(layer).__name__} takes {kind} as {name}, and was given {describe(value)}")
    return number


def sizes(layer: Module, name: str, value: Any, count: int) -> Any:
    """Return ``value`` as a tuple of ``count`` ints; a single int is repeated.

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
        cls = type(layer).__name__
        raise ValueError(f"{cls} takes an int, or {count} of them in a tuple, as {name}, and was given {describe(value)}")
    return values


def positive(layer: Module, field: attrs.Attribute[Any], value: Any) -> None:
    """Validate that a field's number, or each in a tuple of numbers, is > 0."""
    if not (all(map(_is_positive, value)) if isinstance(value, tuple) else _is_positive(value)):
        raise ValueError(f"{type(layer).__name__} takes {field.name} > 0, and was given {describe(value)}")


def _is_positive(value: Any) -> bool:
    return isinstance(value, REAL) and value > 0  # type: ignore[operator]


def number(layer: Module, field: attrs.Attribute[Any], value: Any) -> None:
    """Validate that a field's value is a number."""
    if not isinstance(value, REAL):
        raise ValueError(f"{type(layer).__name__} takes a number as {field.name}, and was given {describe(value)}")


def require_callable(layer: Module, name: str, value: Any) -> Any:
    """Return ``value``, if it can be called.

    Raises:
        TypeError: If it can't.
    """
    if not callable(value):
        raise TypeError(f"{type(layer).__name__} takes a function or a module as {name}, and was given {describe(value)}")
    return value


def lookup(layer: Module, weight: mx.array, x: Any) -> mx.array:
    """Return the rows of a layer's weight at the indices ``x``.

    Raises:
        MisfitError: If MLX does not take ``x`` as indices.
    """
    try:
        return weight[x]
    except ValueError as error:
        given = f"{describe(x)}{because(error)}. The layer is {layer!r}"
        raise MisfitError(f"{type(layer).__name__} takes integers, an array of them or one, and was given {given}") from error


ONLY_SHAPES = (
    "{name} has shapes without values in the place of arrays. Build the model, load its weights, or write "
    "fl.eval_shape(model, ...) for shapes of the result. The layer is {layer}"
)


def misfit(layer: Module, shape: str, x: Any, error: Exception | None = None) -> MisfitError:
    """Return the error for an input ``x`` that is not of the shape that the layer takes, with MLX's reason if there is one.

    >>> import frostleaf as fl, mlx.core as mx
    >>> print(misfit(fl.nn.Linear(2, 3), "[..., 2]", mx.ones((4, 5))))
    Linear takes an input of shape [..., 2], and was given f32[4,5]. The layer is Linear(weight=f32[3,2], bias=f32[3])
    """
    if not isinstance(x, LEAF):
        return MisfitError(
            f"{type(layer).__name__} takes an array of MLX, and was given {with_article(type(x).__name__)}: give mx.array(...)"
        )
    given = f"{describe(x)}{because(error)}. The layer is {layer!r}"
    if any(isinstance(leaf, ShapeDtypeStruct) for leaf in flat_of(layer).leaves):
        return MisfitError(ONLY_SHAPES.format(name=type(layer).__name__, layer=repr(layer)))
    return MisfitError(f"{type(layer).__name__} takes an input of shape {shape}, and was given {given}")


def model_misfit(model: Module, inputs: Iterable[Any], error: MisfitError) -> MisfitError:
    """Return the error for a model in which a layer can't take its input: the model's inputs, and that layer's error."""
    given = listed(map(describe, inputs))
    return MisfitError(f"{type(model).__name__} was called with {given}. In it, {error}")


def because(error: Exception | None) -> str:
    """Return the reason in an error as the end of a message, without the signatures that MLX may list below it."""
    return "" if error is None else f": {str(error).partition(chr(10))[0].rstrip('.')}"
