"""Mixed precision: parameters in one dtype, computation in another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import attrs
import mlx.core as mx

from ..core.pickling import from_picklable, to_picklable
from ..core.words import describe
from ..edits.casting import astype

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _require_floating(policy: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, mx.Dtype) or not mx.issubdtype(value, mx.floating):
        expected = f"{attribute.name} of fl.Policy is a floating-point mx.Dtype, such as mx.bfloat16"
        raise TypeError(f"{expected}, and was given as {describe(value)}")


@attrs.frozen
class Policy:
    """Keep a model in one dtype, compute in another, and answer in a third.

    With a ``compute_dtype`` of half the size of ``param_dtype`` a step takes half the memory for activations, and on a GPU
    less time, while small updates are not lost in the parameters: Micikevicius et al., `Mixed precision training
    <https://arxiv.org/abs/1710.03740>`_. For ``mx.float16``, whose range is small, see also :class:`fl.optim.DynamicLossScale`.

    Only floating-point arrays are cast, those of quantized layers included (see :meth:`Module.astype`).

    Args:
        param_dtype: The dtype of the parameters, of their gradients and of the optimizer's state. Default: ``mx.float32``.
        compute_dtype: The dtype of the computation. Default: ``mx.float32``.
        output_dtype: The dtype of results. Default: ``mx.float32``.

    Raises:
        TypeError: If one of them is not a floating-point dtype.

    >>> import frostleaf as fl, mlx.core as mx
    >>> policy = fl.Policy(compute_dtype=mx.bfloat16)
    >>> def loss_fn(layer, x):
    ...     print(layer.weight.dtype, x.dtype)
    ...     return layer(x).sum()
    >>> loss, grads = fl.value_and_grad(policy.wrap(loss_fn))(fl.nn.Linear(2, 3), mx.ones((1, 2)))
    mlx.core.bfloat16 mlx.core.bfloat16
    >>> loss.dtype, grads.weight.dtype
    (mlx.core.float32, mlx.core.float32)
    """

    param_dtype: mx.Dtype = attrs.field(default=mx.float32, validator=_require_floating)
    compute_dtype: mx.Dtype = attrs.field(default=mx.float32, validator=_require_floating)
    output_dtype: mx.Dtype = attrs.field(default=mx.float32, validator=_require_floating)

    def wrap(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Cast the arguments of ``fn`` to ``compute_dtype`` and its result to ``output_dtype``.

        The gradient of the result goes through the cast, and so has the dtype of the argument. A model in the result, such as
        :func:`stateful` returns, comes out rounded to ``compute_dtype``: return its buffers alone.
        """

        @functools.wraps(fn)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            args, kwargs = self.cast_to_compute((args, kwargs))
            return self.cast_to_output(fn(*args, **kwargs))

        return wrapped

    def cast_to_param(self, tree: T) -> T:
        """Cast the floating-point arrays of a tree to ``param_dtype``."""
        return astype(tree, self.param_dtype)

    def cast_to_compute(self, tree: T) -> T:
        """Cast the floating-point arrays of a tree to ``compute_dtype``."""
        return astype(tree, self.compute_dtype)

    def cast_to_output(self, tree: T) -> T:
        """Cast the floating-point arrays of a tree to ``output_dtype``."""
        return astype(tree, self.output_dtype)

    def __reduce__(self) -> Any:  # MLX's dtypes can't be pickled
        return _policy, (to_picklable((self.param_dtype, self.compute_dtype, self.output_dtype)),)


def _policy(dtypes: Any) -> Policy:
    return Policy(*from_picklable(dtypes))
