"""Layers that tell a model the position of each element in a sequence."""

from __future__ import annotations

import math
from typing import Any

import attrs
import mlx.core as mx

from ..core.fields import static
from ..core.words import describe
from ..module import Module
from .checks import misfit, number, positive
from .dtypes import layer_dtype


def _require_pairs(layer: Module, _: attrs.Attribute[int], dims: int) -> None:
    if not hasattr(dims, "__index__") or dims <= 0 or dims % 2 != 0:
        cls = type(layer).__name__
        raise ValueError(
            f"{cls} works on pairs of features, so dims must be a positive even int, and was given as {describe(dims)}"
        )


class RoPE(Module):
    r"""Rotate each pair of features by an angle that grows with the position.

    .. math::
        \begin{pmatrix} y_a \\ y_b \end{pmatrix} =
        \begin{pmatrix} \cos \theta & -\sin \theta \\ \sin \theta & \cos \theta \end{pmatrix}
        \begin{pmatrix} x_a \\ x_b \end{pmatrix},
        \qquad \theta = \mathtt{scale} \cdot (\mathtt{offset} + t) \cdot \mathtt{base}^{-2 i / \mathtt{dims}}

    Here :math:`t` is the position and :math:`i` the number of the pair, whose features are :math:`a = i` and
    :math:`b = i + \mathtt{dims} / 2`, or in the traditional order :math:`a = 2 i` and :math:`b = 2 i + 1`.
    The product of two rotated vectors depends on the distance between their positions, not on the positions.
    Su et al., `RoFormer: enhanced Transformer with rotary position embedding <https://arxiv.org/abs/2104.09864>`_.

    Args:
        dims: How many features are rotated, from the first on; the others stay as they are.
        traditional: Whether neighbours are a pair, which is slower. Default: ``False``.
        base: The larger it is, the slower the last pairs rotate. Default: ``10000``.
        scale: Multiplies the positions. Default: ``1.0``.

    Shapes:
        Input and output ``[B, ..., L, D]``, with at least three axes and ``D >= dims``.

    Raises:
        ValueError: If ``dims`` is not positive and even, ``base`` not positive, or ``scale`` no number; in a call, if the
            input is not of the shape above or not of a floating-point dtype, or the offset is not as described below.

    >>> import frostleaf as fl, mlx.core as mx
    >>> rope = fl.nn.RoPE(2)
    >>> rope
    RoPE(dims=2, traditional=False, base=10000, scale=1.0)
    >>> rope(mx.array([[[1.0, 0.0], [1.0, 0.0]]])).round(2)
    array([[[1, 0],
            [0.54, 0.84]]], dtype=float32)
    """

    dims: int = static(validator=_require_pairs)
    traditional: bool = static(default=False)
    base: float = static(default=10000, validator=positive)
    scale: float = static(default=1.0, validator=number)

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """Rotate the features of ``x``.

        Args:
            x: Queries or keys.
            offset: The position of the first element: an int, or an array that is scalar or has one for each element of
                the batch. ``fl.jit`` traces again for each new int, but not for a new array. Default: ``0``.
        """
        if x.ndim < 3 or x.shape[-1] < self.dims:
            raise misfit(self, f"[B, ..., L, D] with at least three axes and D >= {self.dims}", x)
        if isinstance(offset, mx.array) and offset.shape not in ((), (1,), x.shape[:1]):
            raise self._bad_offset(x, offset)
        try:
            return mx.fast.rope(x, self.dims, traditional=self.traditional, base=self.base, scale=self.scale, offset=offset)
        except (TypeError, ValueError) as error:
            if mx.issubdtype(x.dtype, mx.floating):
                raise self._bad_offset(x, offset) from error
            raise misfit(self, f"[B, ..., L, D], of a floating-point dtype, with D >= {self.dims}", x) from error

    def _bad_offset(self, x: mx.array, offset: Any) -> ValueError:
        return ValueError(
            "RoPE takes as offset an int, or an array that is scalar or has one for each element of the batch, and was given "
            f"{describe(offset)} with an input {describe(x)}. The layer is {self!r}"
        )


