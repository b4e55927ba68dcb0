"""Transposed convolutions: the gradients of convolutions, which enlarge their input."""

from __future__ import annotations

import mlx.core as mx

from ..core.fields import static
from .convolution import Size, _Convolution


class _ConvTranspose(_Convolution[Size]):
    output_padding: Size = static()

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Size,
        stride: int | Size = 1,
        padding: int | Size = 0,
        dilation: int | Size = 1,
        output_padding: int | Size = 0,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        self.output_padding = self._sizes("output_padding", output_padding)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, 1, bias, dtype, key)

    def __call__(self, x: mx.array) -> mx.array:
        self._check_channels(x)
        return self._convolved(x, self.stride, self.padding, self.dilation, self.output_padding)


class ConvTranspose1d(_ConvTranspose[int], init=False):
    r"""Add up, around each position of a sequence, the filters times the values at that position.

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
        dilation: The distance in the output between neighbours in the filter. Default: ``1``.
        output_padding: How much longer the output is at its end, since a convolution with this stride maps several input
            sizes to one output size. Default: ``0``.
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

    _rank = 1
    _convolve = staticmethod(mx.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose[tuple[int, int]], init=False):
    r"""Add up, around each position of an image, the filters times the values at that position.

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
        dilation: The distance in the output between neighbours in the filter. Default: ``1``.
        output_padding: How much longer the output is at its end, since a convolution with this stride maps several input
            sizes to one output size. Default: ``0``.
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

    _rank = 2
    _convolve = staticmethod(mx.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose[tuple[int, int, int]], init=False):
    r"""Add up, around each position of a volume, the filters times the values at that position.

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
        dilation: The distance in the output between neighbours in the filter. Default: ``1``.
        output_padding: How much longer the output is at its end, since a convolution with this stride maps several input
            sizes to one output size. Default: ``0``.
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

    _rank = 3
    _convolve = staticmethod(mx.conv_transpose3d)
