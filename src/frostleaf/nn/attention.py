"""Attention."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from ..core.fields import static
from ..core.words import describe
from ..module import Module
from ..transforms.context import is_shapeless
from .checks import MisfitError, because, size
from .initial import split
from .linear import Linear


class MultiHeadAttention(Module):
    r"""Average the values for each query, weighted by how well their keys fit the query, in several heads.

    .. math::

        y = [a_1, \dots, a_h]\, W_o^\top, \qquad
        a_i = \mathrm{softmax}\!\left(\frac{q_i k_i^\top}{\sqrt{d}} + M\right) v_i

    Here :math:`q_i`, :math:`k_i` and :math:`v_i` are what head :math:`i` has of the projections :math:`x_q W_q^\top`,
    :math:`x_k W_k^\top` and :math:`x_v W_v^\top` of the inputs, :math:`d` is the length of :math:`q_i`, and :math:`M` the mask.
    Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_.

    Args:
        dims: The length of queries and keys after projection, all heads together; a multiple of ``num_heads``.
        num_heads: The number of heads, :math:`h`.
        query_input_dims: The length of queries before projection. Default: ``dims``.
        key_input_dims: The length of keys before projection. Default: ``dims``.
        value_input_dims: The length of values before projection. Default: ``key_input_dims``.
        value_dims: The length of values after projection; a multiple of ``num_heads``. Default: ``dims``.
        value_output_dims: The length of the output. Default: ``dims``.
        bias: Whether the projections add a bias. Default: ``False``.
        dtype: The dtype of the projections. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``query_proj``, ``key_proj``, ``value_proj`` and ``out_proj`` are each a :class:`Linear`;
        queries ``[N, L, query_input_dims]``, keys ``[N, S, key_input_dims]``, values ``[N, S, value_input_dims]``,
        output ``[N, L, value_output_dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int, or ``dims`` or ``value_dims`` is not a multiple of ``num_heads``; in a
            call, if queries, keys, values or the mask are not of the shapes above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.MultiHeadAttention(8, 2)
    >>> layer
    MultiHeadAttention(
      query_proj=Linear(weight=f32[8,8], bias=None),
      key_proj=Linear(weight=f32[8,8], bias=None),
      value_proj=Linear(weight=f32[8,8], bias=None),
      out_proj=Linear(weight=f32[8,8], bias=None),
      num_heads=2,
    )
    >>> x = mx.ones((1, 5, 8))
    >>> layer(x, x, x, "causal").shape
    (1, 5, 8)
    """

    query_proj: Linear
    key_proj: Linear
    value_proj: Linear
    out_proj: Linear
    num_heads: int = static()

    def __init__(
        self,
        dims: int,
        num_heads: int,
        query_input_dims: int | None = None,
        key_input_dims: int | None = None,
        value_input_dims: int | None = None,
        value_dims: int | None = None,
        value_output_dims: int | None = None,
        bias: bool = False,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        key_input_dims = key_input_dims or dims
        value_dims = value_dims or dims
        num_heads = size(self, "num_heads", num_heads)
        for name, value in ("dims", dims), ("value_dims", value_dims):
            if size(self, name, value) % num_heads != 0:
                among = f"among {num_heads} heads: {name} must be a multiple of num_heads"
                raise ValueError(f"{value} dimensions can't be divided {among}")
        keys = split(key, 4)
        self.num_heads = num_heads
        self.query_proj = Linear(query_input_dims or dims, dims, bias, dtype=dtype, key=keys[0])
        self.key_proj = Linear(key_input_dims, dims, bias, dtype=dtype, key=keys[1])
        self.value_proj = Linear(value_input_dims or key_input_dims, value_dims, bias, dtype=dtype, key=keys[2])
        self.out_proj = Linear(value_dims, value_output_dims or dims, bias, dtype=dtype, key=keys[3])

    def __call__(self, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None = None) -> mx.array:
        """Return the average of the values for each query.

        Args:
            queries: A batch of sequences that attend.
            keys: A batch of sequences that they attend to.
            values: What is averaged, one for each key.
            mask: Which keys a query sees, an array that broadcasts to ``[N, num_heads, L, S]``: of booleans, ``True`` for a key
                that it sees, or of numbers :math:`M` that are added, ``-inf`` for a key that it doesn't. With ``"causal"`` each
                query sees the keys up to its own position; the last query is at the last key. Default: ``None``, all keys.
        """
        if not (queries.ndim == 3 and keys.ndim == 3 and keys.shape[:2] == values.shape[:-1] and len(queries) == len(keys)):
            raise self._misfit(queries, keys, values, mask)
        try:
            q = self._heads(self.query_proj(queries))
            k = self._heads(self.key_proj(keys))
            v = self._heads(self.value_proj(values))
        except MisfitError as error:
            raise self._misfit(queries, keys, values, mask, error) from error
        try:
            scale = math.sqrt(1 / q.shape[-1])
            if is_shapeless() and (isinstance(mask, mx.array) or mask == "causal"):
                averages = _attend(q, k, v, scale, _causal(q, k) if isinstance(mask, str) else mask)
            else:
                averages = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        except (TypeError, ValueError) as error:
            raise self._misfit(queries, keys, values, mask, error) from error
        return self.out_proj(averages.transpose(0, 2, 1, 3).flatten(-2))

    def _misfit(self, queries: Any, keys: Any, values: Any, mask: Any, error: Exception | None = None) -> MisfitError:
        given = f"{describe(queries)}, {describe(keys)}, {describe(values)} and {describe(mask)}{because(error)}"
        return MisfitError(
            f"{type(self).__name__} takes queries [N, L, ...], keys [N, S, ...] and values [N, S, ...], of the same N and S, "
            f"and as mask None, 'causal' or an array that broadcasts to [N, {self.num_heads}, L, S], and was given {given}. "
            f"The layer is {self!r}"
        )

    def _heads(self, x: mx.array) -> mx.array:
        """Return ``x`` ``[N, L, num_heads * d]`` as ``[N, num_heads, L, d]``."""
        return mx.unflatten(x, -1, (self.num_heads, -1)).transpose(0, 2, 1, 3)

    @staticmethod
    def create_additive_causal_mask(N: int, dtype: mx.Dtype = mx.float32) -> mx.array:  # noqa: N803
        """Return a mask that lets each of ``N`` positions see itself and those before it.

        Args:
            N: The number of positions.
            dtype: The dtype of the mask, no wider than that of the queries. Default: ``mx.float32``.

        Returns:
            An array of shape ``[N, N]``: 0 where a position is seen, the least number of the dtype where it isn't.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.MultiHeadAttention.create_additive_causal_mask(3, mx.float16) == 0
        array([[True, False, False],
               [True, True, False],
               [True, True, True]], dtype=bool)
        """
        positions = mx.arange(N)
        return (positions[:, None] < positions).astype(dtype) * mx.finfo(dtype).min


def _causal(q: mx.array, k: mx.array) -> mx.array:
    """Return which keys each query sees, with positions counted from the last, whatever their number."""
    left_q, left_k = (mx.cumsum(mx.ones_like(x.max(axis=-1), dtype=mx.int32), axis=-1, reverse=True) for x in (q, k))
    return left_q[..., None] <= left_k[..., None, :]


def _attend(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array) -> mx.array:
    """Compute attention as MLX does, which broadcasts the mask to the shape that it has when it is traced."""
    scores = (q * scale) @ k.swapaxes(-1, -2)
    if mask.dtype == mx.bool_:
        scores = mx.where(mask, scores, mx.array(mx.finfo(scores.dtype).min, scores.dtype))
    elif mx.result_type(mask, scores) == scores.dtype:
        scores = scores + mask
    else:
        raise ValueError("the mask is of a wider dtype than queries and keys")
    return mx.softmax(scores, axis=-1, precise=True) @ v
