"""Layers of which each rank of a group has a part."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, cast

import mlx.core as mx

from ..core.annotations import Self
from ..core.construction import evolve
from ..core.fields import parameter, static
from ..core.instance import metadata_of
from ..core.shapes import LEAF
from ..core.words import describe
from ..module import Module
from ..transforms.collectives import all_sum, require_exchanges
from ..transforms.group import Group, as_group
from ..transforms.shards import Segments, Shard
from .checks import misfit, size
from .dtypes import layer_dtype
from .initial import split, uniform
from .linear import Linear
from .quantized import Quantized, QuantizedLinear, quantized, settings, undrawn
from .shards import Sharded, segments_of, shard_of

_NOT_DIVIDED = "{cls} divides its {name} among the ranks of its group, and {count} can't be divided by {ranks}"


def _part_of(layer: Module, name: str, count: int, group: Group) -> int:
    """Return this rank's part of a size."""
    count = size(layer, name, count)
    if count % group.size():
        raise ValueError(_NOT_DIVIDED.format(cls=type(layer).__name__, name=name, count=count, ranks=group.size()))
    return count // group.size()


def _own_key(key: mx.array | None, group: Group) -> mx.array | None:
    """Return a key for numbers of which each rank draws its part."""
    return key if group.size() == 1 else split(key, group.size())[group.rank()]


def _with_summed_gradients(x: mx.array, group: Group) -> mx.array:
    """Return an array whose gradient is the sum of those of all ranks."""
    require_exchanges(group)  # as the gradient does, even if nobody asks for it
    return cast(mx.array, _summing_gradients(group)(x))


@functools.cache
def _summing_gradients(group: Group) -> Callable[..., Any]:
    """Return a function that returns its argument, whose gradient is the sum of those of all ranks."""
    if group.size() == 1:
        return lambda x: x

    @mx.custom_function
    def same(x: mx.array) -> mx.array:
        return x

    @same.vjp
    def summed(x: mx.array, gradient: mx.array, _: mx.array) -> mx.array:
        return all_sum(gradient, group)

    @same.vmap
    def mapped(inputs: Any, axes: Any) -> Any:
        return same(inputs), axes

    return same


_NDIMS = {"weight": 2, "scales": 2, "biases": 2, "bias": 1}


class AllToShardedLinear(Sharded):
    r"""Compute this rank's part of the output of a :class:`Linear`: :math:`y_r = x W_r^\top + b_r`.

    Rank :math:`r` has some of the rows of :math:`W` and of :math:`b`. The input is the same on all ranks, and so is its
    gradient, the sum of those of all ranks, which the backward pass exchanges. Nothing else is, if a
    :class:`ShardedToAllLinear` comes after it. Shoeybi et al., `Megatron-LM <https://arxiv.org/abs/1909.08053>`_.

    Such a layer usually comes from a :class:`Linear`, by :func:`frostleaf.distributed.shard_linear`. Weight and bias start as
    those of ``Linear``; what is drawn from ``mx.random`` is the same on ranks of the same seed, as in MLX.

    Args:
        input_dims: The length of the input's last axis.
        output_dims: The length of the last axis of all outputs together, a multiple of the number of ranks.
        bias: Whether to add :math:`b`. Default: ``True``.
        group: The ranks. Default: all.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values, others on each rank. Default: ``mx.random``'s own state.

    Shapes:
        On each of :math:`N` ranks, ``weight`` is ``[output_dims / N, input_dims]`` and ``bias`` ``[output_dims / N]``, or
        ``None``; input ``[..., input_dims]``, output ``[..., output_dims / N]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int, or ``output_dims`` can't be divided; in a call, if the last axis of the
            input is of another length.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.AllToShardedLinear(3, 2)  # of one rank here
    >>> layer(mx.ones((5, 3))).shape
    (5, 2)
    """

    axes: ClassVar[Mapping[str, int]] = {"weight": 0, "bias": 0}
    ndims: ClassVar[Mapping[str, int]] = _NDIMS

    weight: mx.array
    bias: mx.array | None
    group: Group = static()
    segments: Segments = static(default=1)

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        bias: bool = True,
        group: Any = None,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        dtype = layer_dtype(dtype)
        self.group = as_group(group)
        input_dims, rows = size(self, "input_dims", input_dims), _part_of(self, "output_dims", output_dims, self.group)
        weight_key, bias_key = split(_own_key(key, self.group), 2)
        scale = math.sqrt(1.0 / input_dims)
        self.weight = uniform(scale, (rows, input_dims), dtype, weight_key)
        self.bias = uniform(scale, (rows,), dtype, bias_key) if bias else None

    def __call__(self, x: mx.array) -> mx.array:
        _require_last(self, x, self.weight.shape[-1])
        x = _with_summed_gradients(x, self.group)
        return x @ self.weight.T if self.bias is None else mx.addmm(self.bias, x, self.weight.T)

    @classmethod
    def from_linear(cls, linear_layer: Module, *, segments: Any = 1, group: Any = None) -> Self:
        """Return a layer with this rank's part of a :class:`Linear`. What was frozen is, and the training mode is the same.

        Args:
            linear_layer: The layer.
            segments: Of what the output consists, each of which is divided: a number of equal parts, such as ``3`` for queries,
                keys and values in one, or where it is cut, in parts of its length, such as ``[0.5, 0.75]``. Default: ``1``.
            group: The ranks. Default: all.

        Raises:
            ValueError: If the layer is no :class:`Linear`, or can't be divided so.

        >>> import frostleaf as fl
        >>> fl.nn.AllToShardedLinear.from_linear(fl.nn.Linear(2, 3)).weight.shape
        (3, 2)
        """
        return _of_linear(cls, linear_layer, Linear, segments, group)


