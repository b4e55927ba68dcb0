"""Layers that shift and scale their input to mean 0 and variance 1."""

from __future__ import annotations

import math

import mlx.core as mx

from ..core.fields import buffer, static
from ..core.words import describe, dtype_name
from ..module import Module
from ..transforms.context import is_shapeless
from ..transforms.stateful import record, recorded, recording
from .checks import misfit, number, positive, size
from .dtypes import layer_dtype


class LayerNorm(Module):
    r"""Normalise the last axis: :math:`y = \frac{x - E[x]}{\sqrt{Var[x] + \epsilon}} \gamma + \beta`.

    :math:`\gamma`, the weight, starts at 1 and :math:`\beta`, the bias, at 0.
    Ba et al., `Layer normalization <https://arxiv.org/abs/1607.06450>`_.

    Args:
        dims: The length of the last axis.
        eps: Keeps the denominator away from 0. Default: ``1e-5``.
        affine: Whether there are a weight and a bias. Default: ``True``.
        bias: Whether there is a bias beside the weight. Default: ``True``.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.

    Shapes:
        ``weight`` and ``bias`` are ``[dims]``, or ``None``; input and output ``[..., dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one.
        ValueError: If ``eps`` is not positive, or ``dims`` is not an int of 0 or more; in a call, if the last
            axis of the input is not of length ``dims``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.LayerNorm(2)
    >>> layer, layer(mx.array([1.0, 5.0])).round(2)
    (LayerNorm(weight=f32[2], bias=f32[2], dims=2, eps=1e-05), array([-1, 1], dtype=float32))
    """

    weight: mx.array | None
    bias: mx.array | None
    dims: int = static()
    eps: float = static(validator=positive)

    def __init__(
        self, dims: int, eps: float = 1e-5, affine: bool = True, bias: bool = True, *, dtype: mx.Dtype | None = None
    ) -> None:
        dims = size(self, "dims", dims, least=0)
        dtype = layer_dtype(dtype)
        self.dims = dims
        self.eps = eps
        self.weight = mx.ones((dims,), dtype) if affine else None
        self.bias = mx.zeros((dims,), dtype) if affine and bias else None

    def __call__(self, x: mx.array) -> mx.array:
        if x.shape[-1:] != (self.dims,):
            raise misfit(self, f"[..., {self.dims}]", x)
        try:
            return mx.fast.layer_norm(x, self.weight, self.bias, self.eps)
        except (TypeError, ValueError) as error:
            raise misfit(self, f"[..., {self.dims}]", x, error) from error


class RMSNorm(Module):
    r"""Divide by the root mean square of the last axis: :math:`y = \frac{x}{\sqrt{E[x^2] + \epsilon}} \gamma`.

    :math:`\gamma`, the weight, starts at 1. The mean is computed in float32, whatever the dtype of the input.
    Zhang and Sennrich, `Root mean square layer normalization <https://arxiv.org/abs/1910.07467>`_.

    Args:
        dims: The length of the last axis.
        eps: Keeps the denominator away from 0. Default: ``1e-5``.
        dtype: The dtype of the weight. Default: that of :func:`frostleaf.default_dtype`.

    Shapes:
        ``weight`` is ``[dims]``; input and output ``[..., dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one.
        ValueError: If ``eps`` is not positive, or ``dims`` is not an int of 0 or more; in a call, if the last
            axis of the input is not of length ``dims``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.RMSNorm(2)
    >>> layer, layer(mx.array([1.0, 7.0])).round(2)
    (RMSNorm(weight=f32[2], eps=1e-05), array([0.2, 1.4], dtype=float32))
    """

    weight: mx.array
    eps: float = static(validator=positive)

    def __init__(self, dims: int, eps: float = 1e-5, *, dtype: mx.Dtype | None = None) -> None:
        dims = size(self, "dims", dims, least=0)
        self.weight = mx.ones((dims,), layer_dtype(dtype))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        if x.shape[-1:] != self.weight.shape:
            raise misfit(self, f"[..., {self.weight.shape[-1]}]", x)
        try:
            return mx.fast.rms_norm(x, self.weight, self.eps)
        except (TypeError, ValueError) as error:
            raise misfit(self, f"[..., {self.weight.shape[-1]}]", x, error) from error


