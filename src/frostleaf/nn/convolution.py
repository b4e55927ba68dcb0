"""Convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..fields import static
from ..module import Module
from .checks import misfit, positive, size, sizes
from .dtypes import floating
from .initial import uniform

UNGROUPED = "{channels} {side}put channels can't be divided into {groups} groups: {side}_channels must be a multiple of groups"

# What the axes between batch and channels are called, by their number.
AXES = {1: "L", 2: "H, W", 3: "D, H, W"}


class Convolution(Module):
    """What all convolutions have: the filters, a number to add for each of them, and the check of their input."""

    weight: mx.array
    bias: mx.array | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        groups: int,
        bias: bool,
        dtype: mx.Dtype | None,
        key: mx.array | None,
    ) -> None:
        dtype = floating(dtype)
        in_channels, out_channels = size(self, "in_channels", in_channels), size(self, "out_channels", out_channels)
        kernel_size = tuple(size(self, "kernel_size", each) for each in kernel_size)
        for side, channels in ("in", in_channels), ("out", out_channels):
            if channels % groups != 0:
                raise ValueError(UNGROUPED.format(side=side, channels=channels, groups=groups))
        scale = math.sqrt(1 / (in_channels // groups * math.prod(kernel_size)))
        self.weight = uniform(scale, (out_channels, *kernel_size, in_channels // groups), dtype, key)
        self.bias = mx.zeros((out_channels,), dtype) if bias else None

    def _fitting(self, x: mx.array, groups: int = 1) -> mx.array:
        """Return ``x``, if it has the axes and the channels that the layer takes."""
        channels = self.weight.shape[-1] * groups
        if x.ndim != self.weight.ndim or x.shape[-1] != channels:
            raise misfit(self, self._shape(channels), x)
        return x

    def _covering(self, x: mx.array, groups: int, padding: Any, dilation: Any) -> mx.array:
        """Return ``x``, if it fits and is no smaller than the filters are with their gaps."""
        x = self._fitting(x, groups)
        _, *kernel_size, channels = self.weight.shape
        rank = len(kernel_size)
        paddings, dilations = sizes(self, "padding", padding, rank), sizes(self, "dilation", dilation, rank)
        least = [
            gap * (window - 1) + 1 - 2 * zeros for window, zeros, gap in zip(kernel_size, paddings, dilations, strict=True)
        ]
        if any(length < needed for length, needed in zip(x.shape[1:-1], least, strict=True)):
            shown = ", ".join(f"{max(needed, 1)} or more" for needed in least)
            raise misfit(self, f"[N, {shown}, {channels * groups}]", x)
        return x

    def _convolved(self, convolve: Callable[..., mx.array], x: mx.array, *options: Any) -> mx.array:
        """Return what MLX's function makes of an input that fits, with the bias added."""
        try:
            y = convolve(x, self.weight, *options)
        except ValueError as error:
            raise misfit(self, self._shape(x.shape[-1]), x, error) from error
        return y if self.bias is None else y + self.bias

    def _shape(self, channels: int) -> str:
        return f"[N, {AXES[self.weight.ndim - 2]}, {channels}]"


class Conv1d(Convolution):
    r"""Compute, at each position of a sequence, the products of the filters with what they cover.

    .. math:: y_{nlo} = b_o + \sum_{ic} W_{oic}\, x_{n,\,s l + d i - p,\,c}

    Here :math:`s` is the stride, :math:`d` the dilation and :math:`p` the padding; outside of the sequence :math:`x` is 0.
    The weight starts uniform in :math:`[-k, k)`, where :math:`k` is one over the square root of the number of inputs
    that an output sums over, and the bias starts at 0.

    With ``groups``, MLX's ``vmap`` gives wrong numbers, and no error, where the weight is mapped and the input is not. An
    ensemble of such layers needs an input for each: ``mx.broadcast_to(x, (count, *x.shape))``, mapped as well.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels, which is the number of filters.
        kernel_size: The length of a filter.
        stride: The step between one position of the filter and the next. Default: ``1``.
        padding: The number of zeros put before and after the sequence. Default: ``0``.
        dilation: The distance in the sequence of neighbours in the filter. Default: ``1``.
        groups: Into how many groups the channels are divided; a filter sees one group of them. Default: ``1``.
        bias: Whether to add :math:`b`. Default: ``True``.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``weight`` is ``[out_channels, kernel_size, in_channels // groups]``, ``bias`` ``[out_channels]`` or ``None``;
        input ``[N, L, in_channels]``, output ``[N, L', out_channels]``, where
        ``L' = (L + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If ``in_channels`` or ``out_channels`` is not a multiple of ``groups``, or a number other than
            ``padding`` is not positive, or one is not an int; in a call, if the input is not of the shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Conv1d(4, 8, 3, dilation=2, groups=2)
    >>> layer
    Conv1d(weight=f32[8,3,2], bias=f32[8], stride=1, padding=0, dilation=2, groups=2)
    >>> layer(mx.ones((1, 10, 4))).shape
    (1, 6, 8)
    """

    stride: int = static(validator=positive)
    padding: int = static()
    dilation: int = static(validator=positive)
    groups: int = static()

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        (self.stride,) = sizes(self, "stride", stride, 1)
        (self.padding,) = sizes(self, "padding", padding, 1)
        (self.dilation,) = sizes(self, "dilation", dilation, 1)
        self.groups = size(self, "groups", groups)
        super().__init__(in_channels, out_channels, sizes(self, "kernel_size", kernel_size, 1), self.groups, bias, dtype, key)

    def __call__(self, x: mx.array) -> mx.array:
        x = self._covering(x, self.groups, self.padding, self.dilation)
        return self._convolved(mx.conv1d, x, self.stride, self.padding, self.dilation, self.groups)