class ShardedToAllLinear(Sharded):
    r"""Compute a :class:`Linear` of which each rank has a part of the input: :math:`y = \sum_r x_r W_r^\top + b`.

    Rank :math:`r` has some of the columns of :math:`W`, and all of :math:`b`. The sum is exchanged in each call; after it the
    output is the same on all ranks.

    Such a layer usually comes from a :class:`Linear`, by :func:`frostleaf.distributed.shard_linear`. Weight and bias start as
    those of ``Linear``; what is drawn from ``mx.random`` is the same on ranks of the same seed, as in MLX.

    Args:
        input_dims: The length of the last axis of all inputs together, a multiple of the number of ranks.
        output_dims: The length of the output's last axis.
        bias: Whether to add :math:`b`. Default: ``True``.
        group: The ranks. Default: all.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values, another weight on each rank. Default: ``mx.random``'s own state.

    Shapes:
        On each of :math:`N` ranks, ``weight`` is ``[output_dims, input_dims / N]`` and ``bias`` ``[output_dims]``, or ``None``;
        input ``[..., input_dims / N]``, output ``[..., output_dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int, or ``input_dims`` can't be divided; in a call, if the last axis of the
            input is of another length.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.ShardedToAllLinear(3, 2)  # of one rank here
    >>> layer(mx.ones((5, 3))).shape
    (5, 2)
    """

    axes: ClassVar[Mapping[str, int]] = {"weight": -1}
    ndims: ClassVar[Mapping[str, int]] = _NDIMS

    weight: mx.array
    bias: mx.array | None
    group: Group = static()
    segments: Segments = static(default=1)

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        bias: bool = True,
        group: Any = None,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        dtype = layer_dtype(dtype)
        self.group = as_group(group)
        columns, output_dims = _part_of(self, "input_dims", input_dims, self.group), size(self, "output_dims", output_dims)
        weight_key, bias_key = split(key, 2)
        scale = math.sqrt(1.0 / input_dims)
        self.weight = uniform(scale, (output_dims, columns), dtype, _own_key(weight_key, self.group))
        self.bias = uniform(scale, (output_dims,), dtype, bias_key) if bias else None

    def __call__(self, x: mx.array) -> mx.array:
        _require_last(self, x, self.weight.shape[-1])
        y = all_sum(x @ self.weight.T, self.group)
        return y if self.bias is None else y + self.bias

    @classmethod
    def from_linear(cls, linear_layer: Module, *, segments: Any = 1, group: Any = None) -> Self:
        """Return a layer with this rank's part of a :class:`Linear`. What was frozen is, and the training mode is the same.

        Args:
            linear_layer: The layer.
            segments: Of what the input consists, each of which is divided, as for :meth:`AllToShardedLinear.from_linear`.
                Default: ``1``.
            group: The ranks. Default: all.

        Raises:
            ValueError: If the layer is no :class:`Linear`, or can't be divided so.

        >>> import frostleaf as fl
        >>> fl.nn.ShardedToAllLinear.from_linear(fl.nn.Linear(2, 3)).weight.shape
        (3, 2)
        """
        return _of_linear(cls, linear_layer, Linear, segments, group)


