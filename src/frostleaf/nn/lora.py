"""Layers that learn a change of low rank to the weight of another layer."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx

from ..core.annotations import Self
from ..core.fields import static
from ..module import Module
from .checks import number
from .dropout import Dropout
from .embedding import Embedding
from .initial import split
from .linear import Linear
from .low_rank import Adapter, full_weight, low_rank, with_weight


class LoRALinear(Adapter):
    r"""Add a product of low rank to a linear layer: :math:`y = x W^\top + b + s\, d(x) A B`.

    :math:`W` and :math:`b` are those of the layer held, :math:`s` is ``scale`` and :math:`d` dropout. :math:`A` starts uniform
    in :math:`[-k, k)`, where :math:`k = 1 / \sqrt{\mathtt{input\_dims}}`, and :math:`B` at 0, so that at first the layer
    computes what the layer held does.
    Hu et al., `LoRA: low-rank adaptation of large language models <https://arxiv.org/abs/2106.09685>`_.

    Such layers usually come from :func:`frostleaf.lora`. Fields and names of weights are those of mlx-lm.

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
        ``lora_a`` is ``[input_dims, r]`` and ``lora_b`` ``[r, output_dims]``; ``linear`` is a :class:`Linear`, or in
        :meth:`from_base` another layer; input ``[..., input_dims]``, output ``[..., output_dims]``, in the dtype of what the
        layer held returns.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int, ``dropout`` is outside of ``[0, 1)`` or ``scale`` is no number; in a call,
            if the last axis of the input is of another length.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.LoRALinear(3, 4, r=2)
    >>> layer
    LoRALinear(
      linear=Linear(weight=f32[4,3], bias=None),
      dropout=Dropout(p=0.0),
      scale=20.0,
      lora_a=f32[3,2],
      lora_b=f32[2,4],
    )
    >>> x = mx.ones((5, 3))
    >>> mx.array_equal(layer(x), layer.linear(x)).item()
    True
    """

    held: ClassVar[str] = "linear"

    linear: Module
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
        self.linear = Linear(input_dims, output_dims, bias, dtype=dtype, key=linear_key)
        self.dropout = Dropout(dropout)
        self.scale = scale
        self.lora_a, self.lora_b = low_rank(self, input_dims, r, output_dims, dtype, lora_key)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        z = (self.dropout(x) @ self.lora_a) @ self.lora_b
        return y + (self.scale * z).astype(x.dtype)  # type: ignore[no-any-return]

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
        >>> fl.nn.LoRALinear.from_base(linear, r=2).linear is linear
        True
        """
        return cls._around(linear, r, dropout, scale, dtype, key)

    def fuse(self, dequantize: bool = False) -> Any:
        """Return the layer held with the product added to its weight; for all layers of a model, see :func:`frostleaf.fuse`.

        Args:
            dequantize: Whether a quantized weight is not quantized again. Default: ``False``.

        >>> import frostleaf as fl
        >>> fl.nn.LoRALinear(3, 4).fuse()
        Linear(weight=f32[4,3], bias=None)
        """
        weight = full_weight(self.linear)
        delta = ((self.scale * self.lora_b.T) @ self.lora_a.T).astype(weight.dtype)
        return with_weight(self.linear, weight + delta, dequantize)


class LoRAEmbedding(Adapter):
    r"""Add a product of low rank to an embedding: :math:`y_i = W_{x_i} + s\, d(A_{x_i} B)`.

    :math:`W` is the weight of the layer held, :math:`s` is ``scale`` and :math:`d` dropout. :math:`A` starts uniform in
    :math:`[-k, k)`, where :math:`k = 1 / \sqrt{\mathtt{num\_embeddings}}`, and :math:`B` at 0. See :class:`LoRALinear`.

    Args:
        num_embeddings: The number of rows: the size of the vocabulary.
        dims: The length of a row.
        r: The rank: the length of the inner axis of the product. Default: ``8``.
        dropout: The probability of dropping an element of what the product gives, in training mode. Default: ``0.0``.
        scale: What the product is multiplied by. Default: ``20.0``.
        dtype: The dtype of the arrays. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``lora_a`` is ``[num_embeddings, r]`` and ``lora_b`` ``[r, dims]``; ``embedding`` is an :class:`Embedding`, or in
        :meth:`from_base` another layer; input ``[...]``, of an integer dtype, output ``[..., dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int, ``dropout`` is outside of ``[0, 1)`` or ``scale`` is no number; in a call,
            if the input is not of an integer dtype.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.LoRAEmbedding(9, 4, r=2)
    >>> layer.lora_a.shape, layer(mx.array([[2, 0]])).shape, layer.as_linear(mx.ones((5, 4))).shape
    ((9, 2), (1, 2, 4), (5, 9))
    """

    held: ClassVar[str] = "embedding"

    embedding: Module
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
        self.embedding = Embedding(num_embeddings, dims, dtype=dtype, key=embedding_key)
        self.dropout = Dropout(dropout)
        self.scale = scale
        self.lora_a, self.lora_b = low_rank(self, num_embeddings, r, dims, dtype, lora_key)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.embedding(x)
        z = self.dropout(self.lora_a[x] @ self.lora_b)
        return y + (self.scale * z).astype(y.dtype)  # type: ignore[no-any-return]

    def as_linear(self, x: mx.array) -> mx.array:
        r"""Return :math:`x W^\top + s\, d(x) B^\top A^\top`: one score per row, as :meth:`Embedding.as_linear` does.

        Args:
            x: Of shape ``[..., dims]``.

        Returns:
            An array of shape ``[..., num_embeddings]``.

        Raises:
            ValueError: If the last axis of ``x`` is of another length.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.LoRAEmbedding(3, 2).as_linear(mx.ones((5, 2))).shape
        (5, 3)
        """
        embedding: Any = self.embedding
        y = embedding.as_linear(x)
        z = (self.dropout(x) @ self.lora_b.T) @ self.lora_a.T
        return y + (self.scale * z).astype(x.dtype)  # type: ignore[no-any-return]

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
        """Return a layer that holds an :class:`Embedding` or a :class:`QuantizedEmbedding`, the very object.

        Args:
            embedding: The layer to hold.
            r, dropout, scale, dtype, key: As above, for the arrays of the product.

        Raises:
            ValueError: As above, or if the layer has no weight of two axes.

        >>> import frostleaf as fl
        >>> embedding = fl.nn.Embedding(9, 4)
        >>> fl.nn.LoRAEmbedding.from_base(embedding, r=2).embedding is embedding
        True
        """
        return cls._around(embedding, r, dropout, scale, dtype, key)

    def fuse(self, dequantize: bool = False) -> Any:
        """Return the layer held with the product added to its weight; for all layers of a model, see :func:`frostleaf.fuse`.

        Args:
            dequantize: Whether a quantized weight is not quantized again. Default: ``False``.

        >>> import frostleaf as fl
        >>> fl.nn.LoRAEmbedding(9, 4).fuse()
        Embedding(weight=f32[9,4])
        """
        weight = full_weight(self.embedding)
        delta = ((self.scale * self.lora_a) @ self.lora_b).astype(weight.dtype)
        return with_weight(self.embedding, weight + delta, dequantize)
