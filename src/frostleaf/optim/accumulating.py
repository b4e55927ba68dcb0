"""An optimizer that takes a step for several batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from ..fields import buffer, static
from ..module import Module
from .carrying import kept
from .optimizer import Optimizer, Wrapper, require_optimizer, unlike
from .parameters import Parameters
from .selecting import either

NOT_A_COUNT = "accumulate takes the number of batches for each step, 1 or more, and was given {given!r}"


class AccumulateState(Module):
    """What :func:`accumulate` remembers.

    Attributes:
        inner: The state of the optimizer.
        gradients: The sum of the gradients since the last step, by dotted path; for half-precision parameters in float32.
        count: How many there are in it, uint32, shape ().
    """

    inner: Any = buffer()
    gradients: Mapping[str, mx.array] = buffer(cast=False)
    count: mx.array = buffer()


class Accumulate(Wrapper):
    """An optimizer that takes a step for several batches, as made by :func:`accumulate`."""

    n: int = static()

    __state__ = AccumulateState

    def __init__(self, optimizer: Optimizer, n: int) -> None:
        self.optimizer, self.n = optimizer, n

    def _init(self, parameters: Parameters) -> AccumulateState:
        return AccumulateState(self.optimizer._init(parameters), _zeros(parameters), mx.array(0, mx.uint32))

    def _update(
        self, parameters: Parameters, gradients: Mapping[str, mx.array], state: AccumulateState
    ) -> tuple[dict[str, mx.array], AccumulateState]:
        total = {name: array + gradients[name].astype(array.dtype) for name, array in state.gradients.items()}
        count = state.count + 1
        mean = {name: (array / count).astype(gradients[name].dtype) for name, array in total.items()}
        new, inner = self.optimizer._update(parameters, mean, state.inner)
        due = count >= self.n  # there are more if n was larger before
        zeros = {name: mx.zeros_like(array) for name, array in total.items()}
        after = AccumulateState(
            either(due, inner, state.inner), either(due, zeros, total), mx.where(due, mx.zeros_like(count), count)
        )
        return either(due, new, dict(parameters.arrays)), after

    def _differences(self, parameters: Parameters, state: AccumulateState) -> Iterator[str]:
        yield from self.optimizer._differences(parameters, state.inner)
        yield from unlike(_zeros(parameters), state.gradients, "sum of gradients")

    def _adapt(self, state: AccumulateState, parameters: Parameters) -> AccumulateState:
        inner = self.optimizer._adapt(state.inner, parameters)
        return AccumulateState(inner, kept(_zeros(parameters), state.gradients, parameters, state), state.count)


def accumulate(opt: Optimizer, n: int) -> Accumulate:
    r"""Return an optimizer that takes a step for every ``n`` updates, with the mean of their gradients.

    .. math:: g = \frac{1}{n} \sum_{i=1}^{n} g_i

    In between the model stays as it is. For a loss that is a mean over the batch this is what one batch of ``n`` times the size
    does, in the memory of the small one.

    Args:
        opt: Any optimizer.
        n: How many updates make a step.

    Raises:
        TypeError: If ``opt`` is something else.
        ValueError: If ``n`` is not a positive integer.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.accumulate(fl.optim.SGD(1.0), 2), mx.array(0.0)
    >>> w, state = opt.update(w, mx.array(1.0), opt.init(w))
    >>> w, opt.update(w, mx.array(3.0), state)[0]
    (array(0, dtype=float32), array(-2, dtype=float32))
    """
    require_optimizer(opt, "accumulate")
    if type(n) is not int or n < 1:
        raise ValueError(NOT_A_COUNT.format(given=n))
    return Accumulate(opt, n)


def _zeros(parameters: Parameters) -> dict[str, mx.array]:
    return {
        name: mx.zeros(array.shape, mx.result_type(array, mx.array(0.0, mx.float32)))
        for name, array in parameters.arrays.items()
    }
