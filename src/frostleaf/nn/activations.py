"""Activation functions as layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import attrs
import mlx.core as mx
from mlx.nn.layers.activations import (
    celu,
    elu,
    gelu,
    gelu_approx,
    gelu_fast_approx,
    glu,
    hard_shrink,
    hard_tanh,
    hardswish,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    mish,
    prelu,
    relu,
    relu2,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softmin,
    softplus,
    softshrink,
    softsign,
    step,
    tanh,
)

from ..core.fields import static
from ..core.words import describe
from ..module import Module
from .checks import misfit, number, size
from .dtypes import layer_dtype


class _Function(Module):
    """Apply a function of one argument."""

    _function: ClassVar[Callable[..., mx.array]]

    def __call__(self, x: mx.array) -> mx.array:
        return self._function(x)


class _LastAxisFunction(_Function):
    """Apply a function of the last axis, and check that there is one."""

    def __call__(self, x: mx.array) -> mx.array:
        if x.ndim == 0:
            raise misfit(self, "[..., D]", x)
        return super().__call__(x)


class CELU(Module):
    r"""Compute :math:`y = \max(x, 0) + \alpha\, (e^{\min(x, 0) / \alpha} - 1)`, whose slope has no jump.

    Barron, `Continuously differentiable exponential linear units <https://arxiv.org/abs/1704.07483>`_.

    Args:
        alpha: The output approaches :math:`-\alpha` for :math:`x \to -\infty`. Default: ``1.0``.

    Shapes:
        Input and output of any shape.

    Raises:
        ValueError: If ``alpha`` is not a number.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.CELU(2.0)(mx.array([-2.0, 0.0, 2.0]))
    array([-1.26424, 0, 2], dtype=float32)
    """

    alpha: float = static(default=1.0, validator=number)

    def __call__(self, x: mx.array) -> mx.array:
        return celu(x, self.alpha)  # type: ignore[no-any-return]


class ELU(Module):
    r"""Return positive numbers as they are, and for the others :math:`y = \alpha\, (e^x - 1)`.

    Clevert et al., `Fast and accurate deep network learning by exponential linear units
    <https://arxiv.org/abs/1511.07289>`_.

    Args:
        alpha: The output approaches :math:`-\alpha` for :math:`x \to -\infty`. Default: ``1.0``.

    Shapes:
        Input and output of any shape.

    Raises:
        ValueError: If ``alpha`` is not a number.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.ELU()(mx.array([-1.0, 0.0, 2.0]))
    array([-0.632121, 0, 2], dtype=float32)
    """

    alpha: float = static(default=1.0, validator=number)

    def __call__(self, x: mx.array) -> mx.array:
        return elu(x, self.alpha)  # type: ignore[no-any-return]


_GELUS: dict[str, Callable[[mx.array], mx.array]] = {
    "none": gelu,
    "precise": gelu_approx,
    "tanh": gelu_approx,
    "fast": gelu_fast_approx,
}


def _require_approximation(_: Module, __: attrs.Attribute[str], approx: str) -> None:
    if not isinstance(approx, str) or approx not in _GELUS:
        raise ValueError(
            f"approx is 'none', 'precise', 'tanh' (the same as 'precise') or 'fast', and was given as {describe(approx)}"
        )


class GELU(Module):
    r"""Compute :math:`y = x\, \Phi(x)`, where :math:`\Phi` is the cumulative distribution of the normal distribution.

    .. math::
        y_\mathtt{precise} = \frac{x}{2} \left(1 + \tanh\left(\sqrt{2 / \pi}\, (x + 0.044715\, x^3)\right)\right),
        \qquad y_\mathtt{fast} = x\, \sigma(1.702\, x)

    Hendrycks and Gimpel, `Gaussian error linear units <https://arxiv.org/abs/1606.08415>`_.

    Args:
        approx: ``"none"`` for :math:`y` itself, ``"precise"`` (or ``"tanh"``, PyTorch's name for it) or ``"fast"`` for one
            of its approximations. Default: ``"none"``.

    Shapes:
        Input and output of any shape.

    Raises:
        ValueError: If ``approx`` is none of these.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.GELU()(mx.array([-1.0, 0.0, 2.0]))
    array([-0.158655, 0, 1.9545], dtype=float32)
    """

    approx: str = static(default="none", validator=_require_approximation)

    def __call__(self, x: mx.array) -> mx.array:
        return _GELUS[self.approx](x)


class GLU(Module):
    r"""Multiply one half of the input by the sigmoid of the other: :math:`y = a\, \sigma(b)`, where :math:`[a, b] = x`.

    Dauphin et al., `Language modeling with gated convolutional networks <https://arxiv.org/abs/1612.08083>`_.

    Args:
        axis: The axis to halve. Default: ``-1``.

    Shapes:
        Input of any shape with an even length along the axis, output half as long there.

    Raises:
        ValueError: In a call, if the length is odd, or the input has no such axis.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.GLU()(mx.array([1.0, 2.0, 0.0, 100.0]))
    array([0.5, 2], dtype=float32)
    """

    axis: int = static(default=-1)

    def __call__(self, x: mx.array) -> mx.array:
        if not -x.ndim <= self.axis < x.ndim or x.shape[self.axis] % 2 != 0:
            raise misfit(self, f"[...] of an even length along axis {self.axis}", x)
        return glu(x, self.axis)


class HardShrink(Module):
    r"""Set to 0 the numbers no further from 0 than :math:`\lambda`: :math:`y = x` where :math:`|x| > \lambda`.

    Args:
        lambd: The threshold :math:`\lambda`. Default: ``0.5``.

    Shapes:
        Input and output of any shape.

    Raises:
        ValueError: If ``lambd`` is not a number.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.HardShrink()(mx.array([-1.0, 0.5, 2.0]))
    array([-1, 0, 2], dtype=float32)
    """

    lambd: float = static(default=0.5, validator=number)

    def __call__(self, x: mx.array) -> mx.array:
        return hard_shrink(x, self.lambd)  # type: ignore[no-any-return]


class HardTanh(_Function):
    r"""Limit numbers to :math:`[-1, 1]`: :math:`y = \min(\max(x, -1), 1)`.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.HardTanh()(mx.array([-3.0, 0.5, 2.0]))
    array([-1, 0.5, 1], dtype=float32)
    """

    _function = staticmethod(hard_tanh)


class Hardswish(_Function):
    r"""Compute :math:`y = x \min(\max(x + 3, 0), 6) / 6`: :class:`SiLU` made of straight lines and a parabola.

    Howard et al., `Searching for MobileNetV3 <https://arxiv.org/abs/1905.02244>`_.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Hardswish()(mx.array([-3.0, 0.0, 1.5, 3.0]))
    array([-0, 0, 1.125, 3], dtype=float32)
    """

    _function = staticmethod(hardswish)


class LeakyReLU(Module):
    r"""Multiply negative numbers by a small slope: :math:`y = \max(x, \mathtt{negative\_slope} \cdot x)`.

    Maas et al., `Rectifier nonlinearities improve neural network acoustic models
    <https://ai.stanford.edu/~amaas/papers/relu_hybrid_icml2013_final.pdf>`_.

    Args:
        negative_slope: The slope, less than 1. Default: ``0.01``.

    Shapes:
        Input and output of any shape.

    Raises:
        ValueError: If ``negative_slope`` is not a number.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.LeakyReLU(0.1)(mx.array([-2.0, 0.0, 2.0]))
    array([-0.2, 0, 2], dtype=float32)
    """

    negative_slope: float = static(default=1e-2, validator=number)

    def __call__(self, x: mx.array) -> mx.array:
        return leaky_relu(x, self.negative_slope)  # type: ignore[no-any-return]


class LogSigmoid(_Function):
    r"""Compute :math:`y = \log \sigma(x) = -\log(1 + e^{-x})`, without overflow.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.LogSigmoid()(mx.array([-1000.0, 0.0]))
    array([-1000, -0.693147], dtype=float32)
    """

    _function = staticmethod(log_sigmoid)


class LogSoftmax(_LastAxisFunction):
    r"""Compute the logarithm of the softmax of the last axis: :math:`y_i = x_i - \log \sum_j e^{x_j}`.

    Shapes:
        Input and output ``[..., D]``.

    Raises:
        ValueError: In a call, if the input has no axis.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.LogSoftmax()(mx.array([0.0, 0.0, 1000.0]))
    array([-1000, -1000, 0], dtype=float32)
    """

    _function = staticmethod(log_softmax)

    def __call__(self, x: mx.array) -> mx.array:
        if x.shape[-1:] == (1,) or 0 in x.shape:  # MLX's compiled function ends the process, or raises an error
            return mx.log(mx.softmax(x, -1))
        return super().__call__(x)


class Mish(_Function):
    r"""Compute :math:`y = x \tanh(\log(1 + e^x))`.

    Misra, `Mish: a self regularized non-monotonic activation function <https://arxiv.org/abs/1908.08681>`_.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Mish()(mx.array([-1.0, 0.0, 2.0]))
    array([-0.303401, 0, 1.94396], dtype=float32)
    """

    _function = staticmethod(mish)


class PReLU(Module):
    r"""Multiply negative numbers by a slope that is learned: :math:`y = \max(x, 0) + a \min(x, 0)`.

    He et al., `Delving deep into rectifiers <https://arxiv.org/abs/1502.01852>`_.

    Args:
        num_parameters: How many slopes :math:`a` there are: one, or one for each channel. Default: ``1``.
        init: The initial value of the slopes. Default: ``0.25``.
        dtype: The dtype of the weight. Default: that of :func:`frostleaf.default_dtype`.

    Shapes:
        ``weight``, which is :math:`a`, is ``[num_parameters]``; input and output ``[..., num_parameters]``, or for a single
        slope of any shape.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one.
        ValueError: If ``num_parameters`` is not an int of 0 or more; in a call, if there are several slopes and the last axis
            of the input is of another length.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.PReLU(2, init=0.5)
    >>> layer, layer(mx.array([[-2.0, 2.0]]))
    (PReLU(weight=f32[2]), array([[-1, 2]], dtype=float32))
    """

    weight: mx.array

    def __init__(self, num_parameters: int = 1, init: float = 0.25, *, dtype: mx.Dtype | None = None) -> None:
        self.weight = mx.full((size(self, "num_parameters", num_parameters, least=0),), init, layer_dtype(dtype))

    def __call__(self, x: mx.array) -> mx.array:
        if self.weight.size != 1 and x.shape[-1:] != self.weight.shape[-1:]:
            raise misfit(self, f"[..., {self.weight.shape[-1]}]", x)
        return prelu(x, self.weight)


class ReLU(_Function):
    r"""Set negative numbers to 0: :math:`y = \max(x, 0)`.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.ReLU()(mx.array([-1.0, 0.0, 2.0]))
    array([0, 0, 2], dtype=float32)
    """

    _function = staticmethod(relu)


class ReLU2(_Function):
    r"""Set negative numbers to 0 and square the others: :math:`y = \max(x, 0)^2`.

    So et al., `Primer: searching for efficient Transformers for language modeling <https://arxiv.org/abs/2109.08668>`_.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.ReLU2()(mx.array([-1.0, 0.0, 2.0]))
    array([0, 0, 4], dtype=float32)
    """

    _function = staticmethod(relu2)


class ReLU6(_Function):
    r"""Set negative numbers to 0 and those above 6 to 6: :math:`y = \min(\max(x, 0), 6)`.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.ReLU6()(mx.array([-1.0, 3.0, 9.0]))
    array([0, 3, 6], dtype=float32)
    """

    _function = staticmethod(relu6)


class SELU(_Function):
    r"""Compute :math:`y = \lambda x` where :math:`x` is positive, and :math:`y = \lambda \alpha\, (e^x - 1)` elsewhere.

    With :math:`\lambda = 1.0507` and :math:`\alpha = 1.67326` deep networks keep the mean and variance of their layers'
    outputs near 0 and 1.
    Klambauer et al., `Self-normalizing neural networks <https://arxiv.org/abs/1706.02515>`_.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.SELU()(mx.array([-1.0, 0.0, 2.0]))
    array([-1.11133, 0, 2.1014], dtype=float32)
    """

    _function = staticmethod(selu)


class SiLU(_Function):
    r"""Compute :math:`y = x\, \sigma(x)`, which is also called swish.

    Elfwing et al., `Sigmoid-weighted linear units for neural network function approximation in reinforcement learning
    <https://arxiv.org/abs/1702.03118>`_.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.SiLU()(mx.array([-1.0, 0.0, 2.0]))
    array([-0.268941, 0, 1.76159], dtype=float32)
    """

    _function = staticmethod(silu)


class Sigmoid(_Function):
    r"""Compute :math:`y = \sigma(x) = 1 / (1 + e^{-x})`.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Sigmoid()(mx.array([-1.0, 0.0, 2.0]))
    array([0.268941, 0.5, 0.880797], dtype=float32)
    """

    _function = staticmethod(sigmoid)


class Softmax(_LastAxisFunction):
    r"""Compute positive numbers that add up to 1 along the last axis: :math:`y_i = e^{x_i} / \sum_j e^{x_j}`.

    Shapes:
        Input and output ``[..., D]``.

    Raises:
        ValueError: In a call, if the input has no axis.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Softmax()(mx.array([0.0, 0.0, 1.0]))
    array([0.211942, 0.211942, 0.576117], dtype=float32)
    """

    _function = staticmethod(softmax)


class Softmin(_LastAxisFunction):
    r"""Compute the softmax of the negative of the last axis: :math:`y_i = e^{-x_i} / \sum_j e^{-x_j}`.

    Shapes:
        Input and output ``[..., D]``.

    Raises:
        ValueError: In a call, if the input has no axis.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Softmin()(mx.array([0.0, 0.0, 1.0]))
    array([0.422319, 0.422319, 0.155362], dtype=float32)
    """

    _function = staticmethod(softmin)


class Softplus(_Function):
    r"""Compute :math:`y = \log(1 + e^x)`, a smooth :class:`ReLU`, without overflow.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Softplus()(mx.array([-2.0, 0.0, 1000.0]))
    array([0.126928, 0.693147, 1000], dtype=float32)
    """

    _function = staticmethod(softplus)


class Softshrink(Module):
    r"""Move numbers towards 0 by :math:`\lambda`, and set those no further from it to 0.

    .. math:: y = \mathrm{sign}(x) \max(|x| - \lambda, 0)

    Args:
        lambd: The threshold :math:`\lambda`. Default: ``0.5``.

    Shapes:
        Input and output of any shape.

    Raises:
        ValueError: If ``lambd`` is not a number.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Softshrink()(mx.array([-1.0, 0.5, 2.0]))
    array([-0.5, 0, 1.5], dtype=float32)
    """

    lambd: float = static(default=0.5, validator=number)

    def __call__(self, x: mx.array) -> mx.array:
        return softshrink(x, self.lambd)  # type: ignore[no-any-return]


class Softsign(_Function):
    r"""Compute :math:`y = x / (1 + |x|)`.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Softsign()(mx.array([-1.0, 0.0, 4.0]))
    array([-0.5, 0, 0.8], dtype=float32)
    """

    _function = staticmethod(softsign)


class Step(Module):
    r"""Return 1 where :math:`x \geq \mathtt{threshold}` and 0 elsewhere.

    Args:
        threshold: Where the step is. Default: ``0.0``.

    Shapes:
        Input and output of any shape. The output is int32, and has no gradient.

    Raises:
        ValueError: If ``threshold`` is not a number.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Step(0.5)(mx.array([-1.0, 0.5, 2.0]))
    array([0, 1, 1], dtype=int32)
    """

    threshold: float = static(default=0.0, validator=number)

    def __call__(self, x: mx.array) -> mx.array:
        return step(x, self.threshold)  # type: ignore[no-any-return]


class Tanh(_Function):
    r"""Compute :math:`y = \tanh x`.

    Shapes:
        Input and output of any shape.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Tanh()(mx.array([-1.0, 0.0, 2.0]))
    array([-0.761594, 0, 0.964028], dtype=float32)
    """

    _function = staticmethod(tanh)
