"""Gradients in less memory: intermediate results are computed again instead of kept."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import mlx.core as mx

from ..core.structure import Structure
from ..tree.functions import flatten, unflatten
from .binding import unbind
from .jit.compiled import outliving
from .jit.passing import Inputs, Origins, put_back
from .random import restore_state, saved_state, unchanged_state
from .stateful import recording
from .vmap import mapping
from .wrapping import RUNS_LATER, Wrapped, require_runs_when_called

P = ParamSpec("P")
R = TypeVar("R")


def checkpoint(fn: Callable[P, R]) -> Checkpointed[P, R]:
    """Make a function that computes the same as ``fn``, and keeps only its arguments for the backward pass.

    When gradients are computed, ``fn`` runs again to recompute its intermediate results. Values, gradients and random numbers
    are those of ``fn``, dropout masks included. Gradients reach every array in the arguments, in the module that ``fn`` is or
    is a method of, and in the closure and the defaults of ``fn``. Arrays that it reaches in another way, such as global
    variables, are constants.

    Inside :func:`vmap`, which MLX can't combine with this, and inside :func:`stateful` nothing is computed again.

    Args:
        fn: A function of trees that returns a tree: a function, a method or a module, or a partial application of one.

    Returns:
        A function of the same arguments.

    Raises:
        TypeError: If ``fn`` can't be called, or is a generator or coroutine function.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Linear(2, 1)
    >>> def loss(layer, x):
    ...     return fl.checkpoint(layer)(x).sum()
    >>> fl.grad(loss)(layer, mx.ones((3, 2)))
    Linear(weight=f32[1,2], bias=f32[1])
    """
    return Checkpointed(fn)


class Checkpointed(Wrapped[P, R]):
    """A function that computes again what it does not keep. :func:`checkpoint` makes it."""

    verb = "checkpoint"

    def __init__(self, fn: Callable[P, R]) -> None:
        super().__init__(fn)
        require_runs_when_called(unbind(fn)[0], RUNS_LATER.format(transformation="fl.checkpoint"))

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if recording() or mapping():
            return self.__wrapped__(*args, **kwargs)
        inner, bound_args, bound_kwargs = unbind(self.__wrapped__)
        captured, with_captured = _scope(inner)
        leaves, structure = flatten((captured, (*bound_args, *args), {**bound_kwargs, **kwargs}))
        differs = [_differentiable(leaf) for leaf in leaves]
        floats = [leaf for leaf, differentiable in zip(leaves, differs, strict=True) if differentiable]
        begin = saved_state()
        first: _Run | None = None

        def on_leaves(inputs: list[mx.array]) -> list[mx.array]:
            nonlocal first
            with unchanged_state():
                restore_state(begin)
                started = saved_state()
                rest = iter(inputs)
                given = [next(rest) if differentiable else leaf for leaf, differentiable in zip(leaves, differs, strict=True)]
                passing = Inputs(given)
                trees, positional, named = unflatten(structure, given)
                out, out_structure = flatten(with_captured(iter(trees))(*positional, **named))
                drawn = saved_state()
            computed, origins = passing.separate(out)
            if first is None:
                others = [None if _differentiable(leaf) else leaf for leaf in computed]
                first = _Run(out_structure, others, origins, None if drawn is started else drawn)
            # MLX ends the process if nothing is returned.
            return [leaf for leaf in computed if _differentiable(leaf)] or [mx.array(0.0)]

        outliving.add(on_leaves)
        differentiable = iter(mx.checkpoint(on_leaves)(floats))
        assert first is not None
        if first.state is not None:
            restore_state(first.state)
        computed = [next(differentiable) if leaf is None else leaf for leaf in first.others]
        put_back(computed, first.origins, leaves)
        return unflatten(first.structure, computed)  # type: ignore[no-any-return]


class _Run(NamedTuple):
    """What the first run of the function tells about its result.

    Attributes:
        structure: The structure of the result.
        others: The computed arrays that have no gradient, and ``None`` for each that has one.
        origins: Which arrays of the result are arguments passed through.
        state: The new random state, if numbers were drawn.
    """

    structure: Structure
    others: list[mx.array | None]
    origins: Origins
    state: mx.array | None


def _differentiable(leaf: mx.array) -> bool:
    return mx.issubdtype(leaf.dtype, mx.inexact)


def _scope(fn: Any, around: tuple[Any, ...] = ()) -> tuple[list[Any], Callable[[Iterator[Any]], Any]]:
    """Return the differentiable trees in a function's closure and defaults, and a function that makes it anew with others.

    MLX would take these arrays for constants. Functions in the closure are looked into too.
    """
    if isinstance(fn, types.FunctionType) and fn not in around:
        cells = fn.__closure__ or ()
        values = [*map(_contents, cells), *(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
        inside = [_scope(value, (*around, fn)) for value in values]
        trees = [tree for found, _ in inside for tree in found]
        if trees:
            return trees, lambda rest: _with_scope(fn, [make(rest) if found else None for found, make in inside])
    elif any(_differentiable(leaf) for leaf in flatten(fn)[0]):
        return [fn], next
    return [], lambda rest: fn


def _with_scope(fn: types.FunctionType, new: list[Any]) -> types.FunctionType:
    """Make a function anew, with those of the new values for its closure and defaults that are not ``None``."""
    cells, defaults, named = fn.__closure__ or (), fn.__defaults__ or (), fn.__kwdefaults__ or {}
    values = iter(new)
    closure = tuple([cell if (value := next(values)) is None else types.CellType(value) for cell in cells])
    positional = tuple([old if (value := next(values)) is None else value for old in defaults])
    changed = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, positional, closure)
    changed.__kwdefaults__ = {name: old if (value := next(values)) is None else value for name, old in named.items()}
    return changed


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value yet
        return None
