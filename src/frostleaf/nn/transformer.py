"""Models made of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import mlx.core as mx
from mlx.nn.layers.activations import relu

from ..core.fields import static
from ..module import Module
from ..transforms.checkpoint import checkpoint as checkpointed
from .attention import MultiHeadAttention
from .checks import MisfitError, model_misfit, require_callable, size
from .dropout import Dropout
from .dtypes import layer_dtype
from .initial import split
from .linear import Linear
from .normalization import LayerNorm

L = TypeVar("L", bound=Module)


class _DefaultActivation:
    """Stand for ``relu`` in the signatures: MLX's function would print its address there."""

    __name__ = "relu"

    def __call__(self, x: Any) -> Any:
        return relu(x)

    def __repr__(self) -> str:
        return "relu"


_RELU = _DefaultActivation()


class TransformerEncoderLayer(Module):
    r"""Let each position of a sequence attend to all of them, then pass each through a network of two layers.

    .. math::

        h &= x + D_1(A(n_1(x))) \\
        y &= h + W_2\, D_2(f(W_1\, n_2(h) + b_1)) + b_2

    Here :math:`A` is :class:`MultiHeadAttention`, :math:`n` a :class:`LayerNorm`, :math:`D` a :class:`Dropout` and :math:`f`
    the activation. This is with ``norm_first`` (Xiong et al., `On layer normalization in the transformer architecture
    <https://arxiv.org/abs/2002.04745>`_). Without it each sum is normalised, rather than what is added:
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
        activation: Callable[[Any], Any] = _RELU,
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
        self.activation = relu if activation is _RELU else require_callable(self, "activation", activation)
        self.norm_first = norm_first

    def __call__(self, x: mx.array, mask: mx.array | str | None, *, key: mx.array | None = None) -> mx.array:
        """Pass sequences through the layer.

        Args:
            x: A batch of sequences.
            mask: Which positions each one sees, as in :class:`MultiHeadAttention`.
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
            raise model_misfit(self, (x, mask), error) from error


class TransformerDecoderLayer(Module):
    r"""Let each position of a sequence attend to all of them and to a second sequence, then pass each through two layers.

    .. math::

        h &= x + D_1(A_1(n_1(x), n_1(x))) \\
        g &= h + D_2(A_2(n_2(h), m)) \\
        y &= g + W_2\, D_3(f(W_1\, n_3(g) + b_1)) + b_2

    Here :math:`m` is the second sequence, the memory, and :math:`A(q, k)` is :class:`MultiHeadAttention` with the queries
    :math:`q` and the keys and values :math:`k`. The other letters and ``norm_first`` are as in
    :class:`TransformerEncoderLayer`.
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
        activation: Callable[[Any], Any] = _RELU,
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
        self.activation = relu if activation is _RELU else require_callable(self, "activation", activation)
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
        """Pass sequences through the layer.

        Args:
            x: A batch of sequences.
            memory: A batch of second sequences, such as the output of an encoder.
            x_mask: Which positions of its own sequence each one sees, as in :class:`MultiHeadAttention`.
            memory_mask: Which positions of the memory each one sees.
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
            raise model_misfit(self, (x, memory, x_mask, memory_mask), error) from error


def _residual(x: mx.array, function: Callable[[mx.array], mx.array], norm: LayerNorm, norm_first: bool) -> mx.array:
    return x + function(norm(x)) if norm_first else norm(x + function(x))


