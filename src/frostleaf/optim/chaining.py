"""An optimizer whose gradients go through functions first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx

from ..module import Module
from ..tree.compare import describe
from .optimizer import Optimizer, require_optimizer
from .parameters import Parameters

NOT_A_FUNCTION = "chain takes functions of the gradients and then an optimizer; argument {number} is {given}"
OTHER_GRADIENTS = (
    "function {number} of the chain must return a dict with a gradient of the same shape for each that it is given, and did "
    "not do so for {names}"
)

Transform = Callable[[Mapping[str, mx.array]], Mapping[str, mx.array]]


class Chain(Optimizer):
    """An optimizer whose gradients go through functions first, as made by :func:`chain`."""

    transforms: tuple[Any, ...]
    optimizer: Optimizer

    __state__ = Module

    def __init__(self, transforms: tuple[Any, ...], optimizer: Optimizer) -> None:
        self.transforms, self.optimizer = transforms, optimizer

    def _init(self, parameters: Parameters) -> Any:
        return self.optimizer._init(parameters)

    def _update(self, parameters: Parameters, gradients: Mapping[str, mx.array], state: Any) -> tuple[dict[str, mx.array], Any]:
        for number, transform in enumerate(self.transforms, 1):
            new = transform(dict(gradients))
            new = new if isinstance(new, Mapping) else {}
            found = [name for name in {**gradients, **new} if _shape(gradients, name) != _shape(new, name)]
            if found:
                raise ValueError(OTHER_GRADIENTS.format(number=number, names=", ".join(map(repr, found[:6]))))
            gradients = {name: new[name].astype(array.dtype) for name, array in gradients.items()}
        return self.optimizer._update(parameters, gradients, state)

    def _differences(self, parameters: Parameters, state: Any) -> Iterator[str]:
        return self.optimizer._differences(parameters, state)

    def _adapt(self, state: Any, parameters: Parameters) -> Any:
        return self.optimizer._adapt(state, parameters)

    def _learning_rate(self, state: Any) -> mx.array:
        return self.optimizer._learning_rate(state)

    def _require_state(self, state: Any, method: str) -> None:
        self.optimizer._require_state(state, method)


def chain(*parts: Any) -> Chain:
    """Return an optimizer whose gradients go through functions first, one after the other.

    Its state is that of the optimizer.

    Args:
        *parts: Functions, then an optimizer. A function takes a dict from dotted paths to gradients and returns such a dict,
            which is cast to the dtypes of the first; :func:`clip_by_global_norm` and :func:`clip_by_value` make such functions.

    Raises:
        TypeError: If the last is not an optimizer, or one of the others can't be called.
        ValueError: In an update, if a function returns other names or shapes.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt = fl.optim.chain(lambda grads: fl.tree.map(mx.sign, grads), fl.optim.SGD(1.0))
    >>> w = mx.array([0.0, 0.0])
    >>> opt.update(w, mx.array([3.0, -4.0]), opt.init(w))[0]
    array([-1, 1], dtype=float32)
    """
    require_optimizer(parts[-1] if parts else None, "chain, as the last of its arguments,")
    *transforms, optimizer = parts
    for number, transform in enumerate(transforms, 1):
        if not callable(transform) or isinstance(transform, Optimizer):
            raise TypeError(NOT_A_FUNCTION.format(number=number, given=describe(transform)))
    return Chain(tuple(transforms), optimizer)


def _shape(gradients: Mapping[str, mx.array], name: str) -> Any:
    return getattr(gradients.get(name), "shape", None)
