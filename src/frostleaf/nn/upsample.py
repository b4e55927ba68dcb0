"""Layers that change the size of an image."""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs
import mlx.core as mx
from mlx.nn.layers.upsample import upsample_cubic, upsample_linear, upsample_nearest

from ..core.fields import static
from ..core.words import describe
from ..module import Module
from .checks import misfit


def _factors(value: Any) -> float | tuple[float, ...]:
    try:
        factors = tuple(map(float, value if isinstance(value, tuple | list) else (value,)))
    except (TypeError, ValueError):
        factors = ()
    if not factors or not all(0 < each < math.inf for each in factors):
        wanted = "a positive number, or a tuple of one for each axis but the first and last"
        raise ValueError(f"scale_factor is {wanted}, and was given as {describe(value)}")
    return factors if isinstance(value, tuple | list) else factors[0]


def _require_mode(_: Module, __: attrs.Attribute[str], mode: str) -> None:
    if mode not in ("nearest", "linear", "cubic"):
        raise ValueError(f"mode is 'nearest', 'linear' or 'cubic', and was given as {describe(mode)}")


class Upsample(Module):
    r"""Change the size of an image, or of any input with axes between batch and channels, by interpolation.

    .. math:: y_{nlc} = \sum_i k(i - u_l)\, x_{nic} \quad\text{where}\quad u_l = \frac{L-1}{2} + \frac{l - (L'-1)/2}{s}

    This is for one axis; each of several has a factor :math:`s`. :math:`u_l` is the position in the input of position :math:`l`
    of the output when the centres of both agree, or with ``align_corners``, :math:`l (L - 1) / (L' - 1)`, when their first and
    last positions do. The kernel :math:`k(t)` is :math:`\max(0, 1 - |t|)` (``"linear"``) or the cubic spline of Keys with
    :math:`a = -0.75` (``"cubic"``); beyond its edges the input continues with the value there. ``"nearest"`` takes the value
    at one position: :math:`(l + \frac12) L / L' - \frac12` rounded if the axis gets longer, and else :math:`l L / L'` rounded
    down.
    Keys, `Cubic convolution interpolation for digital image processing <https://doi.org/10.1109/TASSP.1981.1163711>`_.

    Args:
        scale_factor: The size of the output as a multiple of that of the input: for each axis, or the same for all.
        mode: ``"nearest"``, ``"linear"`` or ``"cubic"``. Default: ``"nearest"``.
        align_corners: Whether the first and the last positions agree, rather than the centres; ignored for ``"nearest"``.
            Default: ``False``.
        antialias: Whether an axis that gets shorter is smoothed, by a kernel :math:`1 / s` times as wide. The kernels are then
            scaled so that their values within the input add up to 1, and the cubic one has :math:`a = -0.5`, even where the
            axis gets longer. Default: ``False``.

    Shapes:
        Input ``[N, ..., C]``, of three axes or more; output the same, but each axis between the first and the last is of length
        ``int(scale_factor * length)``. The modes ``"linear"`` and ``"cubic"`` compute in float32 and return it,
        ``"nearest"`` returns the dtype of the input.

    Raises:
        ValueError: If ``scale_factor`` is not positive, ``mode`` is another, or ``antialias`` is given with ``"nearest"`` or
            ``align_corners``; in a call, if the input does not have an axis for each factor, and at least one, or if
            ``"nearest"`` would make an axis of length 0.

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
    mode: Literal["nearest", "linear", "cubic"] = static(validator=_require_mode)
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
            other = "mode='nearest'" if self.mode == "nearest" else "align_corners=True"
            wanted = "It is for mode='linear' or mode='cubic', with align_corners=False"
            raise ValueError(f"antialias=True was given with {other}. {wanted}")

    def __call__(self, x: mx.array) -> mx.array:
        self._check_antialias()  # again, since replace() can change one option without the other
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