class SinusoidalPositionalEncoding(Module):
    r"""Compute the sines and the cosines of each position, at frequencies from ``max_freq`` down to ``min_freq``.

    .. math:: y = s \cdot [\sin(\omega_0 x), \dots, \sin(\omega_{n-1} x), \cos(\omega_0 x), \dots, \cos(\omega_{n-1} x)]

    .. math::
        \omega_i = \mathtt{max\_freq}^{1 - i / (n - 1)} \cdot \mathtt{min\_freq}^{i / (n - 1)},
        \qquad n = \mathtt{dims} / 2

    The layer holds no arrays: frequencies and sines are computed in float32 from its numbers, since bfloat16 does not have
    positions such as 257.
    Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_.

    Args:
        dims: The number of sines and cosines.
        min_freq: The lowest frequency. Default: ``0.0001``.
        max_freq: The highest frequency, and the only one where ``dims`` is 2. Default: ``1``.
        scale: The factor :math:`s`. Default: ``sqrt(2 / dims)``, with which the vectors are of length 1.
        cos_first: Whether the cosines come before the sines. Default: ``False``.
        full_turns: Whether frequencies are in turns: :math:`2 \pi \omega_i` rather than :math:`\omega_i`. Default: ``False``.
        dtype: The dtype of the output, unless that of the positions is wider. Default: that of
            :func:`frostleaf.default_dtype`.

    Shapes:
        Input ``[...]``, output ``[..., dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one.
        ValueError: If ``dims`` is not positive and even, ``min_freq`` or ``max_freq`` not positive, or ``scale`` no number.

    >>> import frostleaf as fl, mlx.core as mx
    >>> encoding = fl.nn.SinusoidalPositionalEncoding(4, min_freq=0.1, scale=1)
    >>> encoding(mx.arange(2)).round(2)
    array([[0, 0, 1, 1],
           [0.84, 0.1, 0.54, 1]], dtype=float32)
    """

    dims: int = static(validator=_require_pairs)
    min_freq: float = static(validator=positive)
    max_freq: float = static(validator=positive)
    scale: float = static(validator=number)
    cos_first: bool = static()
    full_turns: bool = static()
    dtype: mx.Dtype = static()

    def __init__(
        self,
        dims: int,
        min_freq: float = 0.0001,
        max_freq: float = 1,
        scale: float | None = None,
        cos_first: bool = False,
        full_turns: bool = False,
        *,
        dtype: mx.Dtype | None = None,
    ) -> None:
        self.dims = dims
        self.min_freq = min_freq
        self.max_freq = max_freq
        self.scale = (2 / dims) ** 0.5 if scale is None else scale
        self.cos_first = cos_first
        self.full_turns = full_turns
        self.dtype = layer_dtype(dtype)

    def __call__(self, x: mx.array) -> mx.array:
        x = x if isinstance(x, mx.array) else mx.array(x)
        angles = x[..., None] * self._frequencies()
        waves = [mx.sin(angles), mx.cos(angles)]
        y = mx.concatenate(waves[::-1] if self.cos_first else waves, -1)
        if self.scale != 1:
            y = y * self.scale
        return y.astype(mx.result_type(x, self.dtype))

    def _frequencies(self) -> mx.array:
        # Not a buffer, which astype would cast; mlx.nn's set_dtype does not cast its frequencies either.
        count = self.dims // 2
        falling = 1 - mx.arange(0, count) / (count - 1) if count > 1 else mx.array([1.0])
        low, high = math.log(self.min_freq), math.log(self.max_freq)
        frequencies = mx.exp(falling * (high - low) + low)
        return frequencies * (2 * math.pi) if self.full_turns else frequencies


