"""Convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import mlx.core as mx

from ..core.fields import static
from ..module import Module
from .checks import misfit, positive, size, sizes
from .dtypes import layer_dtype
from .initial import uniform

# An int for each axis of the filters.
Size = TypeVar("Size", bound=int | tuple[int, ...])

# What the axes between batch and channels are called, by their number.
AXES = {1: "L", 2: "H, W", 3: "D, H, W"}


class _Convolution(Module, Generic[Size]):
    """Hold the filters of a convolution and a bias for each, and check the input."""

    _rank: ClassVar[int]
    _convolve: ClassVar[Callable[..., mx.array]]

    weight: mx.array
    bias: mx.array | None
    stride: Size = static(validator=positive)
    padding: Size = static()
    dilation: int | Size = static(validator=positive)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Size,
        stride: int | Size,
        padding: int | Size,
        dilation: int | Size,
        groups: int,
        bias: bool,
        dtype: mx.Dtype | None,
        key: mx.array | None,
    ) -> None:
        self.stride = self._sizes("stride", stride)
        self.padding = self._sizes("padding", padding)
        self.dilation = dilation if isinstance(dilation, int) else self._sizes("dilation", dilation)
        dtype = layer_dtype(dtype)
        in_channels, out_channels = size(self, "in_channels", in_channels), size(self, "out_channels", out_channels)
        lengths = [size(self, "kernel_size", each) for each in sizes(self, "kernel_size", kernel_size, self._rank)]
        for side, channels in ("in", in_channels), ("out", out_channels):
            if channels % groups != 0:
                rule = f"{side}_channels must be a multiple of groups"
                raise ValueError(f"{channels} {side}put channels can't be divided into {groups} groups: {rule}")
        scale = math.sqrt(1 / (in_channels // groups * math.prod(lengths)))
        self.weight = uniform(scale, (out_channels, *lengths, in_channels // groups), dtype, key)
        self.bias = mx.zeros((out_channels,), dtype) if bias else None

    def _sizes(self, name: str, value: Any) -> Any:
        """Return ``value`` as an int where the filters have one axis, and else as an int for each axis."""
        values = sizes(self, name, value, self._rank)
        return values[0] if self._rank == 1 else values

    def _check_channels(self, x: mx.array, groups: int = 1) -> None:
        channels = self.weight.shape[-1] * groups
        if x.ndim != self.weight.ndim or x.shape[-1] != channels:
            raise misfit(self, f"[N, {AXES[self._rank]}, {channels}]", x)

    def _check_covered(self, x: mx.array, groups: int = 1) -> None:
        """Check that the input has the channels, and is no smaller than the filters with their gaps."""
        self._check_channels(x, groups)
        paddings = sizes(self, "padding", self.padding, self._rank)
        dilations = sizes(self, "dilation", self.dilation, self._rank)
        windows = zip(self.weight.shape[1:-1], paddings, dilations, strict=True)
        least = [gap * (window - 1) + 1 - 2 * zeros for window, zeros, gap in windows]
        if any(length < needed for length, needed in zip(x.shape[1:-1], least, strict=True)):
            shown = ", ".join(f"{max(needed, 1)} or more" for needed in least)
            raise misfit(self, f"[N, {shown}, {x.shape[-1]}]", x)

    def _convolved(self, x: mx.array, *options: Any) -> mx.array:
        """Convolve an input that was checked, and add the bias."""
        try:
            y = self._convolve(x, self.weight, *options)
        except (TypeError, ValueError) as error:
            raise misfit(self, f"[N, {AXES[self._rank]}, {x.shape[-1]}]", x, error) from error
        return y if self.bias is None else y + self.bias


class _GroupedConvolution(_Convolution[Size]):
    groups: int = static()

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Size,
        stride: int | Size = 1,
        padding: int | Size = 0,
        dilation: int | Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        self.groups = size(self, "groups", groups)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, self.groups, bias, dtype, key)

    def __call__(self, x: mx.array) -> mx.array:
        self._check_covered(x, self.groups)
        return self._convolved(x, self.stride, self.padding, self.dilation, self.groups)


class Conv1d(_GroupedConvolution[int], init=False):
    r"""Sum, at each position of a sequence, the products of the filters with the values they cover.

    .. math:: y_{nlo} = b_o + \sum_{ic} W_{oic}\, x_{n,\,s l + d i - p,\,c}

    Here :math:`s` is the stride, :math:`d` the dilation and :math:`p` the padding; outside of the sequence :math:`x` is 0.
    The weight starts uniform in :math:`[-k, k)`, where :math:`k` is one over the square root of the number of products
    in an output, and the bias starts at 0.

    With ``groups``, MLX's ``vmap`` gives wrong numbers, and no error, where the weight is mapped and the input is not. An
    ensemble of such layers needs an input for each: ``mx.broadcast_to(x, (count, *x.shape))``, mapped as well.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels, which is the number of filters.
        kernel_size: The length of a filter.
        stride: The step between one position of the filter and the next. Default: ``1``.
        padding: The number of zeros put before and after the sequence. Default: ``0``.
        dilation: The distance in the sequence between neighbours in the filter. Default: ``1``.
        groups: The number of groups that the channels are divided into; a filter covers one group. Default: ``1``.
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

    _rank = 1
    _convolve = staticmethod(mx.conv1d)


