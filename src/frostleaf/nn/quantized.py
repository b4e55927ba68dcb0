"""Layers whose weight has a few bits for each number."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from ..core.annotations import Self
from ..core.construction import evolve
from ..core.dropped import returns_copy
from ..core.fields import buffer, parameter, static
from ..core.instance import metadata_of
from ..core.words import describe
from ..module import Module
from .checks import lookup, misfit, size
from .dtypes import layer_dtype
from .initial import normal, uniform

# The default group size and bits of each mode.
_MODES = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}


class Quantized(Module):
    """Hold a weight that is quantized for good."""

    weight: mx.array = buffer()
    scales: mx.array = buffer(cast=True)
    biases: mx.array | None = buffer(cast=True)
    group_size: int = static()
    bits: int = static()
    mode: str = static()

    def _quantizing(self, layer: Any, frozen: frozenset[str] = frozenset(), **others: Any) -> Self:
        """Return this layer with the weight of another, quantized, and in the training or evaluation mode of the other."""
        weight, scales, biases = quantized(layer.weight, self.group_size, self.bits, self.mode)
        arrays = {"weight": weight, "scales": scales, "biases": biases, **others}
        return evolve(self, arrays, training=layer.training, frozen=frozen)

    def _product(self, x: mx.array) -> mx.array:
        dims = self.scales.shape[-1] * self.group_size
        if x.shape[-1:] != (dims,):
            raise misfit(self, f"[..., {dims}]", x)
        if x.size == 0:  # MLX ends the process at an empty input
            return self._product(mx.zeros((1, dims), x.dtype))[:0].reshape(*x.shape[:-1], len(self.weight))
        options: Any = {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}
        try:
            return mx.quantized_matmul(x, self.weight, self.scales, self.biases, True, **options)
        except (TypeError, ValueError) as error:
            raise misfit(self, f"[..., {dims}]", x, error) from error


class QuantizedLinear(Quantized):
    r"""Compute an affine function of the last axis with a quantized weight: :math:`y = x \hat W^\top + b`.

    Each row of the weight is divided into groups of neighbours. In mode ``"affine"`` a number is

    .. math:: \hat w = s\, q + \beta

    where :math:`q` is an integer of some bits, and a group shares :math:`s`, in ``scales``, and :math:`\beta`, in ``biases``.
    In the other modes :math:`\hat w = s\, q`, where :math:`q` is a small floating-point number and :math:`s` one of 8 bits:
    Rouhani et al., `Microscaling data formats for deep learning <https://arxiv.org/abs/2310.10537>`_ (``"mxfp4"`` and
    ``"mxfp8"``); NVIDIA, `Pretraining large language models with NVFP4 <https://arxiv.org/abs/2509.25149>`_ (``"nvfp4"``).

    Such a layer usually comes from a :class:`Linear`, by :func:`frostleaf.quantize` or :meth:`from_linear`, or gets its arrays
    from a file. Built alone, it draws a weight as ``Linear`` does and quantizes it when its arrays are first needed;
    ``fl.eval(model, at_once=0)`` does so layer by layer, with one full weight at a time. Its bias starts at 0.

    Weight, scales and biases are buffers: ``unfreeze`` does not make them trainable. The bias starts frozen, and ``unfreeze``
    makes it trainable. ``astype`` casts the bias, and in mode ``"affine"`` scales and biases, but never what is packed or of
    8 bits, as ``mlx.nn`` does: scales in half precision are rounded, which a cast back does not undo. The output has the widest
    dtype of input, floating-point scales and bias. MLX does not map products with a quantized weight: ``vmap`` raises an error.

    Args:
        input_dims: The length of the input's last axis, a multiple of ``group_size``.
        output_dims: The length of the output's last axis.
        bias: Whether to add :math:`b`. Default: ``True``.
        group_size: How many neighbours share a scale. Default: that of the mode; 64, 32, 16, 32.
        bits: How many bits a number takes. Default: that of the mode; 4, 4, 4, 8.
        mode: ``"affine"``, ``"mxfp4"``, ``"nvfp4"`` or ``"mxfp8"``. Default: ``"affine"``.
        dtype: The dtype of the weight before it is quantized, of scales and biases in mode ``"affine"``, and of the bias.
            Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``weight`` is ``[output_dims, input_dims * bits / 32]``, packed in ``mx.uint32``; ``scales`` is
        ``[output_dims, input_dims / group_size]`` and so is ``biases``, or ``None`` in modes other than ``"affine"``; ``bias``
        is ``[output_dims]`` or ``None``; input ``[..., input_dims]``, output ``[..., output_dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If ``dtype`` is ``mx.float64``, if there is no such mode, if it does not have the group size or the bits, or
            if ``input_dims`` can't be divided into groups, or a size is not a positive int; in a call, if the last axis of the
            input is of another length.

    >>> import frostleaf as fl, mlx.core as mx
    >>> linear = fl.nn.Linear(64, 2)
    >>> layer = fl.nn.QuantizedLinear.from_linear(linear, bits=8)
    >>> layer.weight.shape, layer.scales.shape
    ((2, 16), (2, 1))
    >>> x = mx.random.normal((5, 64))
    >>> mx.allclose(layer(x), linear(x), atol=0.1).item()
    True
    """

    bias: mx.array | None = parameter(frozen=True)

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        bias: bool = True,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        input_dims, output_dims = size(self, "input_dims", input_dims), size(self, "output_dims", output_dims)
        dtype = layer_dtype(dtype)
        self.group_size, self.bits = settings(self, group_size, bits, mode)
        self.mode = mode
        weight = uniform(math.sqrt(1 / input_dims), (output_dims, input_dims), dtype, key)
        self.weight, self.scales, self.biases = quantized(weight, self.group_size, self.bits, mode)
        self.bias = mx.zeros((output_dims,), dtype) if bias else None

    def __call__(self, x: mx.array) -> mx.array:
        y = self._product(x)
        return y if self.bias is None else y + self.bias

    @classmethod
    def from_linear(
        cls, linear_layer: Module, group_size: int | None = None, bits: int | None = None, mode: str = "affine"
    ) -> Self:
        """Return a layer with the weight of a :class:`Linear`, quantized, and its bias, which is trainable if it was.

        Args:
            linear_layer: The layer.
            group_size, bits, mode: As above.

        Raises:
            ValueError: As above, or if the layer's weight is not of two axes and a floating-point dtype.

        >>> import frostleaf as fl
        >>> fl.nn.QuantizedLinear.from_linear(fl.nn.Linear(32, 2, bias=False), mode="mxfp8").scales.shape
        (2, 1)
        """
        linear: Any = linear_layer
        output_dims, input_dims = _matrix(cls, linear).shape
        layer = cls(input_dims, output_dims, False, group_size, bits, mode, **undrawn())
        bias = getattr(linear, "bias", None)
        frozen = bias is not None and metadata_of(linear).freezes(("bias",))
        return layer._quantizing(linear, frozenset({"bias"} if frozen else ()), bias=bias)


class QuantizedEmbedding(Quantized):
    r"""Look up one row of a quantized weight for each integer of the input: :math:`y_{i} = \hat W_{x_i}`.

    The weight is quantized as in :class:`QuantizedLinear` and not trained. Built alone, the layer draws it as
    :class:`Embedding` does and quantizes it.

    Args:
        num_embeddings: The number of rows: the size of the vocabulary.
        dims: The length of a row, a multiple of ``group_size``.
        group_size: How many neighbours share a scale. Default: that of the mode; 64, 32, 16, 32.
        bits: How many bits a number takes. Default: that of the mode; 4, 4, 4, 8.
        mode: ``"affine"``, ``"mxfp4"``, ``"nvfp4"`` or ``"mxfp8"``. Default: ``"affine"``.
        dtype: The dtype of the weight before it is quantized, and of scales and biases in mode ``"affine"``. Default: that of
            :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``weight``, ``scales`` and ``biases`` are as in :class:`QuantizedLinear`, with ``num_embeddings`` rows; input ``[...]``,
        of an integer dtype, output ``[..., dims]``, in the dtype of the scales, or in modes other than ``"affine"`` in
        ``mx.bfloat16``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If ``dtype`` is ``mx.float64``, if there is no such mode, if it does not have the group size or the bits, or
            if ``dims`` can't be divided into groups, or a size is not a positive int; in a call, if the input is not of an
            integer dtype.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.QuantizedEmbedding(9, 32, group_size=32, dtype=mx.float16)
    >>> layer(mx.array([[2, 0]])).shape, layer.scales.dtype
    ((1, 2, 32), mlx.core.float16)
    """

    num_embeddings: int = static()
    dims: int = static()

    def __init__(
        self,
        num_embeddings: int,
        dims: int,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        dtype = layer_dtype(dtype)
        self.group_size, self.bits = settings(self, group_size, bits, mode)
        self.mode = mode
        self.num_embeddings = size(self, "num_embeddings", num_embeddings)
        self.dims = size(self, "dims", dims)
        weight = normal(math.sqrt(1 / self.dims), (self.num_embeddings, self.dims), dtype, key)
        self.weight, self.scales, self.biases = quantized(weight, self.group_size, self.bits, mode)

    def __call__(self, x: mx.array) -> mx.array:
        lead = lookup(self, self.weight, x).shape[:-1]
        if not lead:  # MLX dequantizes only matrices
            return self._rows((None, x))[0]
        if 0 in lead:  # MLX does not dequantize an empty matrix
            return self._rows(slice(1))[:0].reshape(*lead, self.dims)
        return self._rows(x)

    def _rows(self, x: Any) -> mx.array:
        biases = None if self.biases is None else self.biases[x]
        return mx.dequantize(self.weight[x], self.scales[x], biases, group_size=self.group_size, bits=self.bits, mode=self.mode)

    def as_linear(self, x: mx.array) -> mx.array:
        r"""Return :math:`x \hat W^\top`: one score per row of the weight, as :meth:`Embedding.as_linear` does.

        Args:
            x: Of shape ``[..., dims]``.

        Returns:
            An array of shape ``[..., num_embeddings]``.

        Raises:
            ValueError: If the last axis of ``x`` is of another length.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.QuantizedEmbedding(9, 64).as_linear(mx.ones((5, 64))).shape
        (5, 9)
        """
        return self._product(x)

    @classmethod
    def from_embedding(
        cls, embedding_layer: Module, group_size: int | None = None, bits: int | None = None, mode: str = "affine"
    ) -> Self:
        """Return a layer with the weight of an :class:`Embedding`, quantized.

        Args:
            embedding_layer: The layer.
            group_size, bits, mode: As above.

        Raises:
            ValueError: As above, or if the layer's weight is not of two axes and a floating-point dtype.

        >>> import frostleaf as fl
        >>> fl.nn.QuantizedEmbedding.from_embedding(fl.nn.Embedding(9, 64)).dims
        64
        """
        embedding: Any = embedding_layer
        num_embeddings, dims = _matrix(cls, embedding).shape
        return cls(num_embeddings, dims, group_size, bits, mode, **undrawn())._quantizing(embedding)


class QQLinear(Module):
    r"""Quantize the input, and multiply it by a quantized weight: :math:`y = \hat x \hat W^\top`.

    In training mode the layer has its full weight and quantizes it in each call, so that the weight can be trained. In
    evaluation mode it has the quantized weight and its scales: ``eval()`` returns a layer whose weight is quantized, and
    ``train()`` one whose weight is dequantized, in ``mx.bfloat16``. The layer that ``eval()`` was called on still has the full
    weight.

    :class:`QuantizedLinear` says how numbers are quantized. What MLX can compute of this depends on the device: on a CPU, for
    instance, one row of input in evaluation mode.

    Args:
        input_dims: The length of the input's last axis, a multiple of ``group_size``.
        output_dims: The length of the output's last axis.
        group_size: How many neighbours share a scale. Default: that of the mode.
        bits: How many bits a number takes. Default: that of the mode.
        mode: ``"nvfp4"`` or ``"mxfp8"``. Default: ``"nvfp4"``.
        dtype: The dtype of the full weight. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values, as for :class:`Linear`. Default: ``mx.random``'s own state.

    Shapes:
        ``weight`` is ``[output_dims, input_dims]`` and ``scales`` is ``None``; in evaluation mode ``weight`` is
        ``[output_dims, input_dims * bits / 32]``, packed in ``mx.uint32``, and ``scales``
        ``[output_dims, input_dims / group_size]``; input ``[N, input_dims]``, output ``[N, output_dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If ``dtype`` is ``mx.float64``, if the mode is another, if it does not have the group size or the bits, or
            if ``input_dims`` can't be divided into groups, or a size is not a positive int; in a call, if the last axis of the
            input is of another length.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.QQLinear(32, 2)
    >>> layer
    QQLinear(weight=f32[2,32], scales=None, group_size=16, bits=4, mode='nvfp4')
    >>> layer.eval()
    QQLinear[eval](weight=u32[2,4], scales=u8[2,2], group_size=16, bits=4, mode='nvfp4')
    >>> layer.eval()(mx.ones((1, 32))).shape
    (1, 2)
    """

    weight: mx.array
    scales: mx.array | None
    group_size: int = static()
    bits: int = static()
    mode: str = static()

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "nvfp4",
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        input_dims, output_dims = size(self, "input_dims", input_dims), size(self, "output_dims", output_dims)
        dtype = layer_dtype(dtype)
        self.group_size, self.bits = settings(self, group_size, bits, mode)
        if mode not in ("nvfp4", "mxfp8"):
            raise ValueError(f"Quantized activations are only supported for 'nvfp4' and 'mxfp8' modes, got {describe(mode)}.")
        self.mode = mode
        self.weight = uniform(math.sqrt(1 / input_dims), (output_dims, input_dims), dtype, key)
        self.scales = None
        quantized(self.weight, self.group_size, self.bits, mode)  # raises now if it can't be; nothing is computed

    def __call__(self, x: mx.array) -> mx.array:
        dims = self.weight.shape[-1] if self.scales is None else self.scales.shape[-1] * self.group_size
        if x.shape[-1:] != (dims,):
            raise misfit(self, f"[N, {dims}]", x)
        try:
            return mx.qqmm(x, self.weight, self.scales, group_size=self.group_size, bits=self.bits, mode=self.mode)
        except (TypeError, ValueError) as error:
            raise misfit(self, f"[N, {dims}]", x, error) from error

    @returns_copy("layer = layer.{name}()")
    def quantize(self) -> Self:
        """Return the layer with its weight quantized, in the same training mode. :meth:`eval` does this too.

        >>> import frostleaf as fl
        >>> fl.nn.QQLinear(32, 2).quantize().weight.dtype
        mlx.core.uint32
        """
        if self.scales is not None:
            return self
        weight, scales, _ = quantized(self.weight, self.group_size, self.bits, self.mode)
        return evolve(self, {"weight": weight, "scales": scales})

    @returns_copy("layer = layer.{name}()")
    def dequantize(self) -> Self:
        """Return the layer with its weight dequantized, in ``mx.bfloat16``. :meth:`train` does this too.

        >>> import frostleaf as fl
        >>> fl.nn.QQLinear(32, 2).eval().dequantize()
        QQLinear[eval](weight=bf16[2,32], scales=None, group_size=16, bits=4, mode='nvfp4')
        """
        if self.scales is None:
            return self
        weight = mx.dequantize(self.weight, self.scales, group_size=self.group_size, bits=self.bits, mode=self.mode)
        return evolve(self, {"weight": weight, "scales": None})

    def _set_training_mode(self, mode: bool) -> Self:
        layer = super()._set_training_mode(mode)
        return layer.dequantize() if mode else layer.quantize()

    @classmethod
    def from_linear(
        cls, linear_layer: Module, group_size: int | None = None, bits: int | None = None, mode: str = "nvfp4"
    ) -> Self:
        """Return a layer with the weight of a :class:`Linear`, frozen if it was, in the same training mode.

        Args:
            linear_layer: The layer.
            group_size, bits, mode: As above.

        Raises:
            ValueError: As above, or if the layer's weight is not of two axes and a floating-point dtype.
            NotImplementedError: If the layer has a bias.

        >>> import frostleaf as fl
        >>> linear = fl.nn.Linear(32, 2, bias=False)
        >>> fl.nn.QQLinear.from_linear(linear).weight is linear.weight
        True
        """
        linear: Any = linear_layer
        output_dims, input_dims = _matrix(cls, linear).shape
        layer = cls(input_dims, output_dims, group_size, bits, mode, **undrawn())
        if getattr(linear, "bias", None) is not None:
            advice = "Give it a Linear without: Linear(..., bias=False), or linear.replace(bias=None)"
            raise NotImplementedError(f"QQLinear does not support bias yet. {advice}.")
        frozen = frozenset({"weight"} if metadata_of(linear).freezes(("weight",)) else ())
        return evolve(layer, {"weight": linear.weight}, frozen=frozen).train(linear.training)


def settings(layer: Module, group_size: int | None, bits: int | None, mode: str) -> tuple[int, int]:
    if not isinstance(mode, str) or mode not in _MODES:
        raise ValueError(f"Invalid quantization mode {mode!r}. Valid modes are: {', '.join(_MODES)}.")
    default_size, default_bits = _MODES[mode]
    return size(layer, "group_size", group_size or default_size), size(layer, "bits", bits or default_bits)


def _matrix(cls: type[Module], layer: Any) -> mx.array:
    """Return the weight of a layer that is to be quantized as ``cls``."""
    weight = getattr(layer, "weight", None) if isinstance(layer, Module) else None
    if not isinstance(weight, mx.array) or weight.ndim != 2 or not mx.issubdtype(weight.dtype, mx.floating):
        wanted = "a frostleaf module that has a floating-point weight of two axes"
        held = "" if weight is None else f", whose weight is {describe(weight)}"
        raise ValueError(f"{cls.__name__} is made of {wanted}, and was given {describe(layer)}{held}")
    if metadata_of(layer).shards:
        raise ValueError(
            f"{cls.__name__} is made of a whole layer, and was given shards of one: quantize it before it is divided"
        )
    return weight


def quantized(weight: mx.array, group_size: int, bits: int, mode: str) -> tuple[mx.array, mx.array, mx.array | None]:
    if weight.dtype == mx.float64:  # MLX would refuse it too, but only when the numbers are needed
        advice = "Make the layer in mx.float32, mx.float16 or mx.bfloat16, or cast it first"
        raise ValueError(f"MLX does not quantize numbers in mx.float64. {advice}.")
    codes, scales, *biases = mx.quantize(weight, group_size, bits, mode=mode)
    return codes, scales, biases[0] if biases else None


def undrawn() -> dict[str, Any]:
    """Return options for a layer whose numbers are replaced before they are computed: ``mx.random``'s state is not used."""
    return {"dtype": mx.float32, "key": mx.random.key(0)}
