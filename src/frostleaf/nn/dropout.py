"""Layers that set a part of their input to zero at random while a model is trained."""

from __future__ import annotations

import attrs
import mlx.core as mx

from ..fields import static
from ..module import Module


class Dropout(Module):
    r"""Set each element to zero with probability :math:`p`, and divide the others by :math:`1 - p`.

    So the expected value of each element stays what it is. In evaluation mode the input is returned as it is.
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

    p: float = static(validator=[attrs.validators.ge(0), attrs.validators.lt(1)])

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, x: mx.array, *, key: mx.array | None = None) -> mx.array:
        """Return ``x`` with elements dropped.

        Args:
            x: Any array of numbers.
            key: Draws what is dropped. Default: ``mx.random``'s own state.
        """
        keep = 1 - self.p
        if keep == 1 or not self.training:
            return x
        return (mx.random.bernoulli(keep, x.shape, key) * x) * (1 / keep)
