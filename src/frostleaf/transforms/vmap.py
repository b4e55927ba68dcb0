"""Turning functions of one example into functions of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import mlx.core as mx

from ..core.structure import Structure, flat_of
from ..core.words import describe, function_name, keystr, listed
from ..tree.functions import unflatten
from ..tree.prefixes import argument, broadcast_prefix
from .binding import REFUSED, raise_with_name, unbind
from .collectives import mapped as mapped_in
from .collectives import unless_it_fails
from .context import override, setting
from .jit.captured import depends, require_visible
from .random import restore_state, saved_state, unchanged_state
from .stateful import records
from .without_values import explained
from .wrapping import Wrapped

P = ParamSpec("P")
R = TypeVar("R")


def vmap(fn: Callable[P, R], in_axes: Any = 0, out_axes: Any = 0) -> Vmapped[P, R]:
    """Make a function that computes ``fn`` for each index along an axis of its arguments, all at once.

    A model is an argument like any other: with axis ``0`` a stack of models is an ensemble (see :func:`frostleaf.tree.stack`),
    with ``None`` one model is shared. Static values and keyword arguments are never mapped. Random numbers that ``fn`` draws
    are the same for every index; give each its own key and draw under :func:`rng`, or build layers with ``key=``.

    Args:
        fn: A function of trees that returns a tree.
        in_axes: An integer for all positional arguments, or a tuple with an entry for each: an integer, ``None`` for an
            argument that every index shares, or a tree of these shaped like the argument, or like its outer part.
            Default: ``0``.
        out_axes: Where the mapped axis goes in the result: an integer, ``None`` for what does not depend on the mapped
            arguments, or a tree of these shaped like the result, or like its outer part. Default: ``0``.

    Returns:
        A function of the same arguments.

    Raises:
        TypeError: If ``in_axes`` is something else; when called, if the result holds arrays in an object that is not a tree.
        RuntimeError: When called inside :func:`stateful`, if a layer records a buffer.
        ValueError: When called, if an axis is missing, lengths differ, nothing is mapped, or ``in_axes`` or ``out_axes`` does
            not fit the arguments or the result. The message names the path.

    >>> import frostleaf as fl, mlx.core as mx
    >>> ensemble = fl.vmap(lambda key: fl.nn.Linear(2, 3, key=key))(mx.random.split(mx.random.key(0), 4))
    >>> ensemble
    Linear(weight=f32[4,3,2], bias=f32[4,3])
    >>> fl.vmap(lambda layer, x: layer(x), in_axes=(0, None))(ensemble, mx.ones((5, 2))).shape
    (4, 5, 3)
    """
    if not isinstance(in_axes, int | tuple | list | None):
        raise TypeError(
            "in_axes must be an integer, None or a tuple with an entry for each positional argument, and is "
            f"{describe(in_axes)}"
        )
    return Vmapped(fn, (in_axes, out_axes))


class Vmapped(Wrapped[P, R]):
    """A function of many examples. :func:`vmap` makes it."""

    verb = "vmap"

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        fn, (in_axes, out_axes) = self.__wrapped__, self.options
        name = function_name(fn)
        try:
            flat_of(_mapped(in_axes, args))  # raises where arrays are hidden, that no index would have its own part of
            given = flat_of(args, hidden=True)
        except REFUSED:
            inner, bound, _ = unbind(fn)
            raise_with_name(inner, (*bound, *args), {}, hidden=True)
            raise
        leaves, structure = given.leaves, given.structure
        axes = _in_axes(in_axes, args, kwargs, name)
        mapped = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis is not None]
        out_leaves: list[mx.array] = []
        positions: list[int | None] = []
        out_structure: Structure | None = None
        before = saved_state()
        standing: list[mx.array] = []  # for the mapped ones, in the function

        def is_mapped(array: mx.array) -> bool:
            return depends(array, standing)

        def on_leaves(*examples: mx.array) -> list[mx.array]:
            nonlocal out_structure, out_leaves, positions
            standing[:] = examples
            rest = iter(examples)
            example = [leaf if axis is None else next(rest) for leaf, axis in zip(leaves, axes, strict=True)]
            with explained("fl.vmap", fn):
                out = _without_records(fn, name, unflatten(structure, example), kwargs)
            flat = flat_of(out, hidden=True)
            out_leaves, out_structure = flat.leaves, flat.structure
            require_visible("fl.vmap", name, out_structure, examples)
            positions = _out_axes(out_axes, out, examples, name)
            batched = [leaf for leaf, axis in zip(out_leaves, positions, strict=True) if axis is not None]
            # The random state that a compiled function leaves seems to depend on the index, but is the same for all.
            drawn = saved_state()
            return [*batched, drawn] if drawn is not before and depends(drawn, examples) else batched

        # MLX compiles nothing that is mapped. What is not would be traced, and used elsewhere, without its checkpoints.
        with unless_it_fails(), unchanged_state(), setting(mapped_in, (*mapped_in.get(), is_mapped)), override(plain=True):
            results = mx.vmap(on_leaves, in_axes=tuple(axis for axis in axes if axis is not None))(*mapped)
            drawn = saved_state()
        stacked = iter(results)
        placed = [
            leaf if axis is None else mx.moveaxis(next(stacked), 0, axis)
            for leaf, axis in zip(out_leaves, positions, strict=True)
        ]
        if drawn is not before:
            restore_state(next((state[0] for state in stacked), drawn))
        assert out_structure is not None
        return unflatten(out_structure, placed)  # type: ignore[no-any-return]


def mapping() -> bool:
    """Return whether a function is being mapped by :func:`vmap`."""
    return bool(mapped_in.get())


RECORDED = (
    "a {cls} recorded buffers while {fn} was mapped, where each index has its own. Call fl.stateful inside {fn} and "
    "return the model from it, or put the model in eval mode."
)


def _without_records(fn: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return ``fn(*args, **kwargs)``, in which layers see what ``stateful`` has recorded but may not add to it."""
    outer = records.get()
    if outer is None:
        return fn(*args, **kwargs)
    here = dict(outer)
    with setting(records, here):
        out = fn(*args, **kwargs)
    for key, (module, _) in here.items():
        if here[key] is not outer.get(key):
            raise RuntimeError(RECORDED.format(cls=type(module).__name__, fn=name))
    return out


