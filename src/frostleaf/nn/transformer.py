"""Attention, and the models made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import mlx.core as mx
from mlx.nn.layers.activations import relu

from ..fields import static
from ..module import Module
from ..transforms.checkpoint import checkpoint as checkpointed
from ..tree.compare import describe
from .checks import MisfitError, because, function, size, within
from .dropout import Dropout
from .dtypes import floating
from .initial import split
from .linear import Linear
from .normalization import LayerNorm

L = TypeVar("L", bound=Module)

INDIVISIBLE = "{size} dimensions can't be divided among {heads} heads: {name} must be a multiple of num_heads"
UNLIKE = (
    "{cls} takes queries [N, L, ...], keys [N, S, ...] and values [N, S, ...], of the same N and S, and as mask None, 'causal' "
    "or an array that broadcasts to [N, {heads}, L, S], and was given {queries}, {keys}, {values} and {mask}{reason}. "
    "The layer is {layer!r}"
)


class MultiHeadAttention(Module):
    r"""For each query, return the average of the values, weighted by how well their keys fit the query; head by head.

    .. math::

        y = [a_1, \dots, a_h]\, W_o^\top, \qquad
        a_i = \mathrm{softmax}\!\left(\frac{q_i k_i^\top}{\sqrt{d}} + M\right) v_i

    Here :math:`q_i`, :math:`k_i` and :math:`v_i` are the parts for head :math:`i` of the projections :math:`x_q W_q^\top`,
    :math:`x_k W_k^\top` and :math:`x_v W_v^\top` of what the layer is called with, :math:`d` is the length of such a query,
    and :math:`M` the mask.
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
                raise ValueError(INDIVISIBLE.format(size=value, heads=num_heads, name=name))
        keys = split(key, 4)
        self.num_heads = num_heads
        self.query_proj = Linear(query_input_dims or dims, dims, bias, dtype=dtype, key=keys[0])
        self.key_proj = Linear(key_input_dims, dims, bias, dtype=dtype, key=keys[1])
        self.value_proj = Linear(value_input_dims or key_input_dims, value_dims, bias, dtype=dtype, key=keys[2])
        self.out_proj = Linear(value_dims, value_output_dims or dims, bias, dtype=dtype, key=keys[3])

    def __call__(self, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None = None) -> mx.array:
        """Return what each query finds.

        Args:
            queries: What looks.
            keys: What is looked at.
            values: What is found there.
            mask: Where to look, an array that broadcasts to ``[N, num_heads, L, S]``: of booleans, ``True`` for a key that the
                query may see, or of numbers :math:`M` that are added, ``-inf`` or the like for a key that it may not.
                ``"causal"`` lets each query see the keys up to its own place, the last query being at the last key. Default:
                ``None``, everywhere.
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
            found = mx.fast.scaled_dot_product_attention(q, k, v, scale=math.sqrt(1 / q.shape[-1]), mask=mask)
        except (TypeError, ValueError) as error:
            raise self._misfit(queries, keys, values, mask, error) from error
        return self.out_proj(found.transpose(0, 2, 1, 3).flatten(-2))

    def _misfit(self, queries: Any, keys: Any, values: Any, mask: Any, error: Exception | None = None) -> MisfitError:
        shown = {"queries": describe(queries), "keys": describe(keys), "values": describe(values), "mask": describe(mask)}
        text = UNLIKE.format(cls=type(self).__name__, heads=self.num_heads, reason=because(error), layer=self, **shown)
        return MisfitError(text)

    def _heads(self, x: mx.array) -> mx.array:
        """Return ``x`` ``[N, L, num_heads * d]`` as ``[N, num_heads, L, d]``."""
        return mx.unflatten(x, -1, (self.num_heads, -1)).transpose(0, 2, 1, 3)

    @staticmethod
    def create_additive_causal_mask(N: int, dtype: mx.Dtype = mx.float32) -> mx.array:  # noqa: N803
        """Return a mask by which each of ``N`` places sees itself and those before it.

        Args:
            N: The number of places.
            dtype: The dtype of the mask, which must be able to become that of the queries. Default: ``mx.float32``.

        Returns:
            An array of shape ``[N, N]``: 0 for what is seen, the least number of the dtype for what is not.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.MultiHeadAttention.create_additive_causal_mask(3, mx.float16) == 0
        array([[True, False, False],
               [True, True, False],
               [True, True, True]], dtype=bool)
        """
        places = mx.arange(N)
        return (places[:, None] < places).astype(dtype) * mx.finfo(dtype).min


class TransformerEncoderLayer(Module):
    r"""Let each place of a sequence attend to all of them, and then pass through a network of two layers, place by place.

    .. math::

        h &= x + D_1(A(n_1(x))) \\
        y &= h + W_2\, D_2(f(W_1\, n_2(h) + b_1)) + b_2

    Here :math:`A` is :class:`MultiHeadAttention`, :math:`n` a :class:`LayerNorm`, :math:`D` a :class:`Dropout` and :math:`f`
    the activation. This is how it is with ``norm_first`` (Xiong et al., `On layer normalization in the transformer
    architecture <https://arxiv.org/abs/2002.04745>`_); without it each sum is normalised in place of what is added:
    :math:`h = n_1(x + D_1(A(x)))`, as in Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_.

    Args:
        dims: The length of the last axis of input and output.
        num_heads: The number of heads; it divides ``dims``.
        mlp_dims: The length of the vectors between :math:`W_1` and :math:`W_2`. Default: ``4 * dims``.
        dropout: The probability with which an element is dropped. Default: ``0.0``.
        activation: A function or a module. Default: :func:`mlx.nn.relu`.
        norm_first: Whether to normalise what is added, rather than the sum. Default: ``True``.
        dtype: The dtype of all parameters. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``attention`` is a :class:`MultiHeadAttention`; ``linear1``, which is :math:`W_1` and :math:`b_1`, and ``linear2`` are
        each a :class:`Linear`, with weights ``[mlp_dims, dims]`` and ``[dims, mlp_dims]``; ``ln1`` and ``ln2`` are each a
        :class:`LayerNorm`; input and output ``[N, L, dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, ``key`` is no key, or ``activation`` can't be called.
        ValueError: If ``dims`` is not a multiple of ``num_heads``, or ``dropout`` is outside of ``[0, 1)``; in a call, if
            input or mask is not of the shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.TransformerEncoderLayer(8, 2, dropout=0.1)
    >>> layer(mx.ones((1, 5, 8)), None, key=mx.random.key(0)).shape
    (1, 5, 8)
    """

    attention: MultiHeadAttention
    ln1: LayerNorm
    ln2: LayerNorm
    linear1: Linear
    linear2: Linear
    dropout1: Dropout
    dropout2: Dropout
    activation: Callable[[Any], Any]
    norm_first: bool = static()

    def __init__(
        self,
        dims: int,
        num_heads: int,
        mlp_dims: int | None = None,
        dropout: float = 0.0,
        activation: Callable[[Any], Any] = relu,
        norm_first: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        mlp_dims = size(self, "mlp_dims", mlp_dims or size(self, "dims", dims) * 4)
        keys = split(key, 3)
        self.attention = MultiHeadAttention(dims, num_heads, dtype=dtype, key=keys[0])
        self.ln1 = LayerNorm(dims, dtype=dtype)
        self.ln2 = LayerNorm(dims, dtype=dtype)
        self.linear1 = Linear(dims, mlp_dims, dtype=dtype, key=keys[1])
        self.linear2 = Linear(mlp_dims, dims, dtype=dtype, key=keys[2])
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.activation = function(self, "activation", activation)
        self.norm_first = norm_first

    def __call__(self, x: mx.array, mask: mx.array | str | None, *, key: mx.array | None = None) -> mx.array:
        """Return the sequence after the layer.

        Args:
            x: A batch of sequences.
            mask: Where each place looks, as in :class:`MultiHeadAttention`.
            key: Draws what is dropped. Default: the key of :func:`frostleaf.rng`, or else ``mx.random``'s own state.
        """
        keys = split(key, 2)

        def attend(y: mx.array) -> mx.array:
            return self.dropout1(self.attention(y, y, y, mask), key=keys[0])

        def transform(y: mx.array) -> mx.array:
            return self.linear2(self.dropout2(self.activation(self.linear1(y)), key=keys[1]))

        try:
            y = _residual(x, attend, self.ln1, self.norm_first)
            return _residual(y, transform, self.ln2, self.norm_first)
        except MisfitError as error:
            raise within(self, (x, mask), error) from error


class TransformerDecoderLayer(Module):
    r"""Let each place of a sequence attend to all of them, then to a second sequence, and then pass through two layers.

    .. math::

        h &= x + D_1(A_1(n_1(x), n_1(x))) \\
        g &= h + D_2(A_2(n_2(h), m)) \\
        y &= g + W_2\, D_3(f(W_1\, n_3(g) + b_1)) + b_2

    Here :math:`m` is the second sequence, the memory, and :math:`A(q, k)` is :class:`MultiHeadAttention` with the queries
    :math:`q` and the keys and values :math:`k`. The other letters, and what is otherwise without ``norm_first``, are those
    of :class:`TransformerEncoderLayer`.
    Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_.

    Args:
        dims: The length of the last axis of input, memory and output.
        num_heads: The number of heads; it divides ``dims``.
        mlp_dims: The length of the vectors between :math:`W_1` and :math:`W_2`. Default: ``4 * dims``.
        dropout: The probability with which an element is dropped. Default: ``0.0``.
        activation: A function or a module. Default: :func:`mlx.nn.relu`.
        norm_first: Whether to normalise what is added, rather than the sum. Default: ``True``.
        dtype: The dtype of all parameters. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``self_attention`` and ``cross_attention`` are each a :class:`MultiHeadAttention`, ``ln1``, ``ln2`` and ``ln3`` each a
        :class:`LayerNorm`, ``linear1`` and ``linear2`` as in :class:`TransformerEncoderLayer`;
        input and output ``[N, L, dims]``, memory ``[N, S, dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, ``key`` is no key, or ``activation`` can't be called.
        ValueError: If ``dims`` is not a multiple of ``num_heads``, or ``dropout`` is outside of ``[0, 1)``; in a call, if
            input, memory or masks are not of the shapes above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.TransformerDecoderLayer(8, 2)
    >>> layer(mx.ones((1, 5, 8)), mx.ones((1, 3, 8)), "causal", None).shape
    (1, 5, 8)
    """

    self_attention: MultiHeadAttention
    cross_attention: MultiHeadAttention
    ln1: LayerNorm
    ln2: LayerNorm
    ln3: LayerNorm
    linear1: Linear
    linear2: Linear
    dropout1: Dropout
    dropout2: Dropout
    dropout3: Dropout
    activation: Callable[[Any], Any]
    norm_first: bool = static()

    def __init__(
        self,
        dims: int,
        num_heads: int,
        mlp_dims: int | None = None,
        dropout: float = 0.0,
        activation: Callable[[Any], Any] = relu,
        norm_first: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        mlp_dims = size(self, "mlp_dims", mlp_dims or size(self, "dims", dims) * 4)
        keys = split(key, 4)
        self.self_attention = MultiHeadAttention(dims, num_heads, dtype=dtype, key=keys[0])
        self.cross_attention = MultiHeadAttention(dims, num_heads, dtype=dtype, key=keys[1])
        self.ln1 = LayerNorm(dims, dtype=dtype)
        self.ln2 = LayerNorm(dims, dtype=dtype)
        self.ln3 = LayerNorm(dims, dtype=dtype)
        self.linear1 = Linear(dims, mlp_dims, dtype=dtype, key=keys[2])
        self.linear2 = Linear(mlp_dims, dims, dtype=dtype, key=keys[3])
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.dropout3 = Dropout(dropout)
        self.activation = function(self, "activation", activation)
        self.norm_first = norm_first

    def __call__(
        self,
        x: mx.array,
        memory: mx.array,
        x_mask: mx.array | str | None,
        memory_mask: mx.array | str | None,
        *,
        key: mx.array | None = None,
    ) -> mx.array:
        """Return the sequence after the layer.

        Args:
            x: A batch of sequences.
            memory: A batch of second sequences, such as an encoder returns.
            x_mask: Where each place looks in its own sequence, as in :class:`MultiHeadAttention`.
            memory_mask: Where each place looks in the memory.
            key: Draws what is dropped. Default: the key of :func:`frostleaf.rng`, or else ``mx.random``'s own state.
        """
        keys = split(key, 3)

        def attend(y: mx.array) -> mx.array:
            return self.dropout1(self.self_attention(y, y, y, x_mask), key=keys[0])

        def recall(y: mx.array) -> mx.array:
            return self.dropout2(self.cross_attention(y, memory, memory, memory_mask), key=keys[1])

        def transform(y: mx.array) -> mx.array:
            return self.linear2(self.dropout3(self.activation(self.linear1(y)), key=keys[2]))

        try:
            y = _residual(x, attend, self.ln1, self.norm_first)
            y = _residual(y, recall, self.ln2, self.norm_first)
            return _residual(y, transform, self.ln3, self.norm_first)
        except MisfitError as error:
            raise within(self, (x, memory, x_mask, memory_mask), error) from error


def _residual(x: mx.array, part: Callable[[mx.array], mx.array], norm: LayerNorm, norm_first: bool) -> mx.array:
    return x + part(norm(x)) if norm_first else norm(x + part(x))


class _Stack(Module, Generic[L]):
    """Layers, each of which is called with what the one before it returned, and a norm after them."""

    layers: tuple[L, ...]
    ln: LayerNorm
    checkpoint: bool = static()

    def _through(self, x: mx.array, *others: Any, key: mx.array | None) -> mx.array:
        y = x
        try:
            for layer, layer_key in zip(self.layers, split(key, len(self.layers)), strict=True):
                y = (checkpointed(layer) if self.checkpoint else layer)(y, *others, key=layer_key)
            return self.ln(y)
        except MisfitError as error:
            raise within(self, (x, *others), error) from error


class TransformerEncoder(_Stack[TransformerEncoderLayer]):
    r"""Pass a sequence through layers of the class :class:`TransformerEncoderLayer`, and normalise what the last returns.

    .. math:: y = n(l_k(\dots l_2(l_1(x))))

    Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_.

    Args:
        num_layers: The number of layers, :math:`k`.
        dims, num_heads, mlp_dims, dropout, activation, norm_first: As in :class:`TransformerEncoderLayer`. An activation that
            is a module becomes a part of each layer: all start with its parameters, and are trained apart.
        checkpoint: Whether to compute each layer again for the gradient, rather than to keep what it computed on the way
            (:func:`frostleaf.checkpoint`). Takes less memory and more time. Default: ``False``.
        dtype: The dtype of all parameters. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``layers`` is a tuple of ``num_layers`` layers, ``ln``, which is :math:`n`, a :class:`LayerNorm`;
        input and output ``[N, L, dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, ``key`` is no key, or what is to be called can't be.
        ValueError: If there are to be less than 0 layers, and as :class:`TransformerEncoderLayer` does.

    >>> import frostleaf as fl, mlx.core as mx
    >>> model = fl.nn.TransformerEncoder(2, 8, 2, checkpoint=True)
    >>> model(mx.ones((1, 5, 8)), "causal").shape
    (1, 5, 8)
    """

    def __init__(
        self,
        num_layers: int,
        dims: int,
        num_heads: int,
        mlp_dims: int | None = None,
        dropout: float = 0.0,
        activation: Callable[[Any], Any] = relu,
        norm_first: bool = True,
        checkpoint: bool = False,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        self.layers = tuple(
            TransformerEncoderLayer(dims, num_heads, mlp_dims, dropout, activation, norm_first, dtype=dtype, key=layer_key)
            for layer_key in split(key, size(self, "num_layers", num_layers, least=0))
        )
        self.ln = LayerNorm(dims, dtype=dtype)
        self.checkpoint = checkpoint

    def __call__(self, x: mx.array, mask: mx.array | str | None, *, key: mx.array | None = None) -> mx.array:
        """Return the sequence after the layers and the norm.

        Args:
            x: A batch of sequences.
            mask: Where each place looks, as in :class:`MultiHeadAttention`.
            key: Draws what is dropped. Default: the key of :func:`frostleaf.rng`, or else ``mx.random``'s own state.
        """
        return self._through(x, mask, key=key)


class TransformerDecoder(_Stack[TransformerDecoderLayer]):
    r"""Pass a sequence through layers of the class :class:`TransformerDecoderLayer`, and normalise what the last returns.

    .. math:: y = n(l_k(\dots l_2(l_1(x, m), m), m))

    Here :math:`m` is the memory, a second sequence to which each layer attends.
    Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_.

    Args:
        num_layers: The number of layers, :math:`k`.
        dims, num_heads, mlp_dims, dropout, activation, norm_first: As in :class:`TransformerDecoderLayer`. An activation that
            is a module becomes a part of each layer: all start with its parameters, and are trained apart.
        checkpoint: Whether to compute each layer again for the gradient, rather than to keep what it computed on the way
            (:func:`frostleaf.checkpoint`). Takes less memory and more time. Default: ``False``.
        dtype: The dtype of all parameters. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``layers`` is a tuple of ``num_layers`` layers, ``ln``, which is :math:`n`, a :class:`LayerNorm`;
        input and output ``[N, L, dims]``, memory ``[N, S, dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, ``key`` is no key, or what is to be called can't be.
        ValueError: If there are to be less than 0 layers, and as :class:`TransformerDecoderLayer` does.

    >>> import frostleaf as fl, mlx.core as mx
    >>> model = fl.nn.TransformerDecoder(2, 8, 2)
    >>> model(mx.ones((1, 5, 8)), mx.ones((1, 3, 8)), "causal", None).shape
    (1, 5, 8)
    """

    def __init__(
        self,
        num_layers: int,
        dims: int,
        num_heads: int,
        mlp_dims: int | None = None,
        dropout: float = 0.0,
        activation: Callable[[Any], Any] = relu,
        norm_first: bool = True,
        checkpoint: bool = False,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        self.layers = tuple(
            TransformerDecoderLayer(dims, num_heads, mlp_dims, dropout, activation, norm_first, dtype=dtype, key=layer_key)
            for layer_key in split(key, size(self, "num_layers", num_layers, least=0))
        )
        self.ln = LayerNorm(dims, dtype=dtype)
        self.checkpoint = checkpoint

    def __call__(
        self,
        x: mx.array,
        memory: mx.array,
        x_mask: mx.array | str | None,
        memory_mask: mx.array | str | None,
        *,
        key: mx.array | None = None,
    ) -> mx.array:
        """Return the sequence after the layers and the norm.

        Args:
            x: A batch of sequences.
            memory: A batch of second sequences, such as an encoder returns.
            x_mask: Where each place looks in its own sequence, as in :class:`MultiHeadAttention`.
            memory_mask: Where each place looks in the memory.
            key: Draws what is dropped. Default: the key of :func:`frostleaf.rng`, or else ``mx.random``'s own state.
        """
        return self._through(x, memory, x_mask, memory_mask, key=key)


class Transformer(Module):
    r"""Encode a sequence, and decode another one with what came out: :math:`y = \mathrm{decoder}(t, \mathrm{encoder}(s))`.

    Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_.

    Args:
        dims: The length of the last axis of both sequences. Default: ``512``.
        num_heads: The number of heads; it divides ``dims``. Default: ``8``.
        num_encoder_layers: The number of layers of the encoder. Default: ``6``.
        num_decoder_layers: The number of layers of the decoder. Default: ``6``.
        mlp_dims: The length of the vectors inside each layer's network. Default: ``4 * dims``.
        dropout: The probability with which an element is dropped. Default: ``0.0``.
        activation: A function or a module. Default: :func:`mlx.nn.relu`.
        custom_encoder: What to use in place of a :class:`TransformerEncoder`: a :class:`frostleaf.Module` or a function that
            is called as ``custom_encoder(src, src_mask)`` and returns the memory. Default: ``None``.
        custom_decoder: What to use in place of a :class:`TransformerDecoder`: a :class:`frostleaf.Module` or a function that
            is called as ``custom_decoder(tgt, memory, tgt_mask, memory_mask)``. Default: ``None``.
        norm_first: As in :class:`TransformerEncoderLayer`. Default: ``True``.
        checkpoint: Whether to compute each layer again for the gradient, as in :class:`TransformerEncoder`. Default:
            ``False``.
        dtype: The dtype of all parameters but those of a custom part. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

        When the model is called with a key, a custom part is given one as ``key=``. A part that is given is used as it is:
        the arguments above which would describe it have no effect.

    Shapes:
        ``encoder`` is a :class:`TransformerEncoder` and ``decoder`` a :class:`TransformerDecoder`, or what is given for them;
        ``src`` is ``[N, S, dims]``, ``tgt`` and the output ``[N, L, dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, ``key`` is no key, or what is to be called can't be.
        ValueError: If there are to be less than 0 layers, and as :class:`TransformerEncoderLayer` and
            :class:`TransformerDecoderLayer` do.

    >>> import frostleaf as fl, mlx.core as mx
    >>> model = fl.nn.Transformer(8, 2, num_encoder_layers=1, num_decoder_layers=1)
    >>> model(mx.ones((1, 3, 8)), mx.ones((1, 5, 8)), None, "causal", None).shape
    (1, 5, 8)
    """

    encoder: Callable[..., Any]
    decoder: Callable[..., Any]

    def __init__(
        self,
        dims: int = 512,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        mlp_dims: int | None = None,
        dropout: float = 0.0,
        activation: Callable[[Any], Any] = relu,
        custom_encoder: Callable[..., Any] | None = None,
        custom_decoder: Callable[..., Any] | None = None,
        norm_first: bool = True,
        checkpoint: bool = False,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        dtype = floating(dtype)
        sizes = dims, num_heads, mlp_dims, dropout, activation, norm_first, checkpoint
        encoder_key, decoder_key = split(key, 2)
        if custom_encoder is None:
            layers = size(self, "num_encoder_layers", num_encoder_layers, least=0)
            custom_encoder = TransformerEncoder(layers, *sizes, dtype=dtype, key=encoder_key)
        if custom_decoder is None:
            layers = size(self, "num_decoder_layers", num_decoder_layers, least=0)
            custom_decoder = TransformerDecoder(layers, *sizes, dtype=dtype, key=decoder_key)
        self.encoder = function(self, "custom_encoder", custom_encoder)
        self.decoder = function(self, "custom_decoder", custom_decoder)

    def __call__(
        self,
        src: mx.array,
        tgt: mx.array,
        src_mask: mx.array | str | None,
        tgt_mask: mx.array | str | None,
        memory_mask: mx.array | str | None,
        *,
        key: mx.array | None = None,
    ) -> mx.array:
        """Return ``tgt`` decoded.

        Args:
            src: A batch of sequences to be encoded.
            tgt: A batch of sequences to be decoded.
            src_mask: Where each place of ``src`` looks in it, as in :class:`MultiHeadAttention`.
            tgt_mask: Where each place of ``tgt`` looks in it.
            memory_mask: Where each place of ``tgt`` looks in what the encoder returned.
            key: Draws what is dropped. Default: the key of :func:`frostleaf.rng`, or else ``mx.random``'s own state.
        """
        keys = [{} if each is None else {"key": each} for each in split(key, 2)]
        try:
            memory = self.encoder(src, src_mask, **keys[0])
            decoded: mx.array = self.decoder(tgt, memory, tgt_mask, memory_mask, **keys[1])
            return decoded
        except MisfitError as error:
            raise within(self, (src, tgt, src_mask, tgt_mask, memory_mask), error) from error