class ALiBi(Module):
    r"""Subtract from the scores of attention a penalty that grows with the distance between query and key.

    .. math:: y_{bhij} = x_{bhij} - m_h \, |\mathtt{offset} + i - j| + \mathtt{mask}_{bhij}

    The slopes :math:`m_h` are fixed: for :math:`n` heads, a power of two, they are :math:`2^{-8 h / n}`, where :math:`h`
    is counted from 1; for other numbers they are those of the power of two below, and then every other one of those of the
    power of two above.
    Press et al., `Train short, test long: attention with linear biases enables input length extrapolation
    <https://arxiv.org/abs/2108.12409>`_.

    Shapes:
        Input and output ``[B, H, L, S]``: a score for each of ``H`` heads, ``L`` queries and ``S`` keys.

    Raises:
        ValueError: In a call, if the input is not of the shape above, the offset no int, or the mask does not broadcast.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.ALiBi()(mx.zeros((1, 4, 2, 3)))[0, 0]
    array([[0, -0.25, -0.5],
           [-0.25, 0, -0.25]], dtype=float32)
    """

    def __call__(self, attention_scores: mx.array, offset: int = 0, mask: mx.array | None = None) -> mx.array:
        """Add the bias to the scores, in their dtype unless that of the mask is wider.

        Args:
            attention_scores: The products of queries and keys.
            offset: The position of the first query; the first key is at 0. Default: ``0``.
            mask: Added too, of a shape that broadcasts: 0 where a key is seen and ``-inf`` where it isn't. A boolean mask is
                added as 0 and 1. Default: none.
        """
        if attention_scores.ndim != 4:
            raise misfit(self, "[B, H, L, S]", attention_scores)
        _, heads, queries, keys = attention_scores.shape
        try:
            bias = self.create_alibi_matrix(queries + offset, keys, heads, offset, attention_scores.dtype)
        except TypeError as error:
            raise ValueError(f"ALiBi takes an int as offset, and was given {describe(offset)}") from error
        try:
            return attention_scores + (bias if mask is None else bias + mask)
        except ValueError:
            wanted = f"a mask of a shape that broadcasts with the scores, {describe(attention_scores)}"
            raise ValueError(f"ALiBi takes {wanted}, and was given {describe(mask)}") from None

    @staticmethod
    def create_alibi_matrix(
        q_sequence_length: int,
        k_sequence_length: int,
        num_heads: int,
        offset: int = 0,
        dtype: mx.Dtype = mx.float32,
    ) -> mx.array:
        """Return the bias for queries at the positions from ``offset`` to ``q_sequence_length``.

        Args:
            q_sequence_length: The position after that of the last query.
            k_sequence_length: The number of keys.
            num_heads: The number of heads.
            offset: The position of the first query. Default: ``0``.
            dtype: The dtype of the result. Default: ``mx.float32``.

        Returns:
            An array of shape ``[1, num_heads, q_sequence_length - offset, k_sequence_length]``.

        Raises:
            ValueError: If ``num_heads`` is not positive.

        >>> import frostleaf as fl
        >>> fl.nn.ALiBi.create_alibi_matrix(4, 3, 8, offset=2)[0, 0]
        array([[-1, -0.5, 0],
               [-1.5, -1, -0.5]], dtype=float32)
        """
        distances = -mx.abs(mx.arange(offset, q_sequence_length)[:, None] - mx.arange(0, k_sequence_length))
        return (distances * ALiBi.create_alibi_slope(num_heads, dtype)).astype(dtype)[None]

    @staticmethod
    def create_alibi_slope(num_heads: int, dtype: mx.Dtype = mx.float32) -> mx.array:
        """Return the slopes of the heads.

        Args:
            num_heads: The number of heads.
            dtype: The dtype of the result. Default: ``mx.float32``.

        Returns:
            An array of shape ``[num_heads, 1, 1]``.

        Raises:
            ValueError: If ``num_heads`` is not positive.

        >>> import frostleaf as fl
        >>> fl.nn.ALiBi.create_alibi_slope(6).reshape(-1)
        array([0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125], dtype=float32)
        """
        if num_heads <= 0:
            raise ValueError(f"ALiBi has a slope for each head, and num_heads was given as {num_heads}: it must be positive")
        below = 2 ** (num_heads.bit_length() - 1)
        slopes = _slopes(below) + _slopes(2 * below)[0::2][: num_heads - below]
        return mx.array(slopes, dtype)[:, None, None]


def _slopes(heads: int) -> list[float]:
    """Return ``heads`` slopes in a geometric sequence that ends at 2 ** -8."""
    first: float = 2 ** -(8 / heads)
    return [first * first**power for power in range(heads)]
