"""Factors for a loss in float16, with which its gradients do not vanish."""

from __future__ import annotations

import math
from typing import TypeVar

import mlx.core as mx

from ..core.fields import buffer, static
from ..core.words import describe
from ..module import Module
from ..tree.functions import map as tree_map

T = TypeVar("T")


class _LossScale(Module):
    value: mx.array = buffer(cast=False)

    def scale(self, loss: T) -> T:
        """Multiply the loss, or any tree, by the scale."""
        return tree_map(lambda array: array * self.value.astype(array.dtype), loss)

    def unscale(self, grads: T) -> T:
        """Divide the gradients by the scale."""
        return tree_map(lambda array: (array / self.value).astype(array.dtype), grads)


class StaticLossScale(_LossScale):
    """A factor for the loss that never changes.

    Args:
        value: The factor. Default: ``2**15``.

    Raises:
        ValueError: If it is not a positive number.

    >>> import frostleaf as fl, mlx.core as mx
    >>> scale = fl.optim.StaticLossScale(8.0)
    >>> scale.scale(mx.array(2.0)), scale.unscale(mx.array(16.0)), scale.adjust(mx.array(False)) is scale
    (array(16, dtype=float32), array(2, dtype=float32), True)
    """

    def __init__(self, value: float = 2.0**15) -> None:
        self.value = _scale(value)

    def adjust(self, finite: mx.array) -> StaticLossScale:
        """Return the scale itself: the method is there so that either kind of scale can be used."""
        return self


class DynamicLossScale(_LossScale):
    r"""A factor for the loss that grows while the gradients are finite, and shrinks when they are not.

    .. math::

        s \leftarrow \begin{cases} s f & \text{after } n \text{ finite gradients in a row} \\
        \max(1, s / f) & \text{after one that is not finite} \end{cases}

    but never to infinity. Micikevicius et al., `Mixed precision training <https://arxiv.org/abs/1710.03740>`_. To skip the
    gradients that are not finite, see :func:`skip_nonfinite`. On several ranks look at gradients that have been averaged, so
    that all have the same scale.

    Args:
        value: The initial :math:`s`. Default: ``2**15``.
        period: :math:`n`. Default: ``2000``.
        factor: :math:`f`, above 1. Default: ``2.0``.

    Attributes:
        value: The scale, float32, shape ().
        count: The number of finite gradients in a row, uint32, shape ().

    Raises:
        ValueError: If ``value`` is not positive, ``period`` is less than 1, or ``factor`` is not above 1.

    >>> import frostleaf as fl, mlx.core as mx
    >>> scale = fl.optim.DynamicLossScale(8.0, period=2)
    >>> def loss_fn(w, x):
    ...     return (w * x).sum()
    >>> loss, grads = fl.value_and_grad(lambda w: scale.scale(loss_fn(w, mx.array(3.0))))(mx.array(2.0))
    >>> grads = scale.unscale(grads)
    >>> grads, [scale.adjust(mx.array(finite)).value.item() for finite in (True, False)]
    (array(3, dtype=float32), [8.0, 4.0])
    """

    count: mx.array = buffer()
    period: int = static()
    factor: float = static()

    def __init__(self, value: float = 2.0**15, period: int = 2000, factor: float = 2.0) -> None:
        if type(period) is not int or period < 1:
            message = "period is the number of finite gradients after which the scale grows, 1 or more"
            raise ValueError(f"{message}, and was given as {describe(period)}")
        if not _is_number(factor) or not 1 < factor < math.inf:
            raise ValueError(f"factor is the number by which the scale changes, above 1, and was given as {describe(factor)}")
        self.value = _scale(value)
        self.count = mx.array(0, mx.uint32)
        self.period, self.factor = period, factor

    def adjust(self, finite: mx.array) -> DynamicLossScale:
        """Return the scale for the next step.

        Args:
            finite: Whether the gradients were finite, boolean, shape (), as :func:`all_finite` returns it.
        """
        count = mx.where(finite, self.count + 1, mx.zeros_like(self.count))
        due = count >= self.period
        grown = self.value * self.factor
        larger = mx.where(mx.logical_and(due, mx.isfinite(grown)), grown, self.value)
        value = mx.where(finite, larger, mx.maximum(self.value / self.factor, 1.0))
        return self.replace(value=value, count=mx.where(due, mx.zeros_like(count), count))


def _scale(value: float) -> mx.array:
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"a loss scale is a number above 0, and was given as {describe(value)}")
    return mx.array(value, mx.float32)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
