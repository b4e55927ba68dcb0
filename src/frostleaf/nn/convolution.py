"""Convolutions."""

from __future__ import annotations

import math

import mlx.core as mx

from ..fields import static
from ..module import Module
from .checks import floating, misfit, sizes

UNGROUPED = "{channels} input channels can't be divided into {groups} groups: in_channels must be a multiple of groups"


class Conv2d(Module):
    r"""Compute, at each position of an image, the products of the filters with what they cover.

    .. math:: y_{nhwo} = b_o + \sum_{ijc} W_{oijc}\, x_{n,\,s h + d i - p,\,s w + d j - p,\,c}

    Here :math:`s` is the stride, :math:`d` the dilation and :math:`p` the padding; outside of the image :math:`x` is 0.
    The weight starts uniform in :math:`[-k, k)`, where :math:`k` is one over the square root of the number of inputs
    that an output sums over, and the bias starts at 0.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels, which is the number of filters.
        kernel_size: Height and width of a filter.
        stride: The step between one position of the filter and the next. Default: ``1``.
        padding: The number of zeros put before and after the image. Default: ``0``.
        dilation: The distance in the image of neighbours in the filter. Default: ``1``.
        groups: Into how many groups the channels are divided; a filter sees one group of them. Default: ``1``.
        bias: Whether to add :math:`b`. Default: ``True``.
        dtype: The dtype of weight and bias. Default: ``mx.float32``.
        key: Draws the initial values. Default: ``mx.random``'s own state.

        One int for ``kernel_size``, ``stride``, ``padding`` or ``dilation`` is for the height and for the width.

    Shapes:
        ``weight`` is ``[out_channels, *kernel_size, in_channels // groups]``, ``bias`` ``[out_channels]`` or ``None``;
        input ``[N, H, W, in_channels]``, output ``[N, H', W', out_channels]``, where
        ``H' = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one.
        ValueError: If ``in_channels`` is not a multiple of ``groups``, or ``kernel_size``, ``stride`` or ``padding`` is
            neither an int nor two; in a call, if the input is not of the shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Conv2d(3, 8, 5, stride=2, padding=(2, 0), bias=False)
    >>> layer
    Conv2d(weight=f32[8,5,5,3], bias=None, stride=(2, 2), padding=(2, 0), dilation=1, groups=1)
    >>> layer(mx.ones((1, 28, 28, 3))).shape
    (1, 14, 12, 8)
    """

    weight: mx.array
    bias: mx.array | None
    stride: tuple[int, int] = static()
    padding: tuple[int, int] = static()
    dilation: int | tuple[int, int] = static()
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
        if in_channels % groups != 0:
            raise ValueError(UNGROUPED.format(channels=in_channels, groups=groups))
        dtype = floating(dtype)
        height, width = sizes("kernel_size", kernel_size, 2)
        self.stride = sizes("stride", stride, 2)
        self.padding = sizes("padding", padding, 2)
        self.dilation = dilation
        self.groups = groups
        scale = math.sqrt(1 / (in_channels // groups * height * width))
        shape = out_channels, height, width, in_channels // groups
        self.weight = mx.random.uniform(-scale, scale, shape, dtype, key)
        self.bias = mx.zeros((out_channels,), dtype) if bias else None

    def __call__(self, x: mx.array) -> mx.array:
        if x.ndim != 4 or x.shape[3] != self.weight.shape[-1] * self.groups:
            raise misfit(self, f"[N, H, W, {self.weight.shape[-1] * self.groups}]", x)
        y = mx.conv2d(x, self.weight, self.stride, self.padding, self.dilation, self.groups)
        return y if self.bias is None else y + self.bias