class QuantizedAllToShardedLinear(Quantized, Sharded):
    r"""Compute this rank's part of the output of a :class:`QuantizedLinear`, as an :class:`AllToShardedLinear` does.

    As in :class:`QuantizedLinear`, weight, scales and biases are never trained, and the bias starts frozen.

    Args:
        input_dims: The length of the input's last axis, a multiple of ``group_size``.
        output_dims: The length of the last axis of all outputs together, a multiple of the number of ranks.
        bias: Whether to add :math:`b`. Default: ``True``.
        group_size: How many neighbours share a scale. Default: ``64``.
        bits: How many bits a number takes. Default: ``4``.
        mode: ``"affine"``, ``"mxfp4"``, ``"nvfp4"`` or ``"mxfp8"``. Default: ``"affine"``.
        group: The ranks. Default: all.
        dtype: As for :class:`QuantizedLinear`.
        key: Draws the initial values, others on each rank. Default: ``mx.random``'s own state.

    Shapes:
        Those of a :class:`QuantizedLinear` with ``output_dims / N`` outputs, on each of :math:`N` ranks.

    Raises:
        TypeError, ValueError: As :class:`QuantizedLinear` does, and if ``output_dims`` can't be divided.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.QuantizedAllToShardedLinear(64, 2)(mx.ones((5, 64))).shape
    (5, 2)
    """

    axes: ClassVar[Mapping[str, int]] = {"weight": 0, "scales": 0, "biases": 0, "bias": 0}
    ndims: ClassVar[Mapping[str, int]] = _NDIMS

    bias: mx.array | None = parameter(frozen=True)
    group: Group = static()
    segments: Segments = static(default=1)

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        bias: bool = True,
        group_size: int = 64,
        bits: int = 4,
        mode: str = "affine",
        group: Any = None,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        dtype = layer_dtype(dtype)
        self.group = as_group(group)
        input_dims, rows = size(self, "input_dims", input_dims), _part_of(self, "output_dims", output_dims, self.group)
        self.group_size, self.bits = settings(self, group_size, bits, mode)
        self.mode = mode
        weight = uniform(math.sqrt(1 / input_dims), (rows, input_dims), dtype, _own_key(key, self.group))
        self.weight, self.scales, self.biases = quantized(weight, self.group_size, self.bits, mode)
        self.bias = mx.zeros((rows,), dtype) if bias else None

    def __call__(self, x: mx.array) -> mx.array:
        _require_last(self, x, self.scales.shape[-1] * self.group_size)
        y = self._product(_with_summed_gradients(x, self.group))
        return y if self.bias is None else y + self.bias

    @classmethod
    def from_quantized_linear(cls, quantized_linear_layer: Module, *, segments: Any = 1, group: Any = None) -> Self:
        """Return a layer with this rank's part of a :class:`QuantizedLinear`, as :meth:`AllToShardedLinear.from_linear` does.

        Args:
            quantized_linear_layer: The layer.
            segments: Of what the output consists. Default: ``1``.
            group: The ranks. Default: all.

        Raises:
            ValueError: If the layer is no :class:`QuantizedLinear`, or can't be divided so.

        >>> import frostleaf as fl
        >>> fl.nn.QuantizedAllToShardedLinear.from_quantized_linear(fl.nn.QuantizedLinear(64, 2)).weight.shape
        (2, 8)
        """
        return _of_linear(cls, quantized_linear_layer, QuantizedLinear, segments, group)


