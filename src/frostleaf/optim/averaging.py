"""An optimizer that keeps an average of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import mlx.core as mx

from ..core.fields import buffer, static
from ..core.words import describe
from .adapting import carry_over
from .contents import are_of_kinds, renewed
from .optimizer import Optimizer, State, array_differences, require_optimizer
from .parameters import Parameters
from .wrapper import StatefulWrapper

T = TypeVar("T")
HALF = mx.float16, mx.bfloat16


class EMAState(State):
    """What :func:`ema` remembers.

    Attributes:
        inner: The state of the optimizer.
        average: The average of each parameter, by dotted path; for half-precision parameters in float32.

    >>> import frostleaf as fl
    >>> fl.optim.ema(fl.optim.SGD(0.1), 0.99).init(fl.nn.Linear(2, 1)).average["bias"].shape
    (1,)
    """

    inner: Any = buffer()
    average: Mapping[str, mx.array] = buffer(cast=False)


class EMA(StatefulWrapper):
    """An optimizer that keeps an average of the model, as made by :func:`ema`.

    >>> import frostleaf as fl
    >>> fl.optim.ema(fl.optim.SGD(0.1), 0.99).decay
    0.99
    """

    decay: float = static()

    __state__ = EMAState

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        self.optimizer, self.decay = optimizer, decay

    def _averaged(self, parameters: Parameters, state: EMAState) -> Mapping[str, mx.array]:
        return {name: state.average[name].astype(array.dtype) for name, array in parameters.arrays.items()}

    def _init(self, parameters: Parameters) -> EMAState:
        return EMAState(self.optimizer._init(parameters), _precise(parameters.arrays))

    def _update(
        self, parameters: Parameters, gradients: Mapping[str, mx.array], state: EMAState
    ) -> tuple[dict[str, mx.array], EMAState]:
        new, inner = self.optimizer._update(parameters, gradients, state.inner)
        now = _precise(new)
        average = {name: self.decay * old + (1 - self.decay) * now[name] for name, old in state.average.items()}
        return new, renewed(state, inner=inner, average=average)

    def _differences(self, parameters: Parameters, state: EMAState) -> Iterator[str]:
        yield from super()._differences(parameters, state)
        kinds = [(shape, mx.float32 if dtype in HALF else dtype) for shape, dtype in parameters.kinds]
        if not are_of_kinds(state.average, tuple(parameters.arrays), kinds):
            yield from array_differences(_precise(parameters.arrays), state.average, "average")

    def _adapt(self, state: EMAState, parameters: Parameters) -> EMAState:
        inner = self.optimizer._adapt(state.inner, parameters)
        return EMAState(inner, carry_over(_precise(parameters.arrays), state.average, parameters, state))


def ema(opt: Optimizer, decay: float) -> EMA:
    r"""Return an optimizer that keeps an exponential moving average of what it trains.

    .. math:: \bar w_0 = w_0, \qquad \bar w_{t+1} = \beta \bar w_t + (1 - \beta) w_{t+1}

    ``opt.averaged(model, state)`` is the averaged model, which often does better than the model itself. The average moves with
    every update; for one that moves with every step of :func:`accumulate` write ``accumulate(ema(opt, decay), n)``, whose
    ``averaged`` is the same. Polyak and
    Juditsky, `Acceleration of stochastic approximation by averaging <https://doi.org/10.1137/0330046>`_, 1992, for the idea.

    To go on from a state of ``opt`` alone, write ``ema(opt, decay).init(model).replace(inner=state)``.

    Args:
        opt: Any optimizer.
        decay: :math:`\beta`, from 0 to 1, such as ``0.999``.

    Raises:
        TypeError: If ``opt`` is something else.
        ValueError: If ``decay`` is not a number from 0 to 1.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.ema(fl.optim.SGD(1.0), 0.75), mx.array(0.0)
    >>> w, state = opt.update(w, mx.array(-4.0), opt.init(w))
    >>> w, opt.averaged(w, state)
    (array(4, dtype=float32), array(1, dtype=float32))
    """
    require_optimizer(opt, "ema")
    if not isinstance(decay, int | float) or isinstance(decay, bool) or not 0 <= decay <= 1:
        raise ValueError(f"ema takes a decay from 0 to 1, and was given {describe(decay)}")
    return EMA(opt, float(decay))


def _precise(arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return the arrays with those of half precision in float32: in half precision an average soon stands still."""
    return {name: array.astype(mx.float32) if array.dtype in HALF else array for name, array in arrays.items()}
