"""Gradients in less memory: intermediate results are computed again instead of kept."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import mlx.core as mx

from ..core.instance import Instance
from ..core.levels import tree_level
from ..core.shapes import LEAF
from ..core.structure import Structure, flat_of
from ..core.words import function_name, keystr
from ..tree.functions import flatten, unflatten
from .binding import REFUSED, raise_with_name, unbind
from .jit.compiled import outliving
from .jit.jitted import Jitted
from .jit.passing import Inputs, Origins, put_back
from .random import restore_state, saved_state, unchanged_state
from .reached import reader_of, require_reached
from .stateful import recording
from .vmap import mapping
from .wrapping import RUNS_LATER, Wrapped, require_runs_when_called

P = ParamSpec("P")
R = TypeVar("R")


def checkpoint(fn: Callable[P, R]) -> Checkpointed[P, R]:
    """Make a function that computes the same as ``fn``, and keeps only its arguments for the backward pass.

    When gradients are computed, ``fn`` runs again to recompute its intermediate results. Values, gradients and random numbers
    are those of ``fn``, dropout masks included. Gradients reach every array in the arguments, in the module that ``fn`` is or
    is a method of, and in the closure and the defaults of ``fn``, and of functions and partial functions in these. Arrays that
    it reaches in another way, such as global variables, are constants.

    ``mx.checkpoint`` sees arrays only: the gradients of a model of ours that it is given are zero.

    Inside :func:`vmap`, which MLX can't combine with this, and inside :func:`stateful` nothing is computed again.

    Args:
        fn: A function of trees that returns a tree: a function, a method or a module, or a partial application of one.

    Returns:
        A function of the same arguments.

    Raises:
        TypeError: If ``fn`` can't be called, or is a generator or coroutine function; when called, if an argument, or an object
            that ``fn`` is or reads, hides arrays.

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
        positional, named = (*bound_args, *args), {**bound_kwargs, **kwargs}
        name = function_name(inner)
        given = [_opened(inner, name, reader_of(inner))]
        for place, value in [*enumerate(positional), *named.items()]:
            opened = _opened(value, f"argument {place} of {name}")
            given.append(opened if opened[0] else ([value], next))
        try:
            flat = flat_of([tree for trees, _ in given for tree in trees], hidden=True)
        except REFUSED:
            raise_with_name(inner, positional, named, hidden=True)
            raise
        leaves, structure = flat.leaves, flat.structure
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
                arrays = [next(rest) if differentiable else leaf for leaf, differentiable in zip(leaves, differs, strict=True)]
                passing = Inputs(arrays)
                trees = iter(unflatten(structure, arrays))
                call, *values = [make(trees) for _, make in given]
                keywords = dict(zip(named, values[len(positional) :], strict=True))
                out, out_structure = flatten(call(*values[: len(positional)], **keywords))
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


def _differentiable(leaf: Any) -> bool:
    return mx.issubdtype(leaf.dtype, mx.inexact)


# The differentiable trees in a value, and a function that makes the value anew with others in their place.
_Opened = tuple[list[Any], Callable[[Iterator[Any]], Any]]


def _opened(value: Any, place: str, reader: Any = None, around: tuple[Any, ...] = ()) -> _Opened:
    """Find the differentiable trees in a value, and in the closures and defaults of functions in it.

    MLX would take these arrays for constants.

    Args:
        value: A function, an argument, or what one of these holds.
        place: What to call it in an error.
        reader: The innermost function that it belongs to, if it is no argument.
        around: The functions that it is in.

    Raises:
        TypeError: If it is an object that hides arrays.
    """
    if isinstance(value, LEAF):
        return ([value], next) if _differentiable(value) else ([], lambda rest: value)
    if isinstance(value, Instance | Jitted):  # a jitted function made anew would be traced anew
        differentiable = any(map(_differentiable, flat_of(value, hidden=True).leaves))
        return ([value], next) if differentiable else ([], lambda rest: value)
    if isinstance(value, types.FunctionType):
        if any(value is each for each in around):
            return [], lambda rest: value
        parts = [_opened(each, name, value, (*around, value)) for name, each in _variables(value)]
        return _joined(value, parts, lambda new: _with_variables(value, new))
    if isinstance(value, functools.partial):
        held = [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
        parts = [_opened(each, f"{name} of {place}", reader, around) for name, each in held]
        return _joined(value, parts, lambda new: functools.partial(new[0], *new[1], **new[2]))
    level = tree_level(value)
    if level is None:
        require_reached("fl.checkpoint", "their gradients would be zero", place, value, reader)
        return [], lambda rest: value
    if isinstance(value, types.MethodType):
        reader = value.__func__
    parts = [_opened(child, keystr((place, entry)), reader, around) for entry, child in zip(*level[:2], strict=True)]
    if all(make is next for found, make in parts if found):
        return ([value], next) if any(found for found, _ in parts) else ([], lambda rest: value)
    return _joined(value, parts, level.make)


def _joined(value: Any, parts: Sequence[_Opened], make: Callable[[list[Any]], Any]) -> _Opened:
    """Put the parts of a value together."""
    trees = [tree for found, _ in parts for tree in found]
    return (trees, lambda rest: make([part(rest) for _, part in parts])) if trees else ([], lambda rest: value)


def _variables(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of what is in a function's closure and defaults."""
    yield from zip(fn.__code__.co_freevars, map(_contents, fn.__closure__ or ()), strict=True)
    yield from [("a default", value) for value in fn.__defaults__ or ()]
    yield from (fn.__kwdefaults__ or {}).items()


def _with_variables(fn: types.FunctionType, new: list[Any]) -> types.FunctionType:
    """Make a function anew with other values for its closure and defaults."""
    cells, defaults, named = fn.__closure__ or (), fn.__defaults__ or (), fn.__kwdefaults__ or {}
    values = iter(new)
    closure = tuple([cell if (value := next(values)) is _contents(cell) else types.CellType(value) for cell in cells])
    positional = tuple([next(values) for _ in defaults])
    changed = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, positional, closure)
    changed.__kwdefaults__ = {name: next(values) for name in named}
    return changed


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value yet
        return None
