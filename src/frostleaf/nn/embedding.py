"""Vectors looked up by number."""

from __future__ import annotations

import math

import mlx.core as mx

from ..module import Module
from .checks import floating, misfit


class Embedding(Module):
    r"""Look up one row of the weight for each integer of the input: :math:`y_{i} = W_{x_i}`.

    The weight starts normal, with mean 0 and standard deviation :math:`1 / \sqrt{\mathtt{dims}}`.

    Args:
        num_embeddings: The number of rows: the size of the vocabulary.
        dims: The length of a row.
        dtype: The dtype of the weight. Default: ``mx.float32``.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``weight`` is ``[num_embeddings, dims]``; input ``[...]``, of an integer dtype, output ``[..., dims]``.
        As everywhere in MLX, what an index beyond the last row yields is undefined.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Embedding(3, 2).replace(weight=mx.array([[0, 1], [2, 3], [4, 5]]))
    >>> layer(mx.array([2, 0]))
    array([[4, 5],
           [0, 1]], dtype=int32)
    """

    weight: mx.array

    def __init__(self, num_embeddings: int, dims: int, *, dtype: mx.Dtype | None = None, key: mx.array | None = None) -> None:
        scale = math.sqrt(1 / dims)
        self.weight = mx.random.normal((num_embeddings, dims), floating(dtype), scale=scale, key=key)

    def __call__(self, x: mx.array) -> mx.array:
        return self.weight[x]

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
