"""Derivatives with respect to the trainable arrays of trees."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar, overload

import mlx.core as mx

from ..core.shapes import require_no_shapes
from ..core.structure import Structure, specs_in, unflatten_late
from ..core.words import FROZEN_MARK, Path, describe, function_name, keystr
from ..edits.freezing import frozen_leaves, gradient_structure, trainable, unfrozen
from ..tree.functions import flatten, unflatten
from .binding import unbind
from .context import differentiating
from .wrapping import RUNS_LATER, require_runs_when_called

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
# The argument that is differentiated with respect to. The bound lets checkers accept anything that a lambda does with it.
T = TypeVar("T", bound=Any)


@overload
def value_and_grad(  # type: ignore[overload-overlap]
    fn: Callable[Concatenate[T, P], R], argnums: Literal[0] | None = None, has_aux: Literal[False] = False
) -> Callable[Concatenate[T, P], tuple[R, T]]: ...


@overload
def value_and_grad(  # type: ignore[overload-overlap]
    fn: Callable[Concatenate[T, P], tuple[R, A]], argnums: Literal[0] | None = None, *, has_aux: Literal[True]
) -> Callable[Concatenate[T, P], tuple[tuple[R, A], T]]: ...


@overload
def value_and_grad(
    fn: Callable[P, R], argnums: int | Sequence[int] | None, has_aux: bool = False, argnames: str | Sequence[str] = ()
) -> Callable[P, tuple[R, Any]]: ...


@overload
def value_and_grad(
    fn: Callable[P, R],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    *,
    argnames: str | Sequence[str],
) -> Callable[P, tuple[R, Any]]: ...


def value_and_grad(
    fn: Callable[..., Any],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    argnames: str | Sequence[str] = (),
) -> Callable[..., tuple[Any, Any]]:
    """Make a function that returns the value of ``fn`` and its gradient with respect to some arguments.

    The gradient of a tree has its class and shape, with an array for each trainable floating-point leaf and ``None`` everywhere
    else: for frozen parameters, buffers, other dtypes, and static values that are not fields of a module.

    Args:
        fn: Returns a scalar, or with ``has_aux`` a pair of a scalar and any tree.
        argnums: The position of the argument to differentiate with respect to, or several positions. Default: ``0``, or none if
            there are ``argnames``.
        has_aux: Whether ``fn`` returns a pair. Default: ``False``.
        argnames: The name of a keyword argument to differentiate with respect to, or several names. Default: none.

    Returns:
        A function of the same arguments that returns ``(value, grad)``, or ``((value, aux), grad)`` with ``has_aux``, as in
        JAX. For several ``argnums`` the gradient is a tuple. With ``argnames`` it is a pair, as in MLX: the gradient for
        ``argnums`` (``None`` if there are none), and a dict of gradients by name.

    Raises:
        TypeError: If ``argnums`` are no ints; if it is a function, as for ``nn.value_and_grad(model, fn)`` of MLX; if ``fn``
            is a generator or coroutine function.
        ValueError: When called, if an argument is not there or has nothing trainable, or ``fn`` returns something else.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Linear(2, 1).freeze(keys="bias")
    >>> loss, grad = fl.value_and_grad(lambda layer, x: layer(x).sum())(layer, mx.ones((3, 2)))
    >>> grad.weight, grad.bias
    (array([[3, 3]], dtype=float32), None)
    """
    if callable(argnums):
        raise TypeError(
            "argnums is a function. What MLX writes as nn.value_and_grad(model, fn)(x) is fl.value_and_grad(fn)(model, x): fn "
            "takes the model as an argument"
        )
    require_runs_when_called(unbind(fn)[0], RUNS_LATER.format(transformation="fl.grad"))
    name = function_name(fn)
    names = (argnames,) if isinstance(argnames, str) else tuple(argnames)
    argnums = 0 if argnums is None and not names else argnums
    numbers = () if argnums is None else (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if any(isinstance(each, mx.array) or not hasattr(each, "__index__") for each in numbers):
        raise TypeError(f"argnums is an int, or several in a tuple, and was given as {describe(argnums)}")

    @functools.wraps(fn)
    def value_and_grad_of(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        positions = _positions(numbers, len(args), kwargs, name)
        _require_names(names, kwargs, name)
        differentiated = [_differentiated(args[position], position, name) for position in positions]
        differentiated += [_differentiated(kwargs[each], repr(each), name) for each in names]
        aux: Any = None

        def on_leaves(leaves: list[mx.array]) -> mx.array:
            # aux goes past MLX, which would stop its gradient: a surrounding grad must see it.
            nonlocal aux
            rest = iter(leaves)
            trees = [each.tree_with(rest) for each in differentiated]
            given, named = list(args), dict(zip(names, trees[len(positions) :], strict=True))
            for position, tree in zip(positions, trees, strict=False):
                given[position] = tree
            value, aux = _split(fn(*given, **{**kwargs, **named}), has_aux, name)
            return value

        begun = [leaf for each in differentiated for leaf in each.trainable_leaves()]
        value, gradients = differentiating(lambda: mx.value_and_grad(on_leaves)(begun))
        rest = iter(gradients)
        trees = [each.gradient_with(rest) for each in differentiated]
        positional = trees[0] if isinstance(argnums, int) else tuple(trees[: len(positions)]) if numbers else None
        grads = (positional, dict(zip(names, trees[len(positions) :], strict=True))) if names else positional
        return (value, aux) if has_aux else value, grads

    return value_and_grad_of


@overload
def grad(
    fn: Callable[Concatenate[T, P], Any], argnums: Literal[0] | None = None, has_aux: Literal[False] = False
) -> Callable[Concatenate[T, P], T]: ...


@overload
def grad(
    fn: Callable[Concatenate[T, P], tuple[Any, A]], argnums: Literal[0] | None = None, *, has_aux: Literal[True]
) -> Callable[Concatenate[T, P], tuple[T, A]]: ...


@overload
def grad(
    fn: Callable[P, Any], argnums: int | Sequence[int] | None, has_aux: bool = False, argnames: str | Sequence[str] = ()
) -> Callable[P, Any]: ...


@overload
def grad(
    fn: Callable[P, Any],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    *,
    argnames: str | Sequence[str],
) -> Callable[P, Any]: ...


def grad(
    fn: Callable[..., Any],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    argnames: str | Sequence[str] = (),
) -> Callable[..., Any]:
    """Make a function that returns the gradient of ``fn`` with respect to some arguments.

    As :func:`value_and_grad` without the value: the result is the gradient, or ``(gradient, aux)`` with ``has_aux``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.grad(lambda tree: (tree["a"] * tree["n"]).sum())({"a": mx.ones(2), "n": 3})
    {'a': array([3, 3], dtype=float32), 'n': None}
    """
    with_value: Callable[..., tuple[Any, Any]] = value_and_grad(fn, argnums, has_aux, argnames)

    @functools.wraps(fn)
    def grad_of(*args: Any, **kwargs: Any) -> Any:
        value, gradient = with_value(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return grad_of


class Differentiated(NamedTuple):
    """An argument taken apart, to differentiate with respect to it: its leaves, which are trained, and its structure."""

    leaves: list[mx.array]
    mask: list[bool]
    structure: Structure

    def trainable_leaves(self) -> list[mx.array]:
        return [leaf for leaf, trains in zip(self.leaves, self.mask, strict=True) if trains]

    def tree_with(self, trainable_leaves: Iterator[mx.array]) -> Any:
        merged = [next(trainable_leaves) if trains else leaf for leaf, trains in zip(self.leaves, self.mask, strict=True)]
        return unflatten(self.structure, merged)

    def gradient_with(self, gradients: Iterator[mx.array]) -> Any:
        if self.structure.is_of_module:
            return unflatten_late(gradient_structure(self.structure, self.mask), [*islice(gradients, sum(self.mask))])
        values = [next(gradients) if trains else None for trains in self.mask]
        return unflatten(self.structure, values, static=lambda _: None)


BY_NAME = ". Give it by position, or name what was given by name: argnames={given!r}"


def _positions(argnums: Sequence[int], count: int, named: Iterable[str], name: str) -> list[int]:
    """Return the positions that ``argnums`` names among ``count`` positional arguments, counted from the front."""
    for number in argnums:
        if not -count <= number < count:
            called = f"it was called with {count} positional arguments"
            first = next(iter(named), None)
            advice = BY_NAME.format(given=first) if first is not None else ""
            raise ValueError(f"can't differentiate {name} with respect to argument {number}: {called}{advice}")
    positions = [number % count for number in argnums]
    _require_once(positions, argnums, name)
    return positions


def _require_names(argnames: Sequence[str], given: Iterable[str], name: str) -> None:
    for each in argnames:
        if each not in given:
            called = f"it was called with {', '.join(map(repr, given)) or 'no keyword arguments'}"
            raise ValueError(f"can't differentiate {name} with respect to argument {each!r}: {called}")
    _require_once(argnames, argnames, name)


def _require_once(places: Sequence[Any], given: Sequence[Any], name: str) -> None:
    if len(set(places)) < len(places):
        raise ValueError(f"can't differentiate {name} with respect to arguments {tuple(given)}: one of them is named twice")


QUANTIZED = (
    "MLX has no gradient for {path!r}, a quantized weight, which was unfrozen with its scales: freeze that layer again, "
    "model{at}.freeze(), and unfreeze by name what is to be trained, such as keys='bias'. Adapters for it come from fl.lora"
)
_OF_QUANTIZED = {"weight", "scales", "group_size", "bits"}


def _unfrozen_quantized(structure: Structure) -> list[Path]:
    """Return the paths of modules of MLX whose quantized weight is not frozen, for which MLX refuses a gradient."""
    trained = {path for path, trains in zip(structure.leaf_paths(), structure.remember(unfrozen), strict=True) if trains}
    of_mlx = [
        path
        for path, spec in specs_in(structure)
        if isinstance(spec, tuple) and hasattr(spec[0], "__mlx__") and spec[0].__frostleaf__.fields.keys() >= _OF_QUANTIZED
    ]
    return [path for path in of_mlx if (*path, "weight") in trained]


def take_apart(tree: Any) -> Differentiated:
    """Take an argument apart.

    Raises:
        ValueError: If it is to be differentiated with respect to a quantized weight of MLX.
    """
    leaves, structure = flatten(tree)
    for path in structure.remember(_unfrozen_quantized)[:1]:
        at = f".at({keystr(path)!r})" if path else ""
        raise ValueError(QUANTIZED.format(path=keystr((*path, "weight")), at=at))
    return Differentiated(leaves, trainable(tree), structure)


def found_in(given: Differentiated) -> str:
    """List the paths, dtypes and shapes of the first arrays of an argument, for a message."""
    marks = given.structure.remember(frozen_leaves)
    named = [*zip(given.structure.leaf_names(), marks, given.leaves, strict=True)][:8]
    shown = [f"{path or '(the argument)'} {FROZEN_MARK * mark}{describe(leaf)}" for path, mark, leaf in named]
    found = (", ".join(shown) or "no array") + ", ..." * (len(given.leaves) > 8)
    return found + THAW * any(marks)


THAW = f". {FROZEN_MARK} is frozen: write model.unfreeze(), or model.at(where).unfreeze() for a part"
NOTHING_TRAINABLE = (
    "argument {number} of {fn} has nothing to differentiate: it needs an array of a floating-point dtype that is neither "
    "frozen nor a buffer, and has {found}"
)


def _differentiated(tree: Any, number: int | str, name: str) -> Differentiated:
    given = take_apart(tree)
    require_no_shapes("fl.grad(fn)", given.trainable_leaves())
    if not any(given.mask):
        raise ValueError(NOTHING_TRAINABLE.format(number=number, fn=name, found=found_in(given)))
    return given


def _split(out: Any, has_aux: bool, name: str) -> tuple[mx.array, Any]:
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(f"{name} must return a pair (value, aux) when has_aux=True, and returned {describe(out)}")
    value, aux = out if has_aux else (out, None)
    if not isinstance(value, mx.array) or value.ndim != 0 or not mx.issubdtype(value.dtype, mx.floating):
        advice = ". For a pair (loss, aux) say has_aux=True" if isinstance(value, tuple) else ""
        raise ValueError(f"{name} must return a scalar floating-point array, and returned {describe(value)}{advice}")
    return value, aux