def _mapped(in_axes: Any, args: tuple[Any, ...]) -> list[Any]:
    """Return the arguments, and ``None`` for each that every index shares as a whole."""
    axes = in_axes if isinstance(in_axes, tuple | list) else [in_axes] * len(args)
    return [None if axis is None else arg for axis, arg in zip(axes, args, strict=False)]


def _in_axes(in_axes: Any, args: tuple[Any, ...], named: Iterable[str], name: str) -> list[int | None]:
    """Return for each array in the arguments the axis it is mapped over, counted from the front, or ``None``."""
    if isinstance(in_axes, tuple | list) and len(in_axes) != len(args):
        raise ValueError(f"in_axes has {len(in_axes)} entries and {name} was called with {len(args)} positional arguments")
    axes: list[int | None] = []
    first: tuple[str, mx.array, int] | None = None
    for path, leaf, axis in broadcast_prefix(in_axes, args, "in_axes"):
        where = argument(path)
        _check_axis("in_axes", axis, where, "a tuple of them, or trees")
        if axis is None:
            axes.append(None)
            continue
        if not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(f"can't map {name} over axis {axis} of {where}, which is {describe(leaf)}")
        if first is None:
            first = where, leaf, leaf.shape[axis]
        elif leaf.shape[axis] != first[2]:
            one = f"{first[0]} has {first[2]} ({describe(first[1])})"
            other = f"{where} has {leaf.shape[axis]} ({describe(leaf)})"
            raise ValueError(f"can't map {name} over axes of different lengths: {one} and {other}")
        axes.append(axis % leaf.ndim)
    if first is None:
        by_name = f". Give {listed(named)} by position: what is given by name is not mapped" if named else ""
        raise ValueError(
            f"{name} has nothing to map over: no array in its positional arguments has an axis in in_axes={in_axes!r}{by_name}"
        )
    return axes


def _out_axes(out_axes: Any, out: Any, examples: tuple[mx.array, ...], name: str) -> list[int | None]:
    """Return for each array in the result where its mapped axis goes, or ``None`` if it has none."""
    axes: list[int | None] = []
    for path, leaf, axis in broadcast_prefix(out_axes, out, "out_axes"):
        where = f"{keystr(path)} of the result" if path else "the result"
        _check_axis("out_axes", axis, where, "a tree")
        if axis is None:
            if depends(leaf, examples):
                depending = f"{where} of {name}, which depends on the mapped arguments"
                raise ValueError(f"out_axes has None for {depending}. Give it an axis.")
        elif not -leaf.ndim - 1 <= axis <= leaf.ndim:
            found = f"which is {describe(leaf)} for each example"
            raise ValueError(f"can't put the mapped axis at {axis} in {where} of {name}, {found}")
        axes.append(axis)
    return axes


def _check_axis(name: str, axis: Any, path: str, tree: str) -> None:
    if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool)):
        raise ValueError(f"{name} must be an integer, None or {tree} of them, and {path} is {describe(axis)}")