class QuantizedShardedToAllLinear(Quantized, Sharded):
    r"""Compute a :class:`QuantizedLinear` of which each rank has a part of the input, as a :class:`ShardedToAllLinear` does.

    As in :class:`QuantizedLinear`, weight, scales and biases are never trained, and the bias starts frozen.

    Args:
        input_dims: The length of the last axis of all inputs together; what each rank has of it is a multiple of
            ``group_size``.
        output_dims: The length of the output's last axis.
        bias: Whether to add :math:`b`. Default: ``True``.
        group_size: How many neighbours share a scale. Default: ``64``.
        bits: How many bits a number takes. Default: ``4``.
        mode: ``"affine"``, ``"mxfp4"``, ``"nvfp4"`` or ``"mxfp8"``. Default: ``"affine"``.
        group: The ranks. Default: all.
        dtype: As for :class:`QuantizedLinear`.
        key: Draws the initial values, others on each rank. Default: ``mx.random``'s own state.

    Shapes:
        Those of a :class:`QuantizedLinear` with ``input_dims / N`` inputs, on each of :math:`N` ranks.

    Raises:
        TypeError, ValueError: As :class:`QuantizedLinear` does, and if ``input_dims`` can't be divided.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.nn.QuantizedShardedToAllLinear(64, 2)(mx.ones((5, 64))).shape
    (5, 2)
    """

    axes: ClassVar[Mapping[str, int]] = {"weight": -1, "scales": -1, "biases": -1}
    ndims: ClassVar[Mapping[str, int]] = _NDIMS

    bias: mx.array | None = parameter(frozen=True)
    group: Group = static()
    segments: Segments = static(default=1)

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        bias: bool = True,
        group_size: int = 64,
        bits: int = 4,
        mode: str = "affine",
        group: Any = None,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        dtype = layer_dtype(dtype)
        self.group = as_group(group)
        columns, output_dims = _part_of(self, "input_dims", input_dims, self.group), size(self, "output_dims", output_dims)
        self.group_size, self.bits = settings(self, group_size, bits, mode)
        self.mode = mode
        weight = uniform(math.sqrt(1 / input_dims), (output_dims, columns), dtype, _own_key(key, self.group))
        self.weight, self.scales, self.biases = quantized(weight, self.group_size, self.bits, mode)
        self.bias = mx.zeros((output_dims,), dtype) if bias else None

    def __call__(self, x: mx.array) -> mx.array:
        _require_last(self, x, self.scales.shape[-1] * self.group_size)
        y = all_sum(self._product(x), self.group)
        return y if self.bias is None else y + self.bias

    @classmethod
    def from_quantized_linear(cls, quantized_linear_layer: Module, *, segments: Any = 1, group: Any = None) -> Self:
        """Return a layer with this rank's part of a :class:`QuantizedLinear`, as :meth:`ShardedToAllLinear.from_linear` does.

        Args:
            quantized_linear_layer: The layer.
            segments: Of what the input consists. Default: ``1``.
            group: The ranks. Default: all.

        Raises:
            ValueError: If the layer is no :class:`QuantizedLinear`, or can't be divided so.

        >>> import frostleaf as fl
        >>> fl.nn.QuantizedShardedToAllLinear.from_quantized_linear(fl.nn.QuantizedLinear(64, 2)).weight.shape
        (2, 8)
        """
        return _of_linear(cls, quantized_linear_layer, QuantizedLinear, segments, group)


def _require_last(layer: Module, x: Any, dims: int) -> None:
    if not isinstance(x, LEAF) or x.shape[-1:] != (dims,):
        raise misfit(layer, f"[..., {dims}]", x)


_A_STACK = (
    "{cls} is made of one {kind}, and was given {given}. Of a stack of models, as fl.tree.stack makes it, divide each: write "
    "fl.vmap(divide)(stack)"
)

L = TypeVar("L", bound=Sharded)


def _of_linear(cls: type[L], given: Module, kind: type[Module], segments: Any, group: Any) -> L:
    """Return a layer of a class with this rank's part of a layer of a kind."""
    if not isinstance(given, kind):
        raise ValueError(f"{cls.__name__} is made of a {kind.__name__}, and was given {describe(given)}")
    if metadata_of(given).shards:
        raise ValueError(f"{cls.__name__} is made of a whole layer, and was given shards, {given!r}: gather it first")
    layer: Any = given
    make: Any = cls
    group, segments = as_group(group), segments_of(segments)
    if layer.weight.ndim != cls.ndims["weight"]:
        raise ValueError(_A_STACK.format(cls=cls.__name__, kind=kind.__name__, given=describe(given)))
    rows, columns = layer.weight.shape
    options: dict[str, Any] = {"group": group, **undrawn()}
    if isinstance(layer, Quantized):
        columns = layer.scales.shape[-1] * layer.group_size
        options |= {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    new: dict[str, Any] = {name: getattr(layer, name) for name in cls.__frostleaf__.children}
    for name, axis in cls.axes.items():
        if new[name] is not None:
            new[name] = shard_of(new[name], Shard(group, axis, segments), name)
    new["segments"] = segments
    empty: L = make(columns, rows, False, **options)
    return evolve(empty, new, training=layer.training, frozen=metadata_of(layer).frozen)
