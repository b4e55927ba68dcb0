"""Derivatives with respect to the trainable part of a tree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from ..edits.freezing import trainable
from ..tree.compare import describe
from ..tree.structure import Structure, dotted, flatten, unflatten
from .passing import Inputs, Origins, together

NO_ARGUMENT = "can't differentiate {fn} with respect to argument {number}: it was called with {count} positional arguments"
NAMED_TWICE = "can't differentiate {fn} with respect to arguments {argnums}: one of them is named twice"
NOTHING_TRAINABLE = (
    "argument {number} of {fn} has nothing to differentiate: it needs an array of a floating-point dtype that is neither "
    "frozen nor a buffer, and has {found}"
)
NOT_A_SCALAR = "{fn} must return a scalar array to be differentiated, and returned {given}{advice}"
NO_AUX = "{fn} must return a pair (value, aux) when has_aux=True, and returned {given}"


def value_and_grad(
    fn: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """Return a function that returns the value of ``fn`` and its gradient with respect to some arguments.

    The gradient of a tree has its class and shape, with an array for each trainable floating-point leaf and ``None`` everywhere
    else: for frozen parameters, buffers, other dtypes, and static values that are not fields of a module.

    Args:
        fn: Returns a scalar, or with ``has_aux`` a pair of a scalar and any tree.
        argnums: The position of the argument to differentiate with respect to, or several. Default: ``0``.
        has_aux: Whether ``fn`` returns something besides the scalar. Default: ``False``.

    Returns:
        A function of the same arguments that returns ``(value, grad)``, or ``((value, aux), grad)`` with ``has_aux``, as in
        JAX. For several ``argnums`` the gradient is a tuple.

    Raises:
        ValueError: When called, if an argument is not there or has nothing trainable, or ``fn`` returns something else.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Linear(2, 1).freeze(keys="bias")
    >>> loss, grad = fl.value_and_grad(lambda layer, x: layer(x).sum())(layer, mx.ones((3, 2)))
    >>> grad.weight, grad.bias
    (array([[3, 3]], dtype=float32), None)
    """
    name = getattr(fn, "__name__", type(fn).__name__)
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(fn)
    def value_and_grad_of(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        positions = _positions(numbers, len(args), name)
        parts = [_part(args[position], position, name) for position in positions]
        untouched = [leaf for part in parts for leaf in part.other_leaves()]
        inputs = Inputs(untouched)
        aux_structure: Structure | None = None
        origins: Origins | None = None

        def on_leaves(leaves: list[mx.array]) -> tuple[mx.array, list[mx.array]]:
            nonlocal aux_structure, origins
            given, rest = list(args), iter(leaves)
            for position, part in zip(positions, parts, strict=True):
                given[position] = part.tree_with(rest)
            value, aux = _split(fn(*given, **kwargs), has_aux, name)
            aux_leaves, aux_structure = flatten(aux)
            computed, origins = inputs.separate(aux_leaves)
            return value, computed

        differentiated = mx.value_and_grad(on_leaves)
        (value, computed), gradients = differentiated([leaf for part in parts for leaf in part.trainable_leaves()])
        rest = iter(gradients)
        trees = tuple(part.gradient_with(rest) for part in parts)
        grads = trees[0] if isinstance(argnums, int) else trees
        if not has_aux:
            return value, grads
        return (value, unflatten(aux_structure, together(computed, origins, untouched))), grads  # type: ignore[arg-type]

    return value_and_grad_of


def grad(fn: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """Return a function that returns the gradient of ``fn`` with respect to some arguments.

    As :func:`value_and_grad` without the value: the result is the gradient, or ``(gradient, aux)`` with ``has_aux``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.grad(lambda tree: (tree["a"] * tree["n"]).sum())({"a": mx.ones(2), "n": 3})
    {'a': array([3, 3], dtype=float32), 'n': None}
    """
    with_value = value_and_grad(fn, argnums, has_aux)

    @functools.wraps(fn)
    def grad_of(*args: Any, **kwargs: Any) -> Any:
        value, gradient = with_value(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return grad_of


class _Part(NamedTuple):
    """An argument that is differentiated with respect to: its leaves, which of them count, and its structure."""

    leaves: list[mx.array]
    mask: list[bool]
    structure: Structure

    def trainable_leaves(self) -> list[mx.array]:
        return [leaf for leaf, trains in zip(self.leaves, self.mask, strict=True) if trains]

    def other_leaves(self) -> list[mx.array]:
        return [leaf for leaf, trains in zip(self.leaves, self.mask, strict=True) if not trains]

    def tree_with(self, trainable_leaves: Iterator[mx.array]) -> Any:
        merged = [next(trainable_leaves) if trains else leaf for leaf, trains in zip(self.leaves, self.mask, strict=True)]
        return unflatten(self.structure, merged)

    def gradient_with(self, gradients: Iterator[mx.array]) -> Any:
        values = [next(gradients) if trains else None for trains in self.mask]
        return unflatten(self.structure, values, static=lambda _: None)


def _positions(argnums: Sequence[int], count: int, name: str) -> list[int]:
    """Return which of ``count`` positional arguments are meant, counted from the front."""
    for number in argnums:
        if not -count <= number < count:
            raise ValueError(NO_ARGUMENT.format(fn=name, number=number, count=count))
    positions = [number % count for number in argnums]
    if len(set(positions)) < len(positions):
        raise ValueError(NAMED_TWICE.format(fn=name, argnums=tuple(argnums)))
    return positions


def _part(tree: Any, number: int, name: str) -> _Part:
    leaves, structure = flatten(tree)
    mask = trainable(tree)
    if not any(mask):
        paths = [dotted(path) or "(the argument)" for path in structure.leaf_paths()]
        found = ", ".join(f"{path} {describe(leaf)}" for path, leaf in zip(paths[:8], leaves, strict=False)) or "no array"
        raise ValueError(NOTHING_TRAINABLE.format(number=number, fn=name, found=found + ", ..." * (len(paths) > 8)))
    return _Part(leaves, mask, structure)


def _split(out: Any, has_aux: bool, name: str) -> tuple[mx.array, Any]:
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(NO_AUX.format(fn=name, given=describe(out)))
    value, aux = out if has_aux else (out, None)
    if not isinstance(value, mx.array) or value.ndim != 0:
        advice = ". For a pair (loss, aux) say has_aux=True" if isinstance(value, tuple) else ""
        raise ValueError(NOT_A_SCALAR.format(fn=name, given=describe(value), advice=advice))
    return value, aux
