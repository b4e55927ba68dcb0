"""Layers that take one value from each window of their input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import attrs
import mlx.core as mx

from ..core.fields import static
from ..core.words import describe
from ..module import Module
from .checks import misfit, positive, sizes
from .convolution import AXES

Size = TypeVar("Size", bound=tuple[int, ...])


def _for_each_axis(value: Any, pool: Any, field: attrs.Attribute[Any]) -> Any:
    return sizes(pool, field.name, value, pool._rank)


_sizes = attrs.Converter(_for_each_axis, takes_self=True, takes_field=True)


def _not_negative(pool: Any, field: attrs.Attribute[Any], value: tuple[int, ...]) -> None:
    if min(value) < 0:
        raise ValueError(f"{type(pool).__name__} takes {field.name} >= 0, and was given {describe(value)}")


class _Pool(Module, Generic[Size]):
    """Cut the input into windows and make one value of each."""

    _rank: ClassVar[int]
    _reduce: ClassVar[Callable[..., mx.array]]
    _padding_value: ClassVar[float]

    kernel_size: Size = static(converter=_sizes, validator=positive)
    stride: Size = static(converter=_sizes, validator=positive)
    padding: Size = static(converter=_sizes, validator=_not_negative)

    def __init__(self, kernel_size: int | Size, stride: int | Size | None = None, padding: int | Size = 0) -> None:
        unconverted: Any = kernel_size, kernel_size if stride is None else stride, padding
        self.kernel_size, self.stride, self.padding = unconverted

    def __call__(self, x: mx.array) -> mx.array:
        return self._reduce(self._windows(x), tuple(range(-self._rank - 1, -1)))

    def _windows(self, x: mx.array) -> mx.array:
        """Return the windows of ``x`` ``[N, *size, C]`` as an array of shape ``[N, *number, *kernel_size, C]``."""
        windows, rank = self.kernel_size, self._rank
        if x.ndim != rank + 2:
            raise misfit(self, f"[N, {AXES[rank]}, C]", x)
        padded = x
        if any(self.padding):
            padded = mx.pad(x, [(0, 0), *((each, each) for each in self.padding), (0, 0)], constant_values=self._padding_value)
        batch, *size, channels = padded.shape
        if windows == self.stride and all(length % window == 0 for length, window in zip(size, windows, strict=True)):
            # Windows that tile the input are a reshape of it, whose gradient is cheaper than that of as_strided.
            for axis, (length, window) in enumerate(zip(size, windows, strict=True)):
                padded = mx.unflatten(padded, 2 * axis + 1, (length // window, window))
            outer, inner = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
            return padded.transpose(0, *outer, *inner, 2 * rank + 1)
        number = [(length - window) // step + 1 for length, window, step in zip(size, windows, self.stride, strict=True)]
        if min(number) < 0:
            axes = zip(AXES[rank].split(", "), windows, self.padding, strict=True)
            least = ", ".join(f"{axis} >= {max(0, window - 2 * each)}" for axis, window, each in axes)
            raise misfit(self, f"[N, {least}, C]", x)
        strides = [channels]
        for length in reversed(size):
            strides.insert(0, strides[0] * length)
        steps = [each * step for each, step in zip(strides[1:], self.stride, strict=True)]
        return mx.as_strided(padded, (batch, *number, *windows, channels), (strides[0], *steps, *strides[1:], 1))


class _MaxPool(_Pool[Size], init=False):
    _reduce = staticmethod(mx.max)
    _padding_value = -math.inf


class _AvgPool(_Pool[Size], init=False):
    _reduce = staticmethod(mx.mean)
    _padding_value = 0


class MaxPool1d(_MaxPool[tuple[int]], init=False):
    r"""Return the largest value in each window of a sequence, channel by channel.

    .. math:: y_{nlc} = \max_{i}\, x_{n,\,s l + i - p,\,c}

    Here :math:`s` is the stride and :math:`p` the padding; outside of the sequence :math:`x` is :math:`-\infty`.

    Args:
        kernel_size: The length of the window.
        stride: The step between one window and the next. Default: ``kernel_size``.
        padding: How far the windows reach beyond the sequence, on each side. Default: ``0``.

    Each may be given as a tuple of one.

    Shapes:
        Input ``[N, L, C]``, output ``[N, L', C]``, where
        ``L' = (L + 2 * padding - kernel_size) // stride + 1``.

    Raises:
        ValueError: If ``kernel_size`` or ``stride`` is not positive, or ``padding`` is negative, or one of them is
            neither an int nor a tuple of one; in a call, if the input is not of three dimensions, or smaller than the window by
            more than a stride.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.MaxPool1d(3, stride=2)(mx.array([1, 5, 2, 0, 3]).reshape(1, 5, 1)).flatten()
    array([5, 3], dtype=int32)
    """

    _rank = 1


class MaxPool2d(_MaxPool[tuple[int, int]], init=False):
    r"""Return the largest value in each window of an image, channel by channel.

    .. math:: y_{nhwc} = \max_{ij}\, x_{n,\,s h + i - p,\,s w + j - p,\,c}

    Here :math:`s` is the stride and :math:`p` the padding; outside of the image :math:`x` is :math:`-\infty`.

    Args:
        kernel_size: Height and width of the window.
        stride: The step between one window and the next. Default: ``kernel_size``.
        padding: How far the windows reach beyond the image, on each side. Default: ``0``.

    One int is for the height and for the width.

    Shapes:
        Input ``[N, H, W, C]``, output ``[N, H', W', C]``, where
        ``H' = (H + 2 * padding - kernel_size) // stride + 1``.

    Raises:
        ValueError: If ``kernel_size`` or ``stride`` is not positive, or ``padding`` is negative, or one of them is
            neither an int nor two; in a call, if the input is not of four dimensions, or smaller than the window by
            more than a stride.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.MaxPool2d(2)
    >>> layer
    MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))
    >>> layer(mx.arange(16).reshape(1, 4, 4, 1)).reshape(2, 2)
    array([[5, 7],
           [13, 15]], dtype=int32)
    """

    _rank = 2


class MaxPool3d(_MaxPool[tuple[int, int, int]], init=False):
    r"""Return the largest value in each window of a volume, channel by channel.

    .. math:: y_{nvhwc} = \max_{mij}\, x_{n,\,s v + m - p,\,s h + i - p,\,s w + j - p,\,c}

    Here :math:`s` is the stride and :math:`p` the padding; outside of the volume :math:`x` is :math:`-\infty`.

    Args:
        kernel_size: Depth, height and width of the window.
        stride: The step between one window and the next. Default: ``kernel_size``.
        padding: How far the windows reach beyond the volume, on each side. Default: ``0``.

    One int is for all three.

    Shapes:
        Input ``[N, D, H, W, C]``, output ``[N, D', H', W', C]``, where
        ``D' = (D + 2 * padding - kernel_size) // stride + 1``.

    Raises:
        ValueError: If ``kernel_size`` or ``stride`` is not positive, or ``padding`` is negative, or one of them is
            neither an int nor three; in a call, if the input is not of five dimensions, or smaller than the window by
            more than a stride.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.MaxPool3d((1, 2, 2))(mx.arange(8).reshape(1, 2, 2, 2, 1)).flatten()
    array([3, 7], dtype=int32)
    """

    _rank = 3


class AvgPool1d(_AvgPool[tuple[int]], init=False):
    r"""Return the mean in each window of a sequence, channel by channel.

    .. math:: y_{nlc} = \frac{1}{k} \sum_{i}\, x_{n,\,s l + i - p,\,c}

    Here :math:`s` is the stride, :math:`p` the padding and :math:`k` the kernel size; outside of the sequence :math:`x` is 0.
    These zeros count towards the mean.

    Args:
        kernel_size: The length of the window.
        stride: The step between one window and the next. Default: ``kernel_size``.
        padding: How far the windows reach beyond the sequence, on each side. Default: ``0``.

    Each may be given as a tuple of one.

    Shapes:
        Input ``[N, L, C]``, output ``[N, L', C]``, where
        ``L' = (L + 2 * padding - kernel_size) // stride + 1``.

    Raises:
        ValueError: If ``kernel_size`` or ``stride`` is not positive, or ``padding`` is negative, or one of them is
            neither an int nor a tuple of one; in a call, if the input is not of three dimensions, or smaller than the window by
            more than a stride.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.AvgPool1d(2, padding=1)(mx.array([2.0, 4.0, 6.0, 8.0]).reshape(1, 4, 1)).flatten()
    array([1, 5, 4], dtype=float32)
    """

    _rank = 1


class AvgPool2d(_AvgPool[tuple[int, int]], init=False):
    r"""Return the mean in each window of an image, channel by channel.

    .. math:: y_{nhwc} = \frac{1}{k_h k_w} \sum_{ij}\, x_{n,\,s h + i - p,\,s w + j - p,\,c}

    Here :math:`s` is the stride, :math:`p` the padding and :math:`k` the kernel size; outside of the image :math:`x` is 0.
    These zeros count towards the mean.

    Args:
        kernel_size: Height and width of the window.
        stride: The step between one window and the next. Default: ``kernel_size``.
        padding: How far the windows reach beyond the image, on each side. Default: ``0``.

    One int is for the height and for the width.

    Shapes:
        Input ``[N, H, W, C]``, output ``[N, H', W', C]``, where
        ``H' = (H + 2 * padding - kernel_size) // stride + 1``.

    Raises:
        ValueError: If ``kernel_size`` or ``stride`` is not positive, or ``padding`` is negative, or one of them is
            neither an int nor two; in a call, if the input is not of four dimensions, or smaller than the window by
            more than a stride.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.AvgPool2d(2)(mx.arange(16).reshape(1, 4, 4, 1)).reshape(2, 2)
    array([[2.5, 4.5],
           [10.5, 12.5]], dtype=float32)
    """

    _rank = 2


class AvgPool3d(_AvgPool[tuple[int, int, int]], init=False):
    r"""Return the mean in each window of a volume, channel by channel.

    .. math:: y_{nvhwc} = \frac{1}{k_d k_h k_w} \sum_{mij}\, x_{n,\,s v + m - p,\,s h + i - p,\,s w + j - p,\,c}

    Here :math:`s` is the stride, :math:`p` the padding and :math:`k` the kernel size; outside of the volume :math:`x` is 0.
    These zeros count towards the mean.

    Args:
        kernel_size: Depth, height and width of the window.
        stride: The step between one window and the next. Default: ``kernel_size``.
        padding: How far the windows reach beyond the volume, on each side. Default: ``0``.

    One int is for all three.

    Shapes:
        Input ``[N, D, H, W, C]``, output ``[N, D', H', W', C]``, where
        ``D' = (D + 2 * padding - kernel_size) // stride + 1``.

    Raises:
        ValueError: If ``kernel_size`` or ``stride`` is not positive, or ``padding`` is negative, or one of them is
            neither an int nor three; in a call, if the input is not of five dimensions, or smaller than the window by
            more than a stride.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.AvgPool3d(2)(mx.arange(8).reshape(1, 2, 2, 2, 1)).flatten()
    array([3.5], dtype=float32)
    """

    _rank = 3
