"""Transposed convolutions: the gradients of convolutions, used to make larger what those make smaller."""

from __future__ import annotations

import mlx.core as mx

from ..fields import static
from .checks import positive, sizes
from .convolution import Convolution


class ConvTranspose1d(Convolution):
    r"""Add up, around each position of a sequence, the filters times what stands at that position.

    .. math:: y_{nto} = b_o + \sum_{lic} W_{oic}\, x_{nlc}
        \quad\text{over}\quad s l + d i - p = t

    Here :math:`s` is the stride, :math:`d` the dilation and :math:`p` the padding. This is the gradient of
    :class:`~frostleaf.nn.Conv1d` with respect to its input, whose output channels are the input channels here. The weight
    starts uniform in :math:`[-k, k)`, where :math:`k` is one over the square root of
    ``in_channels * kernel_size``, and the bias starts at 0.
    Dumoulin and Visin, `A guide to convolution arithmetic for deep learning <https://arxiv.org/abs/1603.07285>`_.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels, which is the number of filters.
        kernel_size: The length of a filter.
        stride: The step in the output for one step in the input. Default: ``1``.
        padding: How much is cut off the output, before and after. Default: ``0``.
        dilation: The distance in the output of neighbours in the filter. Default: ``1``.
        output_padding: How much longer the output is at its end, to tell apart the input sizes that a convolution with this
            stride maps to one output size. Default: ``0``.
        bias: Whether to add :math:`b`. Default: ``True``.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``weight`` is ``[out_channels, kernel_size, in_channels]``, ``bias`` ``[out_channels]`` or ``None``;
        input ``[N, L, in_channels]``, output ``[N, L', out_channels]``, where
        ``L' = (L - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a number other than ``padding`` and ``output_padding`` is not positive, or one is not an int; in a
            call, if the input is not of the shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1)
    >>> layer
    ConvTranspose1d(weight=f32[2,3,4], bias=f32[2], stride=2, padding=1, dilation=1, output_padding=1)
    >>> layer(mx.ones((1, 5, 4))).shape
    (1, 10, 2)
    """

    stride: int = static(validator=positive)
    padding: int = static()
    dilation: int = static(validator=positive)
    output_padding: int = static()

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        output_padding: int = 0,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        (self.stride,) = sizes(self, "stride", stride, 1)
        (self.padding,) = sizes(self, "padding", padding, 1)
        (self.dilation,) = sizes(self, "dilation", dilation, 1)
        (self.output_padding,) = sizes(self, "output_padding", output_padding, 1)
        super().__init__(in_channels, out_channels, sizes(self, "kernel_size", kernel_size, 1), 1, bias, dtype, key)

    def __call__(self, x: mx.array) -> mx.array:
        x = self._fitting(x)
        return self._convolved(mx.conv_transpose1d, x, self.stride, self.padding, self.dilation, self.output_padding)


class ConvTranspose2d(Convolution):
    r"""Add up, around each position of an image, the filters times what stands at that position.

    .. math:: y_{ntuo} = b_o + \sum_{hwijc} W_{oijc}\, x_{nhwc}
        \quad\text{over}\quad s h + d i - p = t,\; s w + d j - p = u

    Here :math:`s` is the stride, :math:`d` the dilation and :math:`p` the padding. This is the gradient of
    :class:`~frostleaf.nn.Conv2d` with respect to its input, whose output channels are the input channels here. The weight
    starts uniform in :math:`[-k, k)`, where :math:`k` is one over the square root of
    ``in_channels`` times the size of a filter, and the bias starts at 0.
    Dumoulin and Visin, `A guide to convolution arithmetic for deep learning <https://arxiv.org/abs/1603.07285>`_.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels, which is the number of filters.
        kernel_size: Height and width of a filter.
        stride: The step in the output for one step in the input. Default: ``1``.
        padding: How much is cut off the output, before and after. Default: ``0``.
        dilation: The distance in the output of neighbours in the filter. Default: ``1``.
        output_padding: How much longer the output is at its end, to tell apart the input sizes that a convolution with this
            stride maps to one output size. Default: ``0``.
        bias: Whether to add :math:`b`. Default: ``True``.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

        One int for a size, ``kernel_size`` to ``output_padding``, is for the height and for the width.

    Shapes:
        ``weight`` is ``[out_channels, *kernel_size, in_channels]``, ``bias`` ``[out_channels]`` or ``None``;
        input ``[N, H, W, in_channels]``, output ``[N, H', W', out_channels]``, where
        ``H' = (H - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a number other than ``padding`` and ``output_padding`` is not positive, or a size is neither an int
            nor two; in a call, if the input is not of the shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.ConvTranspose2d(4, 2, 3, stride=2, padding=(1, 0), bias=False)
    >>> layer.weight.shape, layer(mx.ones((1, 5, 5, 4))).shape
    ((2, 3, 3, 4), (1, 9, 11, 2))
    """

    stride: tuple[int, int] = static(validator=positive)
    padding: tuple[int, int] = static()
    dilation: int | tuple[int, int] = static(validator=positive)
    output_padding: tuple[int, int] = static()

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        output_padding: int | tuple[int, int] = 0,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        self.stride = sizes(self, "stride", stride, 2)
        self.padding = sizes(self, "padding", padding, 2)
        self.dilation = dilation if isinstance(dilation, int) else sizes(self, "dilation", dilation, 2)
        self.output_padding = sizes(self, "output_padding", output_padding, 2)
        super().__init__(in_channels, out_channels, sizes(self, "kernel_size", kernel_size, 2), 1, bias, dtype, key)

    def __call__(self, x: mx.array) -> mx.array:
        x = self._fitting(x)
        return self._convolved(mx.conv_transpose2d, x, self.stride, self.padding, self.dilation, self.output_padding)