class GroupNorm(Module):
    r"""Normalise groups of channels: :math:`y = \frac{x - E[x]}{\sqrt{Var[x] + \epsilon}} \gamma + \beta`.

    Mean and (biased) variance are those of one group of channels of one element of the batch, at all of its positions.
    Channel :math:`c` of :math:`C` is in group :math:`c \bmod G`. In PyTorch it is in group :math:`\lfloor c G / C \rfloor`, so
    that the channels of a group are neighbours: use ``pytorch_compatible`` for weights that were trained there.
    :math:`\gamma`, the weight, starts at 1 and :math:`\beta`, the bias, at 0.
    Wu and He, `Group normalization <https://arxiv.org/abs/1803.08494>`_.

    Args:
        num_groups: The number of groups, :math:`G`.
        dims: The number of channels.
        eps: Keeps the denominator away from 0. Default: ``1e-5``.
        affine: Whether there are a weight and a bias. Default: ``True``.
        pytorch_compatible: Whether the channels are grouped as PyTorch does. Default: ``False``.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.

    Shapes:
        ``weight`` and ``bias`` are ``[dims]``, or ``None``; input and output ``[N, ..., dims]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one.
        ValueError: If ``eps``, ``num_groups`` or ``dims`` is not positive, or ``dims`` is not a multiple of
            ``num_groups``; in a call, if the input is not of the shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> x = mx.array([[[0.0, 10.0, 2.0, 14.0]]])
    >>> fl.nn.GroupNorm(2, 4)(x).round(2)
    array([[[-1, -1, 1, 1]]], dtype=float32)
    >>> fl.nn.GroupNorm(2, 4, pytorch_compatible=True)(x).round(2)
    array([[[-1, 1, -1, 1]]], dtype=float32)
    """

    bias: mx.array | None
    weight: mx.array | None
    num_groups: int = static()
    dims: int = static()
    eps: float = static(validator=positive)
    pytorch_compatible: bool = static()

    def __init__(
        self,
        num_groups: int,
        dims: int,
        eps: float = 1e-5,
        affine: bool = True,
        pytorch_compatible: bool = False,
        *,
        dtype: mx.Dtype | None = None,
    ) -> None:
        num_groups, dims = size(self, "num_groups", num_groups), size(self, "dims", dims)
        if dims % num_groups != 0:
            rule = "dims must be a multiple of num_groups"
            raise ValueError(f"GroupNorm can't divide {dims} channels into {num_groups} groups: {rule}")
        dtype = layer_dtype(dtype)
        self.num_groups = num_groups
        self.dims = dims
        self.eps = eps
        self.pytorch_compatible = pytorch_compatible
        self.bias = mx.zeros((dims,), dtype) if affine else None
        self.weight = mx.ones((dims,), dtype) if affine else None

    def __call__(self, x: mx.array) -> mx.array:
        if x.ndim < 2 or x.shape[-1] != self.dims:
            raise misfit(self, f"[N, ..., {self.dims}]", x)
        if x.size == 0:  # MLX can't reshape an empty batch
            return _affine(x, self.weight, self.bias)
        if is_shapeless():
            return _affine(self._normed_at_all_shapes(x), self.weight, self.bias)
        batch = x.shape[0]
        if self.pytorch_compatible:
            y = x.reshape(batch, -1, self.num_groups, self.dims // self.num_groups).transpose(0, 2, 1, 3)
            try:
                normed = mx.fast.layer_norm(y.reshape(batch, self.num_groups, -1), None, None, self.eps)
            except (TypeError, ValueError) as error:
                raise misfit(self, f"[N, ..., {self.dims}]", x, error) from error
            y = normed.reshape(y.shape).transpose(0, 2, 1, 3)
        else:
            y = x.reshape(batch, -1, self.num_groups)
            y = _normed(y, (1,), self.eps)
        return _affine(y.reshape(x.shape), self.weight, self.bias)

    def _normed_at_all_shapes(self, x: mx.array) -> mx.array:
        """Compute without any size of the input but the last."""
        of_group, axes = self.dims // self.num_groups, range(1, x.ndim - 1)
        if self.pytorch_compatible:
            y = mx.unflatten(x, -1, (self.num_groups, of_group))
            try:
                return _normed_in_float32(y, (*axes, x.ndim), self.eps).flatten(-2)
            except ValueError as error:
                raise misfit(self, f"[N, ..., {self.dims}]", x, error) from error
        y = mx.unflatten(x, -1, (of_group, self.num_groups))
        return _normed(y, (*axes, x.ndim - 1), self.eps).flatten(-2)


class InstanceNorm(Module):
    r"""Normalise each channel of each input: :math:`y = \frac{x - E[x]}{\sqrt{Var[x] + \epsilon}} \gamma + \beta`.

    Mean and (biased) variance are those of one channel of one element of the batch, at all of its positions.
    :math:`\gamma`, the weight, starts at 1 and :math:`\beta`, the bias, at 0.
    Ulyanov et al., `Instance normalization: the missing ingredient for fast stylization
    <https://arxiv.org/abs/1607.08022>`_.

    Args:
        dims: The number of channels.
        eps: Keeps the denominator away from 0. Default: ``1e-5``.
        affine: Whether there are a weight and a bias. Default: ``False``.
        dtype: The dtype of weight and bias. Default: that of :func:`frostleaf.default_dtype`.

    Shapes:
        ``weight`` and ``bias`` are ``[dims]``, or ``None``; input and output ``[N, ..., dims]``, with at least one axis
        between the two.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one.
        ValueError: If ``eps`` is not positive, or ``dims`` is not a positive int; in a call, if the input is not of
            the shape above.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.InstanceNorm(2)
    >>> layer, layer(mx.array([[[0.0, 10.0], [2.0, 14.0]]])).round(2)
    (InstanceNorm(weight=None, bias=None, dims=2, eps=1e-05), array([[[-1, -1],
            [1, 1]]], dtype=float32))
    """

    weight: mx.array | None
    bias: mx.array | None
    dims: int = static()
    eps: float = static(validator=positive)

    def __init__(self, dims: int, eps: float = 1e-5, affine: bool = False, *, dtype: mx.Dtype | None = None) -> None:
        dims = size(self, "dims", dims)
        dtype = layer_dtype(dtype)
        self.dims = dims
        self.eps = eps
        self.weight = mx.ones((dims,), dtype) if affine else None
        self.bias = mx.zeros((dims,), dtype) if affine else None

    def __call__(self, x: mx.array) -> mx.array:
        shape = f"[N, L, {self.dims}], [N, H, W, {self.dims}] or with more axes between"
        if x.ndim < 3 or x.shape[-1] != self.dims:
            raise misfit(self, shape, x)
        if x.size == 0:  # MLX can't reshape an empty batch
            return _affine(x, self.weight, self.bias)
        y = mx.moveaxis(x, -1, 1)
        try:
            if is_shapeless():
                return _affine(_normed_in_float32(x, tuple(range(1, x.ndim - 1)), self.eps), self.weight, self.bias)
            normed = mx.fast.layer_norm(y.reshape(*y.shape[:2], -1), None, None, self.eps)
        except (TypeError, ValueError) as error:
            raise misfit(self, shape, x, error) from error
        return _affine(mx.moveaxis(normed.reshape(y.shape), 1, -1), self.weight, self.bias)


class BatchNorm(Module):
    r"""Normalise each channel over the batch: :math:`y = \frac{x - E[x]}{\sqrt{Var[x] + \epsilon}} \gamma + \beta`.

    In training mode mean and (biased) variance are those of the input, in evaluation mode the running statistics. A
    call changes nothing; ``out, model = fl.stateful(model, x)`` returns the model with its running statistics moved
    towards those of the batch: ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance.
    :math:`\gamma`, the weight, and the running variance start at 1, :math:`\beta`, the bias, and the running mean at 0.
    Ioffe and Szegedy, `Batch normalization <https://arxiv.org/abs/1502.03167>`_.

    Args:
        num_features: The number of channels, ``C``.
        eps: Keeps the denominator away from 0. Default: ``1e-5``.
        momentum: How far the running statistics move. Default: ``0.1``.
        affine: Whether there are a weight and a bias. Default: ``True``.
        track_running_stats: Whether there are running statistics; without them evaluation mode uses those of the input too.
            Default: ``True``.
        dtype: The dtype of the arrays. Default: that of :func:`frostleaf.default_dtype`.

    Shapes:
        ``weight``, ``bias`` and the buffers ``running_mean`` and ``running_var`` are ``[C]``, or ``None``;
        input and output ``[N, C]``, ``[N, L, C]`` or ``[N, H, W, C]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one.
        ValueError: If ``eps`` is not positive, ``momentum`` is no number, or ``num_features`` is not an int of 0 or more; in a
            call, if the input is not of a shape above, or in training mode has only one value per channel.

    >>> import frostleaf as fl, mlx.core as mx
    >>> norm = fl.nn.BatchNorm(1)
    >>> out, after = fl.stateful(norm, mx.array([[1.0], [3.0]]))
    >>> out.round(2).tolist(), after.running_mean.item(), norm.running_mean.item()
    ([[-1.0], [1.0]], 0.2..., 0.0)
    """

    weight: mx.array | None
    bias: mx.array | None
    running_mean: mx.array | None = buffer()
    running_var: mx.array | None = buffer()
    num_features: int = static()
    eps: float = static(validator=positive)
    momentum: float = static(validator=number)
    track_running_stats: bool = static()

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: mx.Dtype | None = None,
    ) -> None:
        num_features = size(self, "num_features", num_features, least=0)
        dtype = layer_dtype(dtype)
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        self.weight = mx.ones((num_features,), dtype) if affine else None
        self.bias = mx.zeros((num_features,), dtype) if affine else None
        self.running_mean = mx.zeros((num_features,), dtype) if track_running_stats else None
        self.running_var = mx.ones((num_features,), dtype) if track_running_stats else None

    def __call__(self, x: mx.array) -> mx.array:
        if not 2 <= x.ndim <= 4 or x.shape[-1] != self.num_features:
            channels = self.num_features
            raise misfit(self, f"[N, {channels}], [N, L, {channels}] or [N, H, W, {channels}]", x)
        if self.training and math.prod(x.shape[:-1]) == 1:
            raise ValueError(
                f"{type(self).__name__} was given {describe(x)}, one value per channel, which has no variance. In training "
                "mode it needs more: give it a larger batch, or use model.eval(), which normalises with the running statistics."
            )
        axes = tuple(range(x.ndim - 1))
        mean, var = mx.mean(x, axes), mx.var(x, axes)
        running = recorded(self)
        if self.track_running_stats and running.running_mean is not None and running.running_var is not None:
            if not self.training:
                mean, var = running.running_mean, running.running_var
            elif self.momentum or recording():  # or else they stay as they are, and nobody need collect them
                old, new = 1 - self.momentum, self.momentum
                record(
                    self,
                    running_mean=old * running.running_mean + new * mean,
                    running_var=old * running.running_var + new * mx.var(x, axes, ddof=1),
                )
        return _affine((x - mean) * mx.rsqrt(var + self.eps), self.weight, self.bias)


def _normed(x: mx.array, axes: tuple[int, ...], eps: float) -> mx.array:
    return (x - mx.mean(x, axes, keepdims=True)) * mx.rsqrt(mx.var(x, axes, keepdims=True) + eps)


def _normed_in_float32(x: mx.array, axes: tuple[int, ...], eps: float) -> mx.array:
    """Compute as :func:`mlx.core.fast.layer_norm` does, for several axes."""
    if not mx.issubdtype(x.dtype, mx.floating):
        raise ValueError(f"{dtype_name(x.dtype)} is not floating-point")
    return _normed(x.astype(mx.float32), axes, eps).astype(x.dtype)


def _affine(x: mx.array, weight: mx.array | None, bias: mx.array | None) -> mx.array:
    if weight is not None:
        x = weight * x
    return x if bias is None else x + bias
