"""Layers that take one value from each window of their input."""

from __future__ import annotations

import mlx.core as mx
from attrs import validators

from ..fields import static
from ..module import Module
from .checks import misfit, sizes


class MaxPool2d(Module):
    r"""Return the largest value in each window of an image, channel by channel.

    .. math:: y_{nhwc} = \max_{ij}\, x_{n,\,s h + i - p,\,s w + j - p,\,c}

    Here :math:`s` is the stride and :math:`p` the padding; outside of the image :math:`x` is :math:`-\infty`.

    Args:
        kernel_size: Height and width of the window.
        stride: The step between one window and the next. Default: ``kernel_size``.
        padding: How far the windows reach beyond the image, on each side. Default: ``0``.

        One int is for the height and for the width.

    Shapes:
        Input ``[N, H, W, C]``, output ``[N, H', W', C]``, where ``H' = (H + 2 * padding - kernel_size) // stride + 1``.

    Raises:
        ValueError: If ``kernel_size`` or ``stride`` is not positive, or ``padding`` is negative, or one of them is
            neither an int nor two; in a call, if the input is not of four dimensions.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.MaxPool2d(2)
    >>> layer
    MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))
    >>> layer(mx.arange(16).reshape(1, 4, 4, 1)).reshape(2, 2)
    array([[5, 7],
           [13, 15]], dtype=int32)
    """

    kernel_size: tuple[int, int] = static(validator=validators.deep_iterable(validators.gt(0)))
    stride: tuple[int, int] = static(validator=validators.deep_iterable(validators.gt(0)))
    padding: tuple[int, int] = static(validator=validators.deep_iterable(validators.ge(0)))

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        self.kernel_size = sizes("kernel_size", kernel_size, 2)
        self.stride = self.kernel_size if stride is None else sizes("stride", stride, 2)
        self.padding = sizes("padding", padding, 2)

    def __call__(self, x: mx.array) -> mx.array:
        if x.ndim != 4:
            raise misfit(self, "[N, H, W, C]", x)
        return mx.max(_windows(x, self.kernel_size, self.stride, self.padding, -float("inf")), (-3, -2))


def _windows(
    x: mx.array, kernel_size: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], outside: float
) -> mx.array:
    """Return the windows of ``x`` ``[N, *size, C]`` as an array of shape ``[N, *number, *kernel_size, C]``."""
    if any(padding):
        x = mx.pad(x, [(0, 0), *((each, each) for each in padding), (0, 0)], constant_values=outside)
    batch, *size, channels = x.shape
    rank = len(size)
    if kernel_size == stride and all(length % window == 0 for length, window in zip(size, kernel_size, strict=True)):
        # Windows that tile the image are a reshape of it, whose gradient is cheaper than that of as_strided.
        split = [part for length, window in zip(size, kernel_size, strict=True) for part in (length // window, window)]
        outer, inner = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
        return x.reshape(batch, *split, channels).transpose(0, *outer, *inner, 2 * rank + 1)
    number = [(length - window) // step + 1 for length, window, step in zip(size, kernel_size, stride, strict=True)]
    strides = [channels]
    for length in reversed(size):
        strides.insert(0, strides[0] * length)
    steps = [each * step for each, step in zip(strides[1:], stride, strict=True)]
    return mx.as_strided(x, (batch, *number, *kernel_size, channels), (strides[0], *steps, *strides[1:], 1))
