"""Layers that change the size of an image."""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs
import mlx.core as mx
from mlx.nn.layers.upsample import upsample_cubic, upsample_linear, upsample_nearest

from ..fields import static
from ..module import Module
from .checks import misfit

SCALE = "scale_factor is a positive number, or a tuple of one for each axis but the first and last, and was given as {value!r}"
NOT_A_MODE = "mode is 'nearest', 'linear' or 'cubic', and was given as {mode!r}"
ANTIALIAS = "antialias=True was given with {other}. It is for mode='linear' or mode='cubic', with align_corners=False"


def _factors(value: Any) -> float | tuple[float, ...]:
    try:
        factors = tuple(map(float, value if isinstance(value, tuple | list) else (value,)))
    except (TypeError, ValueError):
        raise ValueError(SCALE.format(value=value)) from None
    if not factors or not all(0 < each < math.inf for each in factors):
        raise ValueError(SCALE.format(value=value))
    return factors if isinstance(value, tuple | list) else factors[0]


def _known(_: Module, __: attrs.Attribute[str], mode: str) -> None:
    if mode not in ("nearest", "linear", "cubic"):
        raise ValueError(NOT_A_MODE.format(mode=mode))


class Upsample(Module):
    r"""Change the size of an image, or of what has any other number of axes between batch and channels, by interpolation.

    .. math:: y_{nlc} = \sum_i k(i - u_l)\, x_{nic} \quad\text{where}\quad u_l = \frac{L-1}{2} + \frac{l - (L'-1)/2}{s}

    That is for one axis; of several, each has its factor :math:`s`. :math:`u_l` is where position :math:`l` of the output comes
    to lie in the input when the centres of both agree, or with ``align_corners``, :math:`l (L - 1) / (L' - 1)`, when their
    first and last positions do. The kernel :math:`k(t)` is :math:`\max(0, 1 - |t|)` (``"linear"``) or the cubic spline of Keys
    with :math:`a = -0.75` (``"cubic"``), and beyond its edges the input goes on with the value there. ``"nearest"`` takes the
    value at one position: :math:`(l + \frac12) L / L' - \frac12` rounded if the axis gets longer, and else
    :math:`l L / L'` rounded down.
    Keys, `Cubic convolution interpolation for digital image processing <https://doi.org/10.1109/TASSP.1981.1163711>`_.

    Args:
        scale_factor: The size of the output as a multiple of that of the input: for each axis, or the same for all.
        mode: ``"nearest"``, ``"linear"`` or ``"cubic"``. Default: ``"nearest"``.
        align_corners: Whether the first and the last positions agree, rather than the centres; ``"nearest"`` takes no notice.
            Default: ``False``.
        antialias: Whether an axis that gets shorter is smoothed, by a kernel :math:`1 / s` times as wide. The kernels are then
            scaled so that their values within the input add up to 1, and the cubic one has :math:`a = -0.5`, even where the
            axis gets longer. Default: ``False``.

    Shapes:
        Input ``[N, ..., C]``, of three axes or more; output the same with each axis between the first and the last
        ``int(scale_factor * length)`` long. The modes ``"linear"`` and ``"cubic"`` compute in float32 and return it,
        ``"nearest"`` returns the dtype of the input.

    Raises:
        ValueError: If ``scale_factor`` is not positive, ``mode`` is another, or ``antialias`` is asked for with
            ``"nearest"`` or ``align_corners``; in a call, if the input has not one axis for each factor, and one at least, or
            if ``"nearest"`` would make an axis of length 0.

    >>> import frostleaf as fl, mlx.core as mx
    >>> x = mx.array([1, 2, 4]).reshape(1, 3, 1)
    >>> fl.nn.Upsample(2)(x).flatten()
    array([1, 1, 2, 2, 4, 4], dtype=int32)
    >>> fl.nn.Upsample(2, mode="linear")(x).flatten()
    array([1, 1.25, 1.75, 2.5, 3.5, 4], dtype=float32)
    >>> fl.nn.Upsample((2, 3), mode="cubic")(mx.ones((1, 4, 4, 2))).shape
    (1, 8, 12, 2)
    """

    scale_factor: float | tuple[float, ...] = static(converter=_factors)
    mode: Literal["nearest", "linear", "cubic"] = static(validator=_known)
    align_corners: bool = static()
    antialias: bool = static()

    def __init__(
        self,
        scale_factor: float | tuple[float, ...],
        mode: Literal["nearest", "linear", "cubic"] = "nearest",
        align_corners: bool = False,
        antialias: bool = False,
    ) -> None:
        self.scale_factor = scale_factor
        self.mode = mode
        self.align_corners = align_corners
        self.antialias = antialias
        self._check_antialias()

    def _check_antialias(self) -> None:
        if self.antialias and (self.mode == "nearest" or self.align_corners):
            raise ValueError(ANTIALIAS.format(other="mode='nearest'" if self.mode == "nearest" else "align_corners=True"))

    def __call__(self, x: mx.array) -> mx.array:
        self._check_antialias()  # of a copy, in which one option was replaced
        factors = self.scale_factor
        if not isinstance(factors, tuple):
            if x.ndim < 3:
                raise misfit(self, "[N, ..., C], of three axes or more", x)
            factors = (factors,) * (x.ndim - 2)
        elif x.ndim != len(factors) + 2:
            raise misfit(self, f"[N, ..., C], of {len(factors) + 2} axes", x)
        y: mx.array
        if self.mode == "linear":
            y = upsample_linear(x, factors, self.align_corners, self.antialias)
        elif self.mode == "cubic":
            y = upsample_cubic(x, factors, self.align_corners, self.antialias)
        else:
            try:
                y = upsample_nearest(x, factors)
            except ZeroDivisionError:
                raise misfit(self, "[N, ..., C], where each int(scale_factor * length) is 1 or more", x) from None
        return y