class _Stack(Module, Generic[L]):
    """Call each layer with the output of the one before it, and normalise the last output."""

    _layer: ClassVar[Callable[..., Any]]

    layers: tuple[L, ...]
    ln: LayerNorm
    checkpoint: bool = static()

    def __init__(
        self,
        num_layers: int,
        dims: int,
        num_heads: int,
        mlp_dims: int | None = None,
        dropout: float = 0.0,
        activation: Callable[[Any], Any] = _RELU,
        norm_first: bool = True,
        checkpoint: bool = False,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        self.layers = tuple(
            self._layer(dims, num_heads, mlp_dims, dropout, activation, norm_first, dtype=dtype, key=layer_key)
            for layer_key in split(key, size(self, "num_layers", num_layers, least=0))
        )
        self.ln = LayerNorm(dims, dtype=dtype)
        self.checkpoint = checkpoint

    def _apply_layers(self, x: mx.array, *others: Any, key: mx.array | None) -> mx.array:
        y = x
        try:
            for layer, layer_key in zip(self.layers, split(key, len(self.layers)), strict=True):
                y = (checkpointed(layer) if self.checkpoint else layer)(y, *others, key=layer_key)
            return self.ln(y)
        except MisfitError as error:
            raise model_misfit(self, (x, *others), error) from error


class TransformerEncoder(_Stack[TransformerEncoderLayer], init=False):
    r"""Pass a sequence through each :class:`TransformerEncoderLayer`, and normalise the last output.

    .. math:: y = n(l_k(\dots l_2(l_1(x))))

    Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_.

    Args:
        num_layers: The number of layers, :math:`k`.
        dims, num_heads, mlp_dims, dropout, activation, norm_first: As in :class:`TransformerEncoderLayer`. An activation that
            is a module is in each layer: all start with its parameters, and are trained separately.
        checkpoint: Whether to compute each layer again for the gradient rather than keep its intermediate arrays
            (:func:`frostleaf.checkpoint`): less memory, more time. Default: ``False``.
        dtype: The dtype of all parameters. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``layers`` is a tuple of ``num_layers`` layers, ``ln``, which is :math:`n`, a :class:`LayerNorm`;
        input and output ``[N, L, dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, ``key`` is no key, or ``activation`` can't be called.
        ValueError: If ``num_layers`` is less than 0, and as :class:`TransformerEncoderLayer` does.

    >>> import frostleaf as fl, mlx.core as mx
    >>> model = fl.nn.TransformerEncoder(2, 8, 2, checkpoint=True)
    >>> model(mx.ones((1, 5, 8)), "causal").shape
    (1, 5, 8)
    """

    _layer = TransformerEncoderLayer

    def __call__(self, x: mx.array, mask: mx.array | str | None, *, key: mx.array | None = None) -> mx.array:
        """Pass sequences through the layers and the norm.

        Args:
            x: A batch of sequences.
            mask: Which positions each one sees, as in :class:`MultiHeadAttention`.
            key: Draws what is dropped. Default: the key of :func:`frostleaf.rng`, or else ``mx.random``'s own state.
        """
        return self._apply_layers(x, mask, key=key)


class TransformerDecoder(_Stack[TransformerDecoderLayer], init=False):
    r"""Pass a sequence through each :class:`TransformerDecoderLayer`, and normalise the last output.

    .. math:: y = n(l_k(\dots l_2(l_1(x, m), m), m))

    Here :math:`m` is the memory, a second sequence to which each layer attends.
    Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_.

    Args:
        num_layers: The number of layers, :math:`k`.
        dims, num_heads, mlp_dims, dropout, activation, norm_first: As in :class:`TransformerDecoderLayer`. An activation that
            is a module is in each layer: all start with its parameters, and are trained separately.
        checkpoint: Whether to compute each layer again for the gradient rather than keep its intermediate arrays
            (:func:`frostleaf.checkpoint`): less memory, more time. Default: ``False``.
        dtype: The dtype of all parameters. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``layers`` is a tuple of ``num_layers`` layers, ``ln``, which is :math:`n`, a :class:`LayerNorm`;
        input and output ``[N, L, dims]``, memory ``[N, S, dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, ``key`` is no key, or ``activation`` can't be called.
        ValueError: If ``num_layers`` is less than 0, and as :class:`TransformerDecoderLayer` does.

    >>> import frostleaf as fl, mlx.core as mx
    >>> model = fl.nn.TransformerDecoder(2, 8, 2)
    >>> model(mx.ones((1, 5, 8)), mx.ones((1, 3, 8)), "causal", None).shape
    (1, 5, 8)
    """

    _layer = TransformerDecoderLayer

    def __call__(
        self,
        x: mx.array,
        memory: mx.array,
        x_mask: mx.array | str | None,
        memory_mask: mx.array | str | None,
        *,
        key: mx.array | None = None,
    ) -> mx.array:
        """Pass sequences through the layers and the norm.

        Args:
            x: A batch of sequences.
            memory: A batch of second sequences, such as the output of an encoder.
            x_mask: Which positions of its own sequence each one sees, as in :class:`MultiHeadAttention`.
            memory_mask: Which positions of the memory each one sees.
            key: Draws what is dropped. Default: the key of :func:`frostleaf.rng`, or else ``mx.random``'s own state.
        """
        return self._apply_layers(x, memory, x_mask, memory_mask, key=key)


class Transformer(Module):
    r"""Encode a sequence, and decode another one with the result: :math:`y = \mathrm{decoder}(t, \mathrm{encoder}(s))`.

    Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_.

    Args:
        dims: The length of the last axis of both sequences. Default: ``512``.
        num_heads: The number of heads; it divides ``dims``. Default: ``8``.
        num_encoder_layers: The number of layers of the encoder. Default: ``6``.
        num_decoder_layers: The number of layers of the decoder. Default: ``6``.
        mlp_dims: The length of the vectors between the two linear layers of each layer. Default: ``4 * dims``.
        dropout: The probability with which an element is dropped. Default: ``0.0``.
        activation: A function or a module. Default: :func:`mlx.nn.relu`.
        custom_encoder: Replaces the :class:`TransformerEncoder`: a :class:`frostleaf.Module` or a function that is called as
            ``custom_encoder(src, src_mask)`` and returns the memory. Default: ``None``.
        custom_decoder: Replaces the :class:`TransformerDecoder`: a :class:`frostleaf.Module` or a function that is called as
            ``custom_decoder(tgt, memory, tgt_mask, memory_mask)``. Default: ``None``.
        norm_first: As in :class:`TransformerEncoderLayer`. Default: ``True``.
        checkpoint: Whether to compute each layer again for the gradient, as in :class:`TransformerEncoder`. Default:
            ``False``.
        dtype: The dtype of all parameters but those of a custom encoder or decoder. Default: that of
            :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    When the model is called with a key, a custom encoder or decoder is given one as ``key=``. It is used as it is: the
    arguments above have no effect on it.

    Shapes:
        ``encoder`` is a :class:`TransformerEncoder` and ``decoder`` a :class:`TransformerDecoder`, or the custom ones;
        ``src`` is ``[N, S, dims]``, ``tgt`` and the output ``[N, L, dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, ``key`` is no key, or ``activation``, ``custom_encoder`` or
            ``custom_decoder`` can't be called.
        ValueError: If a number of layers is less than 0, and as :class:`TransformerEncoderLayer` and
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
        activation: Callable[[Any], Any] = _RELU,
        custom_encoder: Callable[..., Any] | None = None,
        custom_decoder: Callable[..., Any] | None = None,
        norm_first: bool = True,
        checkpoint: bool = False,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        dtype = layer_dtype(dtype)
        options = dims, num_heads, mlp_dims, dropout, activation, norm_first, checkpoint
        encoder_key, decoder_key = split(key, 2)
        if custom_encoder is None:
            layers = size(self, "num_encoder_layers", num_encoder_layers, least=0)
            custom_encoder = TransformerEncoder(layers, *options, dtype=dtype, key=encoder_key)
        if custom_decoder is None:
            layers = size(self, "num_decoder_layers", num_decoder_layers, least=0)
            custom_decoder = TransformerDecoder(layers, *options, dtype=dtype, key=decoder_key)
        self.encoder = require_callable(self, "custom_encoder", custom_encoder)
        self.decoder = require_callable(self, "custom_decoder", custom_decoder)

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
        """Encode ``src``, and decode ``tgt`` with the result.

        Args:
            src: A batch of sequences to be encoded.
            tgt: A batch of sequences to be decoded.
            src_mask: Which positions of ``src`` its own positions see, as in :class:`MultiHeadAttention`.
            tgt_mask: Which positions of ``tgt`` its own positions see.
            memory_mask: Which positions of the encoder's output those of ``tgt`` see.
            key: Draws what is dropped. Default: the key of :func:`frostleaf.rng`, or else ``mx.random``'s own state.
        """
        keys = [{} if each is None else {"key": each} for each in split(key, 2)]
        try:
            memory = self.encoder(src, src_mask, **keys[0])
            decoded: mx.array = self.decoder(tgt, memory, tgt_mask, memory_mask, **keys[1])
            return decoded
        except MisfitError as error:
            raise model_misfit(self, (src, tgt, src_mask, tgt_mask, memory_mask), error) from error
