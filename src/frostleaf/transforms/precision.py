"""Mixed precision: parameters in one dtype, computation in another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import attrs
import mlx.core as mx

from ..core import fields
from ..core.instance import Metadata
from ..core.levels import entries_of
from ..core.pickling import from_picklable, to_picklable
from ..core.sharing import with_leaves
from ..core.structure import Structure, child_specs, flat_of
from ..core.words import describe
from ..edits.casting import astype, is_floating
from ..tree.functions import flatten, unflatten
from .binding import REFUSED, raise_with_name, unbind
from .reached import require_reached_by
from .wrapping import Wrapped

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _require_floating(policy: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, mx.Dtype) or not mx.issubdtype(value, mx.floating):
        given = describe(value)
        raise TypeError(f"{attribute.name} of fl.Policy must be a floating-point mx.Dtype, such as mx.bfloat16, and is {given}")


@attrs.frozen
class Policy:
    """Keep a model in one dtype, compute in another, and return results in a third.

    With a ``compute_dtype`` of half the size of ``param_dtype``, activations take half the memory and a step on a GPU less
    time, and yet small updates are not lost in the parameters: Micikevicius et al., `Mixed precision training
    <https://arxiv.org/abs/1710.03740>`_. For ``mx.float16``, whose range is small, see also
    :class:`frostleaf.optim.DynamicLossScale`.

    Only floating-point arrays are cast, those of quantized layers included (see :meth:`Module.astype`). The buffers of modules
    in training mode stay as they are, such as running statistics, which half precision would hardly let move: what a layer
    records in them has their dtype. A buffer that is only read, and is to be cast, is declared with ``fl.buffer(cast=True)``.

    Args:
        param_dtype: The dtype of the parameters, of their gradients and of the optimizer's state. Default: ``mx.float32``.
        compute_dtype: The dtype of the computation. Default: ``mx.float32``.
        output_dtype: The dtype of results. Default: ``mx.float32``.

    Raises:
        TypeError: If one of them is not a floating-point dtype; when what :meth:`wrap` returned is called, if an argument, or
            an object that the function is or is a method of, hides arrays.

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

    def wrap(self, fn: Callable[P, R]) -> WithPolicy[P, R]:
        """Cast the arguments of ``fn`` to ``compute_dtype`` and its result to ``output_dtype``.

        Gradients pass through the casts, so they have the dtypes of the arguments. What ``fn`` returns unchanged comes out
        uncast: the parameters of a model in the result of :func:`stateful` are the very arrays that went in.
        """
        return WithPolicy(fn, self)

    def cast_to_param(self, tree: T) -> T:
        """Cast the floating-point arrays of a tree to ``param_dtype``."""
        return astype(tree, self.param_dtype)

    def cast_to_compute(self, tree: T) -> T:
        """Cast the floating-point arrays of a tree to ``compute_dtype``, but for buffers of modules in training mode."""
        leaves, structure = flatten(tree)
        return with_leaves(tree, _cast(leaves, structure, self.compute_dtype))  # type: ignore[no-any-return]

    def cast_to_output(self, tree: T) -> T:
        """Cast the floating-point arrays of a tree to ``output_dtype``."""
        return astype(tree, self.output_dtype)

    def __reduce__(self) -> Any:  # MLX's dtypes can't be pickled
        return _policy, (to_picklable((self.param_dtype, self.compute_dtype, self.output_dtype)),)


class WithPolicy(Wrapped[P, R]):
    """A function that computes in another dtype. :meth:`Policy.wrap` makes it."""

    verb = "Policy.wrap"

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        policy: Policy = self.options
        fn, bound_args, bound_kwargs = unbind(self.__wrapped__)
        require_reached_by("fl.Policy", "they would not be cast", fn)
        called = fn if flat_of(fn, hidden=True).leaves else None
        tree = ((*bound_args, *args), {**bound_kwargs, **kwargs}, called)
        try:
            given, structure = flatten(tree)
        except REFUSED:
            raise_with_name(fn, *tree[:2])
            raise
        cast = _cast(given, structure, policy.compute_dtype)
        originals = {id(new): old for new, old in zip(cast, given, strict=True)}
        positional, named, called = unflatten(structure, cast)
        out, structure = flatten((fn if called is None else called)(*positional, **named))
        new = [originals[id(leaf)] if id(leaf) in originals else _in_dtype(leaf, policy.output_dtype) for leaf in out]
        return unflatten(structure, new)  # type: ignore[no-any-return]


def _cast(leaves: Sequence[mx.array], structure: Structure, dtype: mx.Dtype) -> list[mx.array]:
    """Cast the floating-point leaves of a tree, but for those that a function may record anew."""
    wanted = {each for each in {leaf.dtype for leaf in leaves} if each != dtype and is_floating(each)}
    pairs = zip(leaves, structure.remember(_casts), strict=True)
    return [leaf.astype(dtype) if cast and leaf.dtype in wanted else leaf for leaf, cast in pairs]


def _in_dtype(leaf: mx.array, dtype: mx.Dtype) -> mx.array:
    return leaf.astype(dtype) if leaf.dtype != dtype and is_floating(leaf.dtype) else leaf


def _casts(structure: Structure) -> tuple[bool, ...]:
    return tuple(_casts_in(structure.spec, True, False))


def _casts_in(spec: Any, casts: bool, records: bool) -> Iterator[bool]:
    """Yield for each leaf whether it is cast.

    Args:
        spec: A structure or a spec.
        casts: Whether the fields that hold it are cast.
        records: Whether the innermost of them is a buffer that a module in training mode may record anew.
    """
    if isinstance(spec, Structure):  # with no field around it
        yield from spec.remember(_casts)
    elif spec is mx.array:
        yield casts and not records
    elif isinstance(spec, tuple):
        kind, metadata, specs = spec
        for entry, child in zip(entries_of(kind, metadata), child_specs(specs), strict=True):
            if type(metadata) is Metadata:
                field = kind.__frostleaf__.fields[entry]
                yield from _casts_in(child, casts and fields.cast(field), metadata.training and fields.is_state(field))
            else:
                yield from _casts_in(child, casts, records)


def _policy(dtypes: Any) -> Policy:
    return Policy(*from_picklable(dtypes))
