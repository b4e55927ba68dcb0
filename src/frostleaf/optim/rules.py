"""The optimizers by name. The rules, and their numbers, are those of ``mlx.optimizers``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.optimizers

from .optimizer import Optimizer

LearningRate = float | Callable[[mx.array], mx.array]


class SGD(Optimizer):
    r"""Stochastic gradient descent.

    .. math:: v_{t+1} = \mu v_t + (1 - \tau)(g_t + \beta w_t), \qquad w_{t+1} = w_t - \lambda v_{t+1}

    Args:
        learning_rate: :math:`\lambda`: a number, or a schedule (a function of the step).
        momentum: :math:`\mu`. Default: ``0.0``.
        weight_decay: :math:`\beta`, an L2 penalty. Default: ``0.0``.
        dampening: :math:`\tau`. Default: ``0.0``.
        nesterov: Whether the momentum is Nesterov's. Default: ``False``.

    Raises:
        ValueError: If ``nesterov`` is asked for without momentum, or with dampening.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.SGD(0.1, momentum=0.9), mx.array(1.0)
    >>> opt.update(w, mx.array(2.0), opt.init(w))[0]
    array(0.8, dtype=float32)
    """

    def __init__(
        self,
        learning_rate: LearningRate,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(mlx.optimizers.SGD, learning_rate, momentum, weight_decay, dampening, nesterov)


class Adam(Optimizer):
    r"""Adam, from `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_ (Kingma and Ba, 2015).

    .. math::

        m_{t+1} = \beta_1 m_t + (1 - \beta_1) g_t, \qquad
        v_{t+1} = \beta_2 v_t + (1 - \beta_2) g_t^2, \qquad
        w_{t+1} = w_t - \lambda \frac{m_{t+1}}{\sqrt{v_{t+1}} + \epsilon}

    Args:
        learning_rate: :math:`\lambda`: a number, or a schedule (a function of the step).
        betas: :math:`(\beta_1, \beta_2)`. Default: ``(0.9, 0.999)``.
        eps: :math:`\epsilon`. Default: ``1e-8``.
        bias_correction: Whether :math:`m` and :math:`v` are corrected for starting at zero. Default: ``False``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.Adam(0.1, bias_correction=True), mx.array(1.0)
    >>> round(opt.update(w, mx.array(2.0), opt.init(w))[0].item(), 3)
    0.9
    """

    def __init__(
        self,
        learning_rate: LearningRate,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        bias_correction: bool = False,
    ) -> None:
        super().__init__(mlx.optimizers.Adam, learning_rate, betas, eps, bias_correction)


class AdamW(Optimizer):
    r"""Adam with weight decay apart from the gradient, from `Decoupled Weight Decay Regularization
    <https://arxiv.org/abs/1711.05101>`_ (Loshchilov and Hutter, 2019).

    .. math::

        w_{t+1} = w_t - \lambda \left( \frac{m_{t+1}}{\sqrt{v_{t+1}} + \epsilon} + \alpha w_t \right)

    with :math:`m` and :math:`v` as in :class:`Adam`.

    Args:
        learning_rate: :math:`\lambda`: a number, or a schedule (a function of the step).
        betas: :math:`(\beta_1, \beta_2)`. Default: ``(0.9, 0.999)``.
        eps: :math:`\epsilon`. Default: ``1e-8``.
        weight_decay: :math:`\alpha`. Default: ``0.01``.
        bias_correction: Whether :math:`m` and :math:`v` are corrected for starting at zero. Default: ``False``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.AdamW(0.1, weight_decay=0.0, bias_correction=True), mx.array(1.0)
    >>> round(opt.update(w, mx.array(2.0), opt.init(w))[0].item(), 3)
    0.9
    """

    def __init__(
        self,
        learning_rate: LearningRate,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        bias_correction: bool = False,
    ) -> None:
        super().__init__(mlx.optimizers.AdamW, learning_rate, betas, eps, weight_decay, bias_correction)
