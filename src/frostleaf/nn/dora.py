"""Layers that learn the lengths of the rows of another layer's weight, and a change of low rank to their directions."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx

from ..core.annotations import Self
from ..core.fields import static
from ..core.shapes import LEAF
from ..module import Module
from .checks import misfit, number
from .dropout import Dropout
from .embedding import Embedding
from .initial import split
from .linear import Linear
from .low_rank import Adapter, full_weight, is_quantized, low_rank, with_weight


class DoRALinear(Adapter):
    r"""Give the rows of a linear layer's weight learned lengths, and directions changed by a product of low rank.

    .. math:: y = \frac{m}{\lVert W + s (A B)^\top \rVert} \odot \left( x W^\top + s\, d(x) A B \right) + b

    The norm is that of each row, and no gradient goes through it. :math:`W` and :math:`b` are those of the layer held,
    :math:`s` is ``scale`` and :math:`d` dropout. :math:`m` starts as the norms of :math:`W`; :math:`A` starts uniform in
    :math:`[-k, k)`, where :math:`k = 1 / \sqrt{\mathtt{input\_dims}}`, and :math:`B` at 0, so that at first the layer computes
    what the layer held does, up to rounding.
    Liu et al., `DoRA: weight-decomposed low-rank adaptation <https://arxiv.org/abs/2402.09353>`_.

    Such layers usually come from :func:`frostleaf.lora` with ``dora=True``. Fields and names of weights are those of mlx-lm.

    Args:
        input_dims: The length of the input's last axis.
        output_dims: The length of the output's last axis.
        r: The rank: the length of the inner axis of the product. Default: ``8``.
        dropout: The probability of dropping an element of what the product gets, in training mode. Default: ``0.0``.
        scale: What the product is multiplied by. Default: ``20.0``.
        bias: Whether the layer held has a bias. Default: ``False``.
        dtype: The dtype of the arrays. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``m`` is ``[output_dims]``, in :meth:`from_base` in ``mx.float32``; ``lora_a`` is ``[input_dims, r]`` and ``lora_b``
        ``[r, output_dims]``; ``linear`` is a :class:`Linear`, or in :meth:`from_base` another layer; input
        ``[..., input_dims]``, output ``[..., output_dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int, ``dropout`` is outside of ``[0, 1)`` or ``scale`` is no number; in a call,
            if the last axis of the input is of another length.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.DoRALinear(3, 4, r=2)
    >>> layer.m.shape, layer.lora_a.shape, layer.lora_b.shape
    ((4,), (3, 2), (2, 4))
    >>> x = mx.ones((5, 3))
    >>> mx.allclose(layer(x), layer.linear(x)).item()
    True
    """

    held: ClassVar[str] = "linear"
    own: ClassVar[tuple[str, ...]] = ("m", "lora_a", "lora_b")

    linear: Module
    m: mx.array
    dropout: Dropout
    scale: float = static(validator=number)
    lora_a: mx.array
    lora_b: mx.array

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        r: int = 8,
        dropout: float = 0.0,
        scale: float = 20.0,
        bias: bool = False,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        linear_key, lora_key = split(key, 2)
        linear = Linear(input_dims, output_dims, bias, dtype=dtype, key=linear_key)
        self.linear = linear
        self.m = _lengths(linear).astype(linear.weight.dtype)
        self.dropout = Dropout(dropout)
        self.scale = scale
        self.lora_a, self.lora_b = low_rank(self, input_dims, r, output_dims, dtype, lora_key)

    def __call__(self, x: mx.array) -> mx.array:
        linear: Any = self.linear
        weight = full_weight(linear)
        if not isinstance(x, LEAF) or x.shape[-1:] != weight.shape[1:]:
            raise misfit(self, f"[..., {weight.shape[-1]}]", x)
        y = x @ weight.T
        z = (self.dropout(x) @ self.lora_a) @ self.lora_b
        out = y + (self.scale * z).astype(x.dtype)
        adapted = weight + (self.scale * self.lora_b.T) @ self.lora_a.T
        out = (self.m / _constant_norm(adapted)).astype(x.dtype) * out
        bias = getattr(linear, "bias", None)
        return out if bias is None else out + bias

    @classmethod
    def from_base(
        cls,
        linear: Module,
        r: int = 8,
        dropout: float = 0.0,
        scale: float = 20.0,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> Self:
        """Return a layer that holds a :class:`Linear` or a :class:`QuantizedLinear`, the very object.

        Args:
            linear: The layer to hold.
            r, dropout, scale, dtype, key: As above, for the arrays of the product.

        Raises:
            ValueError: As above, or if the layer has no weight of two axes.

        >>> import frostleaf as fl
        >>> linear = fl.nn.Linear(3, 4)
        >>> fl.nn.DoRALinear.from_base(linear, r=2).linear is linear
        True
        """
        return cls._around(linear, r, dropout, scale, dtype, key)

    def fuse(self, dequantize: bool = False) -> Any:
        """Return the layer held with the changed weight; for all layers of a model, see :func:`frostleaf.fuse`.

        Args:
            dequantize: Whether a quantized weight is not quantized again. Default: ``False``.

        >>> import frostleaf as fl
        >>> fl.nn.DoRALinear(3, 4).fuse()
        Linear(weight=f32[4,3], bias=None)
        """
        weight = full_weight(self.linear)
        changed = weight + ((self.scale * self.lora_b.T) @ self.lora_a.T).astype(weight.dtype)
        return with_weight(self.linear, _rescaled(changed, self.m), dequantize)

    def _holding(self, layer: Any) -> dict[str, Any]:
        return {"linear": layer, "m": _lengths(layer)}


class DoRAEmbedding(Adapter):
    r"""Give the rows of an embedding learned lengths, and directions changed by a product of low rank.

    .. math:: y_i = \frac{m_{x_i}}{\lVert W_{x_i} + s A_{x_i} B \rVert} \left( W_{x_i} + d(s A_{x_i} B) \right)

    No gradient goes through the norm. :math:`W` is the weight of the layer held, :math:`s` is ``scale`` and :math:`d` dropout.
    :math:`m` starts as the norms of the rows of :math:`W`; :math:`A` starts uniform in :math:`[-k, k)`, where
    :math:`k = 1 / \sqrt{\mathtt{num\_embeddings}}`, and :math:`B` at 0. See :class:`DoRALinear`.

    Args:
        num_embeddings: The number of rows: the size of the vocabulary.
        dims: The length of a row.
        r: The rank: the length of the inner axis of the product. Default: ``8``.
        dropout: The probability of dropping an element of what the product gives, in training mode. Default: ``0.0``.
        scale: What the product is multiplied by. Default: ``20.0``.
        dtype: The dtype of the arrays. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``m`` is ``[num_embeddings]``, ``lora_a`` ``[num_embeddings, r]`` and ``lora_b`` ``[r, dims]``; ``embedding`` is an
        :class:`Embedding`; input ``[...]``, of an integer dtype, output ``[..., dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int, ``dropout`` is outside of ``[0, 1)`` or ``scale`` is no number; in a call,
            if the input is not of an integer dtype.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.DoRAEmbedding(9, 4, r=2)
    >>> layer.m.shape, layer(mx.array([[2, 0]])).shape, layer.as_linear(mx.ones((5, 4))).shape
    ((9,), (1, 2, 4), (5, 9))
    """

    held: ClassVar[str] = "embedding"
    own: ClassVar[tuple[str, ...]] = ("m", "lora_a", "lora_b")

    embedding: Module
    m: mx.array
    dropout: Dropout
    scale: float = static(validator=number)
    lora_a: mx.array
    lora_b: mx.array

    def __init__(
        self,
        num_embeddings: int,
        dims: int,
        r: int = 8,
        dropout: float = 0.0,
        scale: float = 20.0,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        embedding_key, lora_key = split(key, 2)
        embedding = Embedding(num_embeddings, dims, dtype=dtype, key=embedding_key)
        self.embedding = embedding
        self.m = mx.linalg.norm(embedding.weight, axis=1)
        self.dropout = Dropout(dropout)
        self.scale = scale
        self.lora_a, self.lora_b = low_rank(self, num_embeddings, r, dims, dtype, lora_key)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.embedding(x)
        z = self.scale * self.lora_a[x] @ self.lora_b
        out = y + self.dropout(z).astype(y.dtype)
        denominator = mx.stop_gradient(mx.linalg.norm(y + z, axis=-1))
        return (self.m[x] / denominator)[..., None] * out  # type: ignore[no-any-return]

    def as_linear(self, x: mx.array) -> mx.array:
        r"""Return one score per row of the changed weight, as :meth:`Embedding.as_linear` does.

        Args:
            x: Of shape ``[..., dims]``.

        Returns:
            An array of shape ``[..., num_embeddings]``.

        Raises:
            ValueError: If the last axis of ``x`` is of another length.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.DoRAEmbedding(3, 2).as_linear(mx.ones((5, 2))).shape
        (5, 3)
        """
        embedding: Any = self.embedding
        y = embedding.as_linear(x)
        z = (self.dropout(x) @ self.lora_b.T) @ self.lora_a.T
        out = y + (self.scale * z).astype(x.dtype)
        adapted = embedding.weight + (self.scale * self.lora_a) @ self.lora_b
        return (self.m / _constant_norm(adapted)) * out  # type: ignore[no-any-return]

    @classmethod
    def from_base(
        cls,
        embedding: Module,
        r: int = 8,
        dropout: float = 0.0,
        scale: float = 20.0,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> Self:
        """Return a layer that holds an :class:`Embedding`, the very object.

        Args:
            embedding: The layer to hold.
            r, dropout, scale, dtype, key: As above, for the arrays of the product.

        Raises:
            ValueError: As above, or if the layer has no weight of two axes, or a quantized one.

        >>> import frostleaf as fl
        >>> embedding = fl.nn.Embedding(9, 4)
        >>> fl.nn.DoRAEmbedding.from_base(embedding, r=2).embedding is embedding
        True
        """
        if is_quantized(embedding):
            kind = type(embedding).__name__
            raise ValueError(f"DoRAEmbedding does not take a quantized layer, and was given a {kind}: give LoRAEmbedding one")
        return cls._around(embedding, r, dropout, scale, dtype, key)

    def fuse(self, dequantize: bool = False) -> Any:
        """Return the layer held with the changed weight; for all layers of a model, see :func:`frostleaf.fuse`.

        Args:
            dequantize: Means nothing here, since the layer held is not quantized. Default: ``False``.

        >>> import frostleaf as fl
        >>> fl.nn.DoRAEmbedding(9, 4).fuse()
        Embedding(weight=f32[9,4])
        """
        weight = full_weight(self.embedding)
        changed = weight + ((self.scale * self.lora_a) @ self.lora_b).astype(weight.dtype)
        return with_weight(self.embedding, _rescaled(changed, self.m), dequantize)

    def _holding(self, layer: Any) -> dict[str, Any]:
        return {"embedding": layer, "m": mx.linalg.norm(layer.weight, axis=1)}


def _lengths(linear: Any) -> mx.array:
    """Return the norms of the rows of a weight, which half precision would round."""
    return mx.linalg.norm(full_weight(linear).astype(mx.float32), axis=1)


def _constant_norm(weight: mx.array) -> mx.array:
    return mx.stop_gradient(mx.linalg.norm(weight, axis=1))


def _rescaled(weight: mx.array, lengths: mx.array) -> mx.array:
    """Return the rows of a weight with other norms."""
    return (lengths / mx.linalg.norm(weight, axis=1))[:, None] * weight
