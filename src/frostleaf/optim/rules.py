"""The optimizers of ``mlx.optimizers``, each a class that applies MLX's rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers

from ..core.words import describe
from .rule import Rule

LearningRate = float | Callable[[mx.array], mx.array]

NOT_A_PAIR = (
    "{name} is two numbers, and was given as {given}. The first argument of an optimizer is the learning rate; the model goes "
    "to init(model)"
)


class SGD(Rule):
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


class Adam(Rule):
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
        super().__init__(mlx.optimizers.Adam, learning_rate, _pair("betas", betas), eps, bias_correction)


class AdamW(Rule):
    r"""Adam with weight decay that is not part of the gradient, from `Decoupled Weight Decay Regularization
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
        super().__init__(mlx.optimizers.AdamW, learning_rate, _pair("betas", betas), eps, weight_decay, bias_correction)


class Adamax(Rule):
    r"""Adam with the infinity norm, from `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_
    (Kingma and Ba, 2015).

    .. math::

        m_{t+1} = \beta_1 m_t + (1 - \beta_1) g_t, \qquad
        v_{t+1} = \max(\beta_2 v_t, |g_t|), \qquad
        w_{t+1} = w_t - \lambda \frac{m_{t+1}}{v_{t+1} + \epsilon}

    Args:
        learning_rate: :math:`\lambda`: a number, or a schedule (a function of the step).
        betas: :math:`(\beta_1, \beta_2)`. Default: ``(0.9, 0.999)``.
        eps: :math:`\epsilon`. Default: ``1e-8``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.Adamax(0.1), mx.array(1.0)
    >>> round(opt.update(w, mx.array(2.0), opt.init(w))[0].item(), 3)
    0.99
    """

    def __init__(self, learning_rate: LearningRate, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(mlx.optimizers.Adamax, learning_rate, _pair("betas", betas), eps)


class RMSprop(Rule):
    r"""Gradients divided by a running mean of their size (Tieleman and Hinton, 2012, lecture 6.5 of `Neural networks for
    machine learning <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_).

    .. math:: v_{t+1} = \alpha v_t + (1 - \alpha) g_t^2, \qquad w_{t+1} = w_t - \lambda \frac{g_t}{\sqrt{v_{t+1}} + \epsilon}

    Args:
        learning_rate: :math:`\lambda`: a number, or a schedule (a function of the step).
        alpha: :math:`\alpha`, 0 or more. Default: ``0.99``.
        eps: :math:`\epsilon`, more than 0. Default: ``1e-8``.

    Raises:
        ValueError: If ``alpha`` is negative or ``eps`` is not positive.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.RMSprop(0.1), mx.array(1.0)
    >>> round(opt.update(w, mx.array(2.0), opt.init(w))[0].item(), 3)
    0.0
    """

    def __init__(self, learning_rate: LearningRate, alpha: float = 0.99, eps: float = 1e-8) -> None:
        super().__init__(mlx.optimizers.RMSprop, learning_rate, alpha, eps)


class Adagrad(Rule):
    r"""Gradients divided by the size of all so far, from `Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization <https://jmlr.org/papers/v12/duchi11a.html>`_ (Duchi, Hazan and Singer, 2011).

    .. math:: v_{t+1} = v_t + g_t^2, \qquad w_{t+1} = w_t - \lambda \frac{g_t}{\sqrt{v_{t+1}} + \epsilon}

    Args:
        learning_rate: :math:`\lambda`: a number, or a schedule (a function of the step).
        eps: :math:`\epsilon`, more than 0. Default: ``1e-8``.

    Raises:
        ValueError: If ``eps`` is not positive.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.Adagrad(0.1), mx.array(1.0)
    >>> round(opt.update(w, mx.array(2.0), opt.init(w))[0].item(), 3)
    0.9
    """

    def __init__(self, learning_rate: LearningRate, eps: float = 1e-8) -> None:
        super().__init__(mlx.optimizers.Adagrad, learning_rate, eps)


class AdaDelta(Rule):
    r"""Steps as large as the steps before, from `ADADELTA: An Adaptive Learning Rate Method <https://arxiv.org/abs/1212.5701>`_
    (Zeiler, 2012), with a learning rate.

    .. math::

        v_{t+1} = \rho v_t + (1 - \rho) g_t^2, \qquad
        \Delta_{t+1} = \frac{\sqrt{u_t + \epsilon}}{\sqrt{v_{t+1} + \epsilon}} g_t

        u_{t+1} = \rho u_t + (1 - \rho) \Delta_{t+1}^2, \qquad
        w_{t+1} = w_t - \lambda \Delta_{t+1}

    Args:
        learning_rate: :math:`\lambda`: a number, or a schedule (a function of the step).
        rho: :math:`\rho`, 0 or more. Default: ``0.9``.
        eps: :math:`\epsilon`, more than 0. Default: ``1e-6``.

    Raises:
        ValueError: If ``rho`` is negative or ``eps`` is not positive.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.AdaDelta(1.0), mx.array(1.0)
    >>> round(opt.update(w, mx.array(2.0), opt.init(w))[0].item(), 3)
    0.997
    """

    def __init__(self, learning_rate: LearningRate, rho: float = 0.9, eps: float = 1e-6) -> None:
        super().__init__(mlx.optimizers.AdaDelta, learning_rate, rho, eps)


class Lion(Rule):
    r"""Steps of one size with the sign of the momentum, from `Symbolic Discovery of Optimization Algorithms
    <https://arxiv.org/abs/2302.06675>`_ (Chen et al., 2023).

    .. math::

        c_{t+1} = \beta_1 m_t + (1 - \beta_1) g_t, \qquad
        m_{t+1} = \beta_2 m_t + (1 - \beta_2) g_t, \qquad
        w_{t+1} = w_t - \lambda (\operatorname{sign} c_{t+1} + \alpha w_t)

    Every number moves by the whole learning rate: choose a smaller one than for Adam, and a larger decay.

    Args:
        learning_rate: :math:`\lambda`: a number, or a schedule (a function of the step).
        betas: :math:`(\beta_1, \beta_2)`, each in ``[0, 1)``. Default: ``(0.9, 0.99)``.
        weight_decay: :math:`\alpha`. Default: ``0.0``.

    Raises:
        ValueError: If one of ``betas`` is outside of ``[0, 1)``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.Lion(0.1), mx.array(1.0)
    >>> round(opt.update(w, mx.array(2.0), opt.init(w))[0].item(), 3)
    0.9
    """

    def __init__(self, learning_rate: LearningRate, betas: Sequence[float] = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(mlx.optimizers.Lion, learning_rate, _pair("betas", betas), weight_decay)


class Adafactor(Rule):
    r"""Adam with second moments for the rows and columns of a matrix instead of all its numbers, from `Adafactor: Adaptive
    Learning Rates with Sublinear Memory Cost <https://arxiv.org/abs/1804.04235>`_ (Shazeer and Stern, 2018).

    .. math::

        R_{t+1} = \rho_t R_t + (1 - \rho_t) \operatorname{mean}_\text{columns}(g_t^2 + \epsilon_1), \qquad
        C_{t+1} = \rho_t C_t + (1 - \rho_t) \operatorname{mean}_\text{rows}(g_t^2 + \epsilon_1)

        u_t = g_t \sqrt{\frac{\operatorname{mean} R_{t+1}}{R_{t+1} C_{t+1}}}, \qquad
        w_{t+1} = w_t - \lambda_t \frac{u_t}{\max(1, \operatorname{RMS}(u_t) / d)}

    Args:
        learning_rate: A number, or a schedule (a function of the step), for ``relative_step=False``. Default: ``None``.
        eps: :math:`(\epsilon_1, \epsilon_2)`; the second bounds the size of a parameter from below. Default: ``(1e-30, 1e-3)``.
        clip_threshold: :math:`d`. Default: ``1.0``.
        decay_rate: :math:`\gamma` in :math:`\rho_t = 1 - t^\gamma`. Default: ``-0.8``.
        beta_1: The decay of a running mean of the steps, which replaces them. Default: ``None``, no mean.
        weight_decay: How much of the parameter is subtracted, times the learning rate. Default: ``0.0``.
        scale_parameter: Whether the learning rate is multiplied by the parameter's size. Default: ``True``.
        relative_step: Whether the learning rate is :math:`\min(10^{-2}, 1 / \sqrt{t})`. Default: ``True``.
        warmup_init: Whether the :math:`10^{-2}` there is :math:`10^{-6} t` instead. Default: ``False``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.Adafactor(), mx.ones((2, 2))
    >>> opt.update(w, mx.ones((2, 2)), opt.init(w))[0].round(3)
    array([[0.99, 0.99],
           [0.99, 0.99]], dtype=float32)
    """

    def __init__(
        self,
        learning_rate: LearningRate | None = None,
        eps: Sequence[float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta_1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
    ) -> None:
        options = clip_threshold, decay_rate, beta_1, weight_decay, scale_parameter, relative_step, warmup_init
        super().__init__(mlx.optimizers.Adafactor, learning_rate, _pair("eps", eps), *options)


class Muon(Rule):
    r"""Momentum made orthogonal, from `Muon: An optimizer for hidden layers in neural networks
    <https://kellerjordan.github.io/posts/muon/>`_ (Jordan et al., 2024).

    .. math::

        v_{t+1} = \mu v_t + (1 - \mu) g_t, \qquad
        w_{t+1} = w_t - \lambda \sqrt{\max(1, m / n)}\, \operatorname{orthogonal}(v_{t+1})

    for a parameter of shape :math:`m \times n`; the nearest orthogonal matrix is found by Newton and Schulz's iteration. Use it
    for the matrices inside a network, and another optimizer for embeddings, the last layer and vectors, see :func:`multi`.

    Args:
        learning_rate: :math:`\lambda`: a number, or a schedule (a function of the step).
        momentum: :math:`\mu`. Default: ``0.95``.
        weight_decay: How much of the parameter is added to the gradient. Default: ``0.01``.
        nesterov: Whether the momentum is Nesterov's. Default: ``True``.
        ns_steps: The number of iterations. Default: ``5``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.Muon(0.1), mx.zeros((2, 3))
    >>> sorted(opt.init(w).slots[""])
    ['v']
    """

    def __init__(
        self,
        learning_rate: LearningRate,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        nesterov: bool = True,
        ns_steps: int = 5,
    ) -> None:
        super().__init__(mlx.optimizers.Muon, learning_rate, momentum, weight_decay, nesterov, ns_steps)


def _pair(name: str, values: Any) -> tuple[Any, Any]:
    """Return two numbers as a tuple."""
    if not isinstance(values, Sequence | mx.array) or len(values) != 2 or isinstance(values, str):
        raise TypeError(NOT_A_PAIR.format(name=name, given=describe(values)))
    first, second = values
    return first, second
