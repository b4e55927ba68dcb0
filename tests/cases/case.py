"""One way to build a layer and to call it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx


class Case(NamedTuple):
    """A layer, by a function of ``mlx.nn`` or ``frostleaf.nn``, and what it is called with.

    A tuple of ints among the inputs is the shape of an array to be drawn in the dtype at hand. Anything else is passed as it
    is: an array (indices, a boolean mask), ``None``, a number.
    """

    make: Callable[[Any], Any]
    inputs: tuple[Any, ...]

    def drawn(self, dtype: mx.Dtype, seed: int = 7) -> list[Any]:
        """Return the inputs, with arrays for the shapes."""
        keys = mx.random.split(mx.random.key(seed), max(1, len(self.inputs)))
        return [
            mx.random.normal(each, key=key).astype(dtype) if _is_shape(each) else each
            for each, key in zip(self.inputs, keys, strict=False)
        ]

    def positions(self) -> list[int]:
        """Return which inputs are drawn: those that have a gradient."""
        return [position for position, each in enumerate(self.inputs) if _is_shape(each)]


def case(make: Callable[[Any], Any], *inputs: Any) -> Case:
    return Case(make, inputs)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(each) is int for each in value)


def in_eval_mode(module: Any) -> Any:
    return module.eval() or module
