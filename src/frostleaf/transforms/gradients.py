"""Derivatives with respect to the trainable part of a tree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from ..edits.freezing import trainable
from ..tree.compare import describe
from ..tree.functions import dotted, flatten, unflatten
from ..tree.structure import Structure

NO_ARGUMENT = "can't differentiate {fn} with respect to argument {number}: it was called with {count} positional arguments"
NO_NAME = "can't differentiate {fn} with respect to argument {name!r}: it was called with {given}"
NAMED_TWICE = "can't differentiate {fn} with respect to arguments {argnums}: one of them is named twice"
NOTHING_TRAINABLE = (
    "argument {number} of {fn} has nothing to differentiate: it needs an array of a floating-point dtype that is neither "
    "frozen nor a buffer, and has {found}"
)
NOT_A_SCALAR = "{fn} must return a scalar floating-point array to be differentiated, and returned {given}{advice}"
MLX_ORDER = (
    "argnums is a function. What MLX writes as nn.value_and_grad(model, fn)(x) is fl.value_and_grad(fn)(model, x): fn takes "
    "the model as an argument"
)
NO_AUX = "{fn} must return a pair (value, aux) when has_aux=True, and returned {given}"


def value_and_grad(
    fn: Callable[..., Any],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    argnames: str | Sequence[str] = (),
) -> Callable[..., tuple[Any, Any]]:
    """Return a function that returns the value of ``fn`` and its gradient with respect to some arguments.

    The gradient of a tree has its class and shape, with an array for each trainable floating-point leaf and ``None`` everywhere
    else: for frozen parameters, buffers, other dtypes, and static values that are not fields of a module.

    Args:
        fn: Returns a scalar, or with ``has_aux`` a pair of a scalar and any tree.
        argnums: The position of the argument to differentiate with respect to, or several. Default: ``0``, or none if there are
            ``argnames``.
        has_aux: Whether ``fn`` returns something besides the scalar. Default: ``False``.
        argnames: The name of a keyword argument to differentiate with respect to, or several. Default: none.

    Returns:
        A function of the same arguments that returns ``(value, grad)``, or ``((value, aux), grad)`` with ``has_aux``, as in
        JAX. For several ``argnums`` the gradient is a tuple. With ``argnames`` it is, as in MLX, a pair of what it would be
        without them (``None`` if there are no ``argnums``) and a dict of gradients by name.

    Raises:
        TypeError: If ``argnums`` is a function, as for ``nn.value_and_grad(model, fn)`` of MLX.
        ValueError: When called, if an argument is not there or has nothing trainable, or ``fn`` returns something else.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Linear(2, 1).freeze(keys="bias")
    >>> loss, grad = fl.value_and_grad(lambda layer, x: layer(x).sum())(layer, mx.ones((3, 2)))
    >>> grad.weight, grad.bias
    (array([[3, 3]], dtype=float32), None)
    """
    if callable(argnums):
        raise TypeError(MLX_ORDER)
    name = getattr(fn, "__name__", type(fn).__name__)
    names = (argnames,) if isinstance(argnames, str) else tuple(argnames)
    argnums = 0 if argnums is None and not names else argnums
    numbers = () if argnums is None else (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(fn)
    def value_and_grad_of(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        positions = _positions(numbers, len(args), name)
        _require_names(names, kwargs, name)
        parts = [_part(args[position], position, name) for position in positions]
        parts += [_part(kwargs[each], repr(each), name) for each in names]
        aux: Any = None

        def on_leaves(leaves: list[mx.array]) -> mx.array:
            # MLX stops the gradient of what comes with the value, and a surrounding grad is to see it: aux goes past MLX.
            nonlocal aux
            rest = iter(leaves)
            trees = [part.tree_with(rest) for part in parts]
            given, named = list(args), dict(zip(names, trees[len(positions) :], strict=True))
            for position, tree in zip(positions, trees, strict=False):
                given[position] = tree
            value, aux = _split(fn(*given, **{**kwargs, **named}), has_aux, name)
            return value

        value, gradients = mx.value_and_grad(on_leaves)([leaf for part in parts for leaf in part.trainable_leaves()])
        rest = iter(gradients)
        trees = [part.gradient_with(rest) for part in parts]
        positional = trees[0] if isinstance(argnums, int) else tuple(trees[: len(positions)]) if numbers else None
        grads = (positional, dict(zip(names, trees[len(positions) :], strict=True))) if names else positional
        return (value, aux) if has_aux else value, grads

    return value_and_grad_of


def grad(
    fn: Callable[..., Any],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    argnames: str | Sequence[str] = (),
) -> Callable[..., Any]:
    """Return a function that returns the gradient of ``fn`` with respect to some arguments.

    As :func:`value_and_grad` without the value: the result is the gradient, or ``(gradient, aux)`` with ``has_aux``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.grad(lambda tree: (tree["a"] * tree["n"]).sum())({"a": mx.ones(2), "n": 3})
    {'a': array([3, 3], dtype=float32), 'n': None}
    """
    with_value = value_and_grad(fn, argnums, has_aux, argnames)

    @functools.wraps(fn)
    def grad_of(*args: Any, **kwargs: Any) -> Any:
        value, gradient = with_value(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return grad_of


class Part(NamedTuple):
    """An argument that is differentiated with respect to: its leaves, which of them count, and its structure."""

    leaves: list[mx.array]
    mask: list[bool]
    structure: Structure

    def trainable_leaves(self) -> list[mx.array]:
        return [leaf for leaf, trains in zip(self.leaves, self.mask, strict=True) if trains]

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


def _require_names(argnames: Sequence[str], given: Iterable[str], name: str) -> None:
    for each in argnames:
        if each not in given:
            raise ValueError(NO_NAME.format(fn=name, name=each, given=", ".join(map(repr, given)) or "no keyword arguments"))
    if len(set(argnames)) < len(argnames):
        raise ValueError(NAMED_TWICE.format(fn=name, argnums=tuple(argnames)))


def part_of(tree: Any) -> Part:
    """Return an argument taken apart."""
    leaves, structure = flatten(tree)
    return Part(leaves, trainable(tree), structure)


def found_in(part: Part) -> str:
    """Return the paths, dtypes and shapes of the first arrays of an argument, for use in a message."""
    paths = [dotted(path) or "(the argument)" for path in part.structure.leaf_paths()]
    found = ", ".join(f"{path} {describe(leaf)}" for path, leaf in zip(paths[:8], part.leaves, strict=False)) or "no array"
    return found + ", ..." * (len(paths) > 8)


def _part(tree: Any, number: int | str, name: str) -> Part:
    part = part_of(tree)
    if not any(part.mask):
        raise ValueError(NOTHING_TRAINABLE.format(number=number, fn=name, found=found_in(part)))
    return part


def _split(out: Any, has_aux: bool, name: str) -> tuple[mx.array, Any]:
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(NO_AUX.format(fn=name, given=describe(out)))
    value, aux = out if has_aux else (out, None)
    if not isinstance(value, mx.array) or value.ndim != 0 or not mx.issubdtype(value.dtype, mx.floating):
        advice = ". For a pair (loss, aux) say has_aux=True" if isinstance(value, tuple) else ""
        raise ValueError(NOT_A_SCALAR.format(fn=name, given=describe(value), advice=advice))
    return value, aux