class Conv2d(Convolution):
    r"""Compute, at each position of an image, the products of the filters with what they cover.

    .. math:: y_{nhwo} = b_o + \sum_{ijc} W_{oijc}\, x_{n,\,s h + d i - p,\,s w + d j - p,\,c}

    Here :math:`s` is the stride, :math:`d` the dilation and :math:`p` the padding; outside of the image :math:`x` is 0.
    The weight starts uniform in :math:`[-k, k)`, where :math:`k` is one over the square root of the number of inputs
    that an output sums over, and the bias starts at 0.

    With ``groups``, MLX's ``vmap`` gives wrong numbers, and no error, where the weight is mapped and the input is not. An
    ensemble of such layers needs an input for each: ``mx.broadcast_to(x, (count, *x.shape))``, mapped as well.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels, which is the number of filters.
        kernel_size: Height and width of a filter.
        stride: The step between one position of the filter and the next. Default: ``1``.
        padding: The number of zeros put before and after the image. Default: ``0``.
        dilation: The distance in the image of neighbours in the filter. Default: ``1``.
        groups: Into how many groups the channels are divided; a filter sees one group of them. Default: ``1``.
        bias: Whether to add :math:`b`. Default: ``True``.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

        One int for ``kernel_size``, ``stride``, ``padding`` or ``dilation`` is for the height and for the width.

    Shapes:
        ``weight`` is ``[out_channels, *kernel_size, in_channels // groups]``, ``bias`` ``[out_channels]`` or ``None``;
        input ``[N, H, W, in_channels]``, output ``[N, H', W', out_channels]``, where
        ``H' = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If ``in_channels`` or ``out_channels`` is not a multiple of ``groups``, or a number other than
            ``padding`` is not positive, or ``kernel_size``, ``stride``, ``padding`` or ``dilation`` is neither an int nor
            two; in a call, if the input is not of the shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Conv2d(3, 8, 5, stride=2, padding=(2, 0), bias=False)
    >>> layer
    Conv2d(weight=f32[8,5,5,3], bias=None, stride=(2, 2), padding=(2, 0), dilation=1, groups=1)
    >>> layer(mx.ones((1, 28, 28, 3))).shape
    (1, 14, 12, 8)
    """

    stride: tuple[int, int] = static(validator=positive)
    padding: tuple[int, int] = static()
    dilation: int | tuple[int, int] = static(validator=positive)
    groups: int = static()

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        self.stride = sizes(self, "stride", stride, 2)
        self.padding = sizes(self, "padding", padding, 2)
        self.dilation = dilation if isinstance(dilation, int) else sizes(self, "dilation", dilation, 2)
        self.groups = size(self, "groups", groups)
        super().__init__(in_channels, out_channels, sizes(self, "kernel_size", kernel_size, 2), self.groups, bias, dtype, key)

    def __call__(self, x: mx.array) -> mx.array:
        x = self._covering(x, self.groups, self.padding, self.dilation)
        return self._convolved(mx.conv2d, x, self.stride, self.padding, self.dilation, self.groups)


class Conv3d(Convolution):
    r"""Compute, at each position of a volume, the products of the filters with what they cover.

    .. math:: y_{nvhwo} = b_o + \sum_{mijc} W_{omijc}\, x_{n,\,s v + d m - p,\,s h + d i - p,\,s w + d j - p,\,c}

    Here :math:`s` is the stride, :math:`d` the dilation and :math:`p` the padding; outside of the volume :math:`x` is 0.
    The weight starts uniform in :math:`[-k, k)`, where :math:`k` is one over the square root of the number of inputs
    that an output sums over, and the bias starts at 0. There are no groups: MLX's convolution has none in three dimensions.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels, which is the number of filters.
        kernel_size: Depth, height and width of a filter.
        stride: The step between one position of the filter and the next. Default: ``1``.
        padding: The number of zeros put before and after the volume. Default: ``0``.
        dilation: The distance in the volume of neighbours in the filter. Default: ``1``.
        bias: Whether to add :math:`b`. Default: ``True``.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

        One int for ``kernel_size``, ``stride``, ``padding`` or ``dilation`` is for all three.

    Shapes:
        ``weight`` is ``[out_channels, *kernel_size, in_channels]``, ``bias`` ``[out_channels]`` or ``None``;
        input ``[N, D, H, W, in_channels]``, output ``[N, D', H', W', out_channels]``, where
        ``D' = (D + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a number other than ``padding`` is not positive, or ``kernel_size``, ``stride``, ``padding`` or
            ``dilation`` is neither an int nor three; in a call, if the input is not of the shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Conv3d(1, 4, 3, padding=(1, 0, 0))
    >>> layer
    Conv3d(weight=f32[4,3,3,3,1], bias=f32[4], stride=(1, 1, 1), padding=(1, 0, 0), dilation=1)
    >>> layer(mx.ones((1, 5, 5, 5, 1))).shape
    (1, 5, 3, 3, 4)
    """

    stride: tuple[int, int, int] = static(validator=positive)
    padding: tuple[int, int, int] = static()
    dilation: int | tuple[int, int, int] = static(validator=positive)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        dilation: int | tuple[int, int, int] = 1,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        self.stride = sizes(self, "stride", stride, 3)
        self.padding = sizes(self, "padding", padding, 3)
        self.dilation = dilation if isinstance(dilation, int) else sizes(self, "dilation", dilation, 3)
        super().__init__(in_channels, out_channels, sizes(self, "kernel_size", kernel_size, 3), 1, bias, dtype, key)

    def __call__(self, x: mx.array) -> mx.array:
        x = self._covering(x, 1, self.padding, self.dilation)
        return self._convolved(mx.conv3d, x, self.stride, self.padding, self.dilation)
