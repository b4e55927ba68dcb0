"""Vectors looked up by number."""

from __future__ import annotations

import math

import mlx.core as mx

from ..core.dropped import returns_copy
from ..module import Module
from .checks import lookup, misfit, size
from .dtypes import layer_dtype
from .initial import normal
from .quantized import QuantizedEmbedding


class Embedding(Module):
    r"""Look up one row of the weight for each integer of the input: :math:`y_{i} = W_{x_i}`.

    The weight starts normal, with mean 0 and standard deviation :math:`1 / \sqrt{\mathtt{dims}}`.

    Args:
        num_embeddings: The number of rows: the size of the vocabulary.
        dims: The length of a row.
        dtype: The dtype of the weight. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``weight`` is ``[num_embeddings, dims]``; input ``[...]``, of an integer dtype, output ``[..., dims]``.
        As everywhere in MLX, an index beyond the last row yields undefined numbers.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int; in a call, if the input is not of an integer dtype.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Embedding(3, 2).replace(weight=mx.array([[0, 1], [2, 3], [4, 5]]))
    >>> layer(mx.array([2, 0]))
    array([[4, 5],
           [0, 1]], dtype=int32)
    """

    weight: mx.array

    def __init__(self, num_embeddings: int, dims: int, *, dtype: mx.Dtype | None = None, key: mx.array | None = None) -> None:
        num_embeddings, dims = size(self, "num_embeddings", num_embeddings), size(self, "dims", dims)
        scale = math.sqrt(1 / dims)
        self.weight = normal(scale, (num_embeddings, dims), layer_dtype(dtype), key)

    def __call__(self, x: mx.array) -> mx.array:
        return lookup(self, self.weight, x)

    def as_linear(self, x: mx.array) -> mx.array:
        r"""Return :math:`x W^\top`: one score per row of the weight, for a model whose output layer is its embedding.

        Press and Wolf, `Using the output embedding to improve language models <https://arxiv.org/abs/1608.05859>`_.

        Args:
            x: Of shape ``[..., dims]``.

        Returns:
            An array of shape ``[..., num_embeddings]``.

        Raises:
            ValueError: If the last axis of ``x`` is of another length.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.Embedding(3, 2).as_linear(mx.ones((5, 2))).shape
        (5, 3)
        """
        if x.shape[-1:] != self.weight.shape[1:]:
            raise misfit(self, f"[..., {self.weight.shape[-1]}]", x)
        return x @ self.weight.T

    @returns_copy("layer = layer.{name}(...)")
    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> QuantizedEmbedding:
        """Return a layer with the weight quantized; for all layers of a model, see :func:`frostleaf.quantize`.

        Args:
            group_size, bits, mode: As for :class:`QuantizedEmbedding`.
            quantize_input: Must be ``False``: indices are not quantized. Default: ``False``.

        Raises:
            ValueError: If ``quantize_input``, or as :class:`QuantizedEmbedding` does.

        >>> import frostleaf as fl
        >>> fl.nn.Embedding(9, 64).to_quantized(bits=8).weight.shape
        (9, 16)
        """
        if quantize_input:
            raise ValueError(
                "Quantized input is not supported. The input of an Embedding is integers: leave quantize_input at False for it."
            )
        return QuantizedEmbedding.from_embedding(self, group_size, bits, mode)