class Conv2d(_GroupedConvolution[tuple[int, int]], init=False):
    r"""Sum, at each position of an image, the products of the filters with the values they cover.

    .. math:: y_{nhwo} = b_o + \sum_{ijc} W_{oijc}\, x_{n,\,s h + d i - p,\,s w + d j - p,\,c}

    Here :math:`s` is the stride, :math:`d` the dilation and :math:`p` the padding; outside of the image :math:`x` is 0.
    The weight starts uniform in :math:`[-k, k)`, where :math:`k` is one over the square root of the number of products
    in an output, and the bias starts at 0.

    With ``groups``, MLX's ``vmap`` gives wrong numbers, and no error, where the weight is mapped and the input is not. An
    ensemble of such layers needs an input for each: ``mx.broadcast_to(x, (count, *x.shape))``, mapped as well.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels, which is the number of filters.
        kernel_size: Height and width of a filter.
        stride: The step between one position of the filter and the next. Default: ``1``.
        padding: The number of zeros put before and after the image. Default: ``0``.
        dilation: The distance in the image between neighbours in the filter. Default: ``1``.
        groups: The number of groups that the channels are divided into; a filter covers one group. Default: ``1``.
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

    _rank = 2
    _convolve = staticmethod(mx.conv2d)


class Conv3d(_Convolution[tuple[int, int, int]]):
    r"""Sum, at each position of a volume, the products of the filters with the values they cover.

    .. math:: y_{nvhwo} = b_o + \sum_{mijc} W_{omijc}\, x_{n,\,s v + d m - p,\,s h + d i - p,\,s w + d j - p,\,c}

    Here :math:`s` is the stride, :math:`d` the dilation and :math:`p` the padding; outside of the volume :math:`x` is 0.
    The weight starts uniform in :math:`[-k, k)`, where :math:`k` is one over the square root of the number of products
    in an output, and the bias starts at 0. There are no groups: MLX's convolution has none in three dimensions.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels, which is the number of filters.
        kernel_size: Depth, height and width of a filter.
        stride: The step between one position of the filter and the next. Default: ``1``.
        padding: The number of zeros put before and after the volume. Default: ``0``.
        dilation: The distance in the volume between neighbours in the filter. Default: ``1``.
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

    _rank = 3
    _convolve = staticmethod(mx.conv3d)

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
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, 1, bias, dtype, key)

    def __call__(self, x: mx.array) -> mx.array:
        self._check_covered(x)
        return self._convolved(x, self.stride, self.padding, self.dilation)
