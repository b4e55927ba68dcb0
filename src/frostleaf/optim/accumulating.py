"""An optimizer that takes a step for several batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from ..core.fields import buffer, static
from ..core.words import describe
from .adapting import carry_over
from .contents import are_of_kinds, renewed
from .optimizer import Optimizer, State, array_differences, require_optimizer
from .parameters import Parameters
from .wrapper import StatefulWrapper, arrays_where, tree_where


class AccumulateState(State):
    """What :func:`accumulate` remembers.

    Attributes:
        inner: The state of the optimizer.
        gradients: The sum of the gradients since the last step, by dotted path; for half-precision parameters in float32.
        count: The number of gradients in the sum, uint32, shape ().

    >>> import frostleaf as fl
    >>> fl.optim.accumulate(fl.optim.SGD(0.1), 4).init(fl.nn.Linear(2, 1)).count
    array(0, dtype=uint32)
    """

    inner: Any = buffer()
    gradients: Mapping[str, mx.array] = buffer(cast=False)
    count: mx.array = buffer()


class Accumulate(StatefulWrapper):
    """An optimizer that takes a step for several batches, as made by :func:`accumulate`.

    >>> import frostleaf as fl
    >>> fl.optim.accumulate(fl.optim.SGD(0.1), 4).n
    4
    """

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
        due = count >= self.n  # the count is above n if n was larger before
        zeros = {name: mx.zeros_like(array) for name, array in total.items()}
        inner, total = tree_where(due, inner, state.inner), arrays_where(due, zeros, total)
        after = renewed(state, inner=inner, gradients=total, count=mx.where(due, mx.zeros_like(count), count))
        return arrays_where(due, new, parameters.arrays), after

    def _differences(self, parameters: Parameters, state: AccumulateState) -> Iterator[str]:
        yield from super()._differences(parameters, state)
        kinds = [(shape, _dtype_of_sum(dtype)) for shape, dtype in parameters.kinds]
        if not are_of_kinds(state.gradients, tuple(parameters.arrays), kinds):
            yield from array_differences(_zeros(parameters), state.gradients, "sum of gradients")

    def _adapt(self, state: AccumulateState, parameters: Parameters) -> AccumulateState:
        inner = self.optimizer._adapt(state.inner, parameters)
        return AccumulateState(inner, carry_over(_zeros(parameters), state.gradients, parameters, state), state.count)


def accumulate(opt: Optimizer, n: int) -> Accumulate:
    r"""Return an optimizer that takes a step for every ``n`` updates, with the mean of their gradients.

    .. math:: g = \frac{1}{n} \sum_{i=1}^{n} g_i

    Between steps the model does not change. If the loss is a mean over the batch, a step is that of one batch ``n`` times as
    large, in the memory of a small one.

    Gradients may be averaged over ranks outside or inside, ``accumulate(chain(average_gradients, opt), n)``: the steps are the
    same up to rounding, and each update exchanges. Inside, the sum in the state is each rank's own: keep that of a whole step.

    To go on from a state of ``opt`` alone, write ``accumulate(opt, n).init(model).replace(inner=state)``.

    Args:
        opt: Any optimizer.
        n: The number of updates in a step.

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
        raise ValueError(f"accumulate takes the number of batches for each step, 1 or more, and was given {describe(n)}")
    return Accumulate(opt, n)


def _zeros(parameters: Parameters) -> dict[str, mx.array]:
    return {name: mx.zeros(array.shape, _dtype_of_sum(array.dtype)) for name, array in parameters.arrays.items()}


@functools.cache
def _dtype_of_sum(dtype: mx.Dtype) -> mx.Dtype:
    return mx.result_type(mx.array(0, dtype), mx.array(0.0, mx.float32))
