"""Layers that multiply by a matrix, and the one that does nothing."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from ..module import Module
from .checks import floating, misfit


class Identity(Module):
    """Return the input as it is. A placeholder, for where a model has a layer or has none.

    Args:
        *args, **kwargs: Ignored, so that any layer's arguments will do.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.Identity()(mx.array([1, 2]))
    array([1, 2], dtype=int32)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, x: mx.array) -> mx.array:
        return x


class Linear(Module):
    r"""Compute an affine function of the last axis: :math:`y = x W^\top + b`.

    Weight and bias start uniform in :math:`[-k, k)`, where :math:`k = 1 / \sqrt{\mathtt{input\_dims}}`.

    Args:
        input_dims: The length of the input's last axis.
        output_dims: The length of the output's last axis.
        bias: Whether to add :math:`b`. Default: ``True``.
        dtype: The dtype of weight and bias. Default: ``mx.float32``.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``weight`` is ``[output_dims, input_dims]`` and ``bias`` ``[output_dims]``, or ``None``;
        input ``[..., input_dims]``, output ``[..., output_dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one.
        ValueError: In a call, if the last axis of the input is of another length.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Linear(3, 2, dtype=mx.bfloat16)
    >>> layer, layer(mx.ones((5, 3), mx.bfloat16)).shape
    (Linear(weight=bf16[2,3], bias=bf16[2]), (5, 2))
    """

    weight: mx.array
    bias: mx.array | None

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        dtype = floating(dtype)
        weight_key, bias_key = (None, None) if key is None else mx.random.split(key)
        scale = math.sqrt(1.0 / input_dims)
        self.weight = mx.random.uniform(-scale, scale, (output_dims, input_dims), dtype, weight_key)
        self.bias = mx.random.uniform(-scale, scale, (output_dims,), dtype, bias_key) if bias else None

    def __call__(self, x: mx.array) -> mx.array:
        if x.shape[-1:] != self.weight.shape[1:]:
            raise misfit(self, f"[..., {self.weight.shape[-1]}]", x)
        if self.bias is None:
            return x @ self.weight.T
        return mx.addmm(self.bias, x, self.weight.T)
