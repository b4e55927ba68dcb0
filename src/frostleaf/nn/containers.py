"""Layers made of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..core.words import describe
from ..module import Module

# Not their subclasses, which may be callable: MLX's modules are dicts.
_CONTAINERS: tuple[type, ...] = (list, tuple, dict)


class Sequential(Module):
    r"""Call each layer with the output of the one before it: :math:`y = f_n(\dots f_2(f_1(x)))`.

    Args:
        *modules: Modules, or other callables of one argument. They become the field ``layers``, a tuple.

    Shapes:
        Input as the first layer takes it, output as the last returns it; without layers the output is the input. The
        parameters are those of the layers.

    Raises:
        TypeError: If modules are given in a list, or another container.
        ValueError: In a call, if an input does not fit its layer.

    >>> import frostleaf as fl, mlx.core as mx
    >>> model = fl.nn.Sequential(fl.nn.Linear(3, 2), fl.nn.relu)
    >>> model(mx.ones((5, 3))).shape, fl.tree.paths(model)
    ((5, 2), ['layers.0.weight', 'layers.0.bias'])
    """

    layers: tuple[Callable[[Any], Any], ...]

    def __init__(self, *modules: Callable[[Any], Any]) -> None:
        for each in modules:
            if type(each) in _CONTAINERS or (isinstance(each, Iterator) and not callable(each)):
                given = f"was given {describe(each)}: write Sequential(*layers)"
                raise TypeError(f"Sequential takes its modules one by one, and {given}")
        self.layers = modules

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x
