"""Layers that set some of their input to zero, at random, while a model is trained."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import mlx.core as mx

from ..core.fields import static
from ..core.words import describe
from ..module import Module
from ..transforms.random import require_own_state
from .checks import REAL, misfit
from .initial import require_key


def _probability(layer: Module, _: attrs.Attribute[float], p: float) -> None:
    if not isinstance(p, REAL) or not 0 <= p < 1:
        raise ValueError(f"'p' must be >= 0 and < 1, and {type(layer).__name__} was given: {describe(p)}")


class _Dropout(Module):
    p: float = static(default=0.5, validator=_probability)

    def _drop(self, x: mx.array, shape: Sequence[int], key: mx.array | None) -> mx.array:
        """Drop elements of ``x``, by one draw for each element of an array of this shape, which broadcasts with ``x``."""
        keep = 1 - self.p
        if keep == 1 or not self.training:
            return x
        if key is None:
            require_own_state()
        try:
            mask = mx.random.bernoulli(keep, shape, key)
        except (TypeError, ValueError):
            require_key(key)
            raise
        return (mask * x) * (1 / keep)


class Dropout(_Dropout):
    r"""Set each element to zero with probability :math:`p`, and divide the others by :math:`1 - p`.

    The expected value of each element stays the same. In evaluation mode the input is returned as it is.
    Hinton et al., `Improving neural networks by preventing co-adaptation of feature detectors
    <https://arxiv.org/abs/1207.0580>`_.

    Args:
        p: The probability, in ``[0, 1)``. Default: ``0.5``.

    Shapes:
        Input and output of any shape.

    Raises:
        ValueError: If ``p`` is outside of ``[0, 1)``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Dropout(0.75)
    >>> layer(mx.ones(6), key=mx.random.key(0))
    array([0, 4, 0, 0, 0, 0], dtype=float32)
    >>> layer.eval()(mx.ones(6))
    array([1, 1, 1, 1, 1, 1], dtype=float32)
    """

    def __call__(self, x: mx.array, *, key: mx.array | None = None) -> mx.array:
        """Drop elements of ``x``.

        Args:
            x: Any array of numbers.
            key: Draws what is dropped. Default: the key of :func:`frostleaf.rng`, or else ``mx.random``'s own state.
        """
        return self._drop(x, x.shape, key)


class Dropout2d(_Dropout):
    r"""Set each channel of an image to zero with probability :math:`p`, and divide the others by :math:`1 - p`.

    A channel is dropped or kept as a whole, in each image by itself: neighbouring pixels are so alike that dropping single
    ones would hide nothing. In evaluation mode the input is returned as it is.
    Tompson et al., `Efficient object localization using convolutional networks <https://arxiv.org/abs/1411.4280>`_.

    Args:
        p: The probability, in ``[0, 1)``. Default: ``0.5``.

    Shapes:
        Input and output ``[N, H, W, C]`` or ``[H, W, C]``.

    Raises:
        ValueError: If ``p`` is outside of ``[0, 1)``; in a call, if the input is not of a shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Dropout2d()(mx.ones((1, 2, 6)), key=mx.random.key(0))
    array([[[0, 2, 0, 0, 0, 2],
            [0, 2, 0, 0, 0, 2]]], dtype=float32)
    """

    def __call__(self, x: mx.array, *, key: mx.array | None = None) -> mx.array:
        """Drop channels of ``x``.

        Args:
            x: One image or several.
            key: Draws what is dropped. Default: the key of :func:`frostleaf.rng`, or else ``mx.random``'s own state.
        """
        if x.ndim not in (3, 4):
            raise misfit(self, "[N, H, W, C] or [H, W, C]", x)
        return self._drop(x, (*x.shape[:-3], 1, 1, x.shape[-1]), key)


class Dropout3d(_Dropout):
    r"""Set each channel of a volume to zero with probability :math:`p`, and divide the others by :math:`1 - p`.

    :class:`Dropout2d` for inputs with a depth, such as videos and scans.

    Args:
        p: The probability, in ``[0, 1)``. Default: ``0.5``.

    Shapes:
        Input and output ``[N, D, H, W, C]`` or ``[D, H, W, C]``.

    Raises:
        ValueError: If ``p`` is outside of ``[0, 1)``; in a call, if the input is not of a shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Dropout3d()(mx.ones((1, 1, 2, 6)), key=mx.random.key(0))
    array([[[[0, 2, 0, 0, 0, 2],
             [0, 2, 0, 0, 0, 2]]]], dtype=float32)
    """

    def __call__(self, x: mx.array, *, key: mx.array | None = None) -> mx.array:
        """Drop channels of ``x``.

        Args:
            x: One volume or several.
            key: Draws what is dropped. Default: the key of :func:`frostleaf.rng`, or else ``mx.random``'s own state.
        """
        if x.ndim not in (4, 5):
            raise misfit(self, "[N, D, H, W, C] or [D, H, W, C]", x)
        return self._drop(x, (*x.shape[:-4], 1, 1, 1, x.shape[-1]), key)