class ConvTranspose3d(Convolution):
    r"""Add up, around each position of a volume, the filters times what stands at that position.

    .. math:: y_{ntuvo} = b_o + \sum_{ehwmijc} W_{omijc}\, x_{nehwc}
        \quad\text{over}\quad s e + d m - p = t,\; s h + d i - p = u,\; s w + d j - p = v

    Here :math:`s` is the stride, :math:`d` the dilation and :math:`p` the padding. This is the gradient of
    :class:`~frostleaf.nn.Conv3d` with respect to its input, whose output channels are the input channels here. The weight
    starts uniform in :math:`[-k, k)`, where :math:`k` is one over the square root of
    ``in_channels`` times the size of a filter, and the bias starts at 0.
    Dumoulin and Visin, `A guide to convolution arithmetic for deep learning <https://arxiv.org/abs/1603.07285>`_.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels, which is the number of filters.
        kernel_size: Depth, height and width of a filter.
        stride: The step in the output for one step in the input. Default: ``1``.
        padding: How much is cut off the output, before and after. Default: ``0``.
        dilation: The distance in the output of neighbours in the filter. Default: ``1``.
        output_padding: How much longer the output is at its end, to tell apart the input sizes that a convolution with this
            stride maps to one output size. Default: ``0``.
        bias: Whether to add :math:`b`. Default: ``True``.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

        One int for a size, ``kernel_size`` to ``output_padding``, is for all three.

    Shapes:
        ``weight`` is ``[out_channels, *kernel_size, in_channels]``, ``bias`` ``[out_channels]`` or ``None``;
        input ``[N, D, H, W, in_channels]``, output ``[N, D', H', W', out_channels]``, where
        ``D' = (D - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a number other than ``padding`` and ``output_padding`` is not positive, or a size is neither an int
            nor three; in a call, if the input is not of the shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.ConvTranspose3d(4, 2, 3, stride=(2, 1, 1))
    >>> layer.weight.shape, layer(mx.ones((1, 2, 3, 4, 4))).shape
    ((2, 3, 3, 3, 4), (1, 5, 5, 6, 2))
    """

    stride: tuple[int, int, int] = static(validator=positive)
    padding: tuple[int, int, int] = static()
    dilation: int | tuple[int, int, int] = static(validator=positive)
    output_padding: tuple[int, int, int] = static()

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        dilation: int | tuple[int, int, int] = 1,
        output_padding: int | tuple[int, int, int] = 0,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        self.stride = sizes(self, "stride", stride, 3)
        self.padding = sizes(self, "padding", padding, 3)
        self.dilation = dilation if isinstance(dilation, int) else sizes(self, "dilation", dilation, 3)
        self.output_padding = sizes(self, "output_padding", output_padding, 3)
        super().__init__(in_channels, out_channels, sizes(self, "kernel_size", kernel_size, 3), 1, bias, dtype, key)

    def __call__(self, x: mx.array) -> mx.array:
        x = self._fitting(x)
        return self._convolved(mx.conv_transpose3d, x, self.stride, self.padding, self.dilation, self.output_padding)
