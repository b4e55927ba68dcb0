"""Layers that multiply by a matrix, and one that does nothing."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from ..core.dropped import returns_copy
from ..core.shapes import LEAF
from ..module import Module
from ..transforms.context import is_shapeless
from .checks import misfit, size
from .dtypes import layer_dtype
from .initial import split, uniform
from .products import addmm
from .quantized import QQLinear, QuantizedLinear


class Identity(Module):
    """Return the input as it is: :math:`y = x`. A placeholder where a model may have a layer or none.

    Args:
        *args, **kwargs: Ignored, so that it takes any layer's arguments.

    Shapes:
        Input and output of any shape. There are no parameters.

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
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``weight`` is ``[output_dims, input_dims]`` and ``bias`` ``[output_dims]``, or ``None``;
        input ``[..., input_dims]``, output ``[..., output_dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int, or 0 for ``output_dims``; in a call, if the last axis of the input is of
            another length.

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
        dtype = layer_dtype(dtype)
        input_dims = size(self, "input_dims", input_dims)
        output_dims = size(self, "output_dims", output_dims, least=0)
        weight_key, bias_key = split(key, 2)
        scale = math.sqrt(1.0 / input_dims)
        self.weight = uniform(scale, (output_dims, input_dims), dtype, weight_key)
        self.bias = uniform(scale, (output_dims,), dtype, bias_key) if bias else None

    def __call__(self, x: mx.array) -> mx.array:
        try:
            if x.shape[-1:] != self.weight.shape[1:]:
                raise misfit(self, f"[..., {self.weight.shape[-1]}]", x)
            if self.bias is None:
                return mx.matmul(x, self.weight.T)
            return addmm(self.bias, x, self.weight.T)
        except (AttributeError, TypeError) as error:
            if isinstance(x, LEAF):
                raise
            raise misfit(self, f"[..., {self.weight.shape[-1]}]", x) from error

    @returns_copy("layer = layer.{name}(...)")
    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> QuantizedLinear | QQLinear:
        """Return a layer with the weight quantized; for all layers of a model, see :func:`frostleaf.quantize`.

        Args:
            group_size, bits, mode: As for :class:`QuantizedLinear`.
            quantize_input: Whether the layer quantizes its input too, as a :class:`QQLinear`. Default: ``False``.

        Raises:
            ValueError: As these classes do.
            NotImplementedError: If ``quantize_input`` and this layer has a bias.

        >>> import frostleaf as fl
        >>> fl.nn.Linear(64, 2, bias=False).to_quantized(bits=8).weight.shape
        (2, 16)
        """
        if quantize_input:
            return QQLinear.from_linear(self, group_size, bits, mode)
        return QuantizedLinear.from_linear(self, group_size, bits, mode)


class Bilinear(Module):
    r"""Compute a bilinear function of the last axes of two inputs: :math:`y_o = x_2^\top W_o\, x_1 + b_o`.

    Weight and bias start uniform in :math:`[-k, k)`, where :math:`k = 1 / \sqrt{\mathtt{input1\_dims}}`.

    Args:
        input1_dims: The length of the first input's last axis.
        input2_dims: The length of the second input's last axis.
        output_dims: The length of the output's last axis.
        bias: Whether to add :math:`b`. Default: ``True``.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``weight`` is ``[output_dims, input2_dims, input1_dims]`` and ``bias`` ``[output_dims]``, or ``None``;
        inputs ``[..., input1_dims]`` and ``[..., input2_dims]``, output ``[..., output_dims]``. The second input may be one
        vector, ``[input2_dims]``, for all of the first.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int; in a call, if the inputs are not of the shapes above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Bilinear(3, 4, 2)
    >>> layer, layer(mx.ones((5, 3)), mx.ones((5, 4))).shape
    (Bilinear(weight=f32[2,4,3], bias=f32[2]), (5, 2))
    """

    weight: mx.array
    bias: mx.array | None

    def __init__(
        self,
        input1_dims: int,
        input2_dims: int,
        output_dims: int,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        dtype = layer_dtype(dtype)
        input1_dims, input2_dims = size(self, "input1_dims", input1_dims), size(self, "input2_dims", input2_dims)
        output_dims = size(self, "output_dims", output_dims)
        weight_key, bias_key = split(key, 2)
        scale = math.sqrt(1.0 / input1_dims)
        self.weight = uniform(scale, (output_dims, input2_dims, input1_dims), dtype, weight_key)
        self.bias = uniform(scale, (output_dims,), dtype, bias_key) if bias else None

    def __call__(self, x1: mx.array, x2: mx.array) -> mx.array:
        outputs, second, first = self.weight.shape
        if x1.shape[-1:] != (first,):
            raise misfit(self, f"[..., {first}] as its first", x1)
        lead = x1.shape[:-1]
        if x2.shape[-1:] != (second,) or math.prod(x2.shape[:-1]) not in (1, math.prod(lead)):
            raise misfit(self, f"{[*lead, second]} as its second", x2)
        if is_shapeless() and x2.shape[:-1] in ((), lead):
            y = mx.unflatten(x1 @ self.weight.reshape(outputs * second, first).T, -1, (outputs, second))
            y = (y @ x2[..., None]).squeeze(-1)
            return y if self.bias is None else y + self.bias
        y = x1.reshape(-1, first) @ self.weight.reshape(outputs * second, first).T
        y = x2.reshape(-1, 1, second) @ y.reshape(-1, outputs, second).swapaxes(-2, -1)
        y = y.squeeze(1).reshape(*lead, outputs)
        return y if self.bias is None else y + self.bias
