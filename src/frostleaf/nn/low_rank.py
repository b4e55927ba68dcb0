"""What layers have in common that hold another layer and small arrays beside it."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import mlx.core as mx

from ..core.annotations import Self
from ..core.construction import evolve
from ..core.instance import metadata_of
from ..core.words import describe
from ..module import Module
from .checks import size
from .dtypes import layer_dtype
from .embedding import Embedding
from .initial import uniform
from .linear import Linear


class Adapter(Module):
    """A layer that holds another, and arrays of low rank that change what it computes.

    Attributes:
        held: The field that holds the other layer.
        own: The fields of the arrays beside it.
    """

    held: ClassVar[str]
    own: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b")

    def fuse(self, dequantize: bool = False) -> Any:
        """Return the layer held, with a weight that computes what this layer does. Subclasses define it."""
        raise NotImplementedError

    @classmethod
    def _around(cls, layer: Any, r: int, dropout: float, scale: float, dtype: mx.Dtype | None, key: mx.array | None) -> Self:
        """Return an adapter that holds a layer, which stays in its mode. As mlx-lm's, the adapter is in training mode."""
        weight: Any = getattr(layer, "weight", None)
        if getattr(weight, "ndim", 0) != 2:
            held = "" if weight is None else f", whose weight is {describe(weight)}"
            raise ValueError(f"{cls.__name__} adapts a layer with a weight of two axes, and was given {describe(layer)}{held}")
        rows, columns = len(weight), layer.scales.shape[1] * layer.group_size if is_quantized(layer) else weight.shape[1]
        sizes = (rows, columns) if cls.held == "embedding" else (columns, rows)
        # It draws the weight of a layer that is dropped, as mlx-lm's does: so the same seed gives the same adapters.
        adapter = cls(*sizes, r, dropout, scale, dtype=dtype, key=key)  # type: ignore[call-arg]
        return evolve(adapter, adapter._holding(layer))

    def _holding(self, layer: Any) -> dict[str, Any]:
        """Return the fields that depend on the layer held."""
        return {self.held: layer}


def is_quantized(layer: Any) -> bool:
    """Return whether a layer's weight is quantized.

    >>> import frostleaf as fl
    >>> is_quantized(fl.nn.Linear(64, 2)), is_quantized(fl.nn.QuantizedLinear(64, 2))
    (False, True)
    """
    return getattr(layer, "scales", None) is not None


def full_weight(layer: Any) -> mx.array:
    """Return a layer's weight, dequantized.

    >>> import frostleaf as fl
    >>> full_weight(fl.nn.QuantizedLinear(64, 2)).shape
    (2, 64)
    """
    weight: mx.array = layer.weight
    if not is_quantized(layer):
        return weight
    options: Any = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    return mx.dequantize(weight, layer.scales, getattr(layer, "biases", None), **options)


def with_weight(layer: Any, weight: mx.array, dequantize: bool) -> Any:
    """Return a layer with another full weight, which is quantized as the layer's own was unless ``dequantize``.

    The layer stays in its training mode, and what was not trained before is frozen.

    >>> import frostleaf as fl
    >>> layer = fl.nn.QuantizedLinear(64, 2)
    >>> with_weight(layer, full_weight(layer), dequantize=True)
    Linear(weight=❄f32[2,64], bias=❄f32[2])
    """
    if not is_quantized(layer):
        return layer.replace(weight=weight)
    rows, columns = weight.shape
    undrawn = mx.random.key(0)
    plain: Any
    arrays: dict[str, Any]
    if hasattr(layer, "as_linear"):
        plain, arrays = Embedding(rows, columns, key=undrawn), {"weight": weight}
    else:
        plain, arrays = Linear(columns, rows, False, key=undrawn), {"weight": weight, "bias": getattr(layer, "bias", None)}
    plain = evolve(plain, arrays, training=layer.training, frozen=metadata_of(layer).frozen | {"weight"})
    return plain if dequantize else plain.to_quantized(layer.group_size, layer.bits, layer.mode)


def low_rank(
    adapter: Module, rows: int, r: int, columns: int, dtype: mx.Dtype | None, key: mx.array | None
) -> tuple[mx.array, mx.array]:
    r"""Return the factors of a product of rank ``r`` that starts at 0.

    One is uniform in :math:`[-k, k)`, where :math:`k = 1 / \sqrt{\mathtt{rows}}`, and one is zeros.
    """
    dtype, r = layer_dtype(dtype), size(adapter, "r", r)
    return uniform(1 / math.sqrt(rows), (rows, r), dtype, key), mx.zeros((r, columns), dtype)
