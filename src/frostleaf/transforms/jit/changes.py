"""Arguments that a traced function changes in place: it gets copies of them, so the caller would not see it."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import mlx.core as mx

from ...core.instance import Instance
from ...core.levels import tree_level
from ...core.structure import Flat, flat_of, specs_in
from ...core.words import Path, function_name, keystr, level_of_caller
from .arguments import MutableArgumentWarning
from .passing import Inputs

CHANGED = (
    "{fn} changes {name} in place. fl.jit calls it with copies of its arguments, so the change is lost outside: return the new "
    "value."
)


_GONE = object()


class Arguments:
    """The arguments of a function that is traced, as they are when the trace begins.

    Args:
        values: Them.
        names: Their names.
        inputs: The arrays in them.
    """

    def __init__(self, values: Sequence[Any], names: Sequence[str], inputs: Inputs) -> None:
        given = [(name, value, flat_of(value, hidden=True)) for name, value in zip(names, values, strict=True)]
        # A class may make its arrays anew whenever it is taken apart, and then nothing can be told.
        self._given = [each for each in given if all(map(inputs.has, each[2].leaves))]

    def warn_of_changes(self, fn: Callable[..., Any], result: Any, arrays: Sequence[mx.array], assigned: Set[int]) -> None:
        """Warn of the first place in the arguments that has changed, unless what holds it is in the result.

        Args:
            fn: The function.
            result: What it returned.
            arrays: The arrays in its result.
            assigned: The ids of the arrays given that were assigned into.
        """
        returned: set[int] | None = None
        for name, value, begun in self._given:
            for path in _changed(value, begun, assigned):
                returned = {*map(id, arrays), *map(id, _nodes(result))} if returned is None else returned
                if not any(id(each) in returned for each in _along(value, path)):
                    message = CHANGED.format(fn=function_name(fn), name=keystr((name, *path)))
                    warnings.warn(message, MutableArgumentWarning, stacklevel=level_of_caller())
                    return


def _changed(value: Any, begun: Flat, assigned: Set[int]) -> Iterator[Path]:
    """Yield the paths of what is not as it was."""
    try:
        flat = flat_of(value, hidden=True)
    except TypeError:  # what it was given is no tree
        now = {}
    else:
        if _is_same(flat, begun) and assigned.isdisjoint(map(id, begun.leaves)):
            return
        now = _places(flat)
    then = _places(begun)
    for path, old in then.items():
        new = now.get(path, _GONE)
        if isinstance(old, mx.array):
            if id(old) in assigned or new is not old:
                yield path
        elif isinstance(new, mx.array) or new != old:
            yield path
    yield from [path for path in now if path not in then]


def _is_same(one: Flat, other: Flat) -> bool:
    """Return whether two trees have the very same arrays at the same places, and the same of everything else."""
    return one.structure == other.structure and all(map(operator.is_, one.leaves, other.leaves))


def _places(flat: Flat) -> dict[Path, Any]:
    """Return what is at each path of a tree: an array, a static value, or of a node the class and what it is made from."""
    leaves = iter(flat.leaves)
    specs = specs_in(flat.structure)
    return {path: next(leaves) if spec is mx.array else spec[:2] if isinstance(spec, tuple) else spec for path, spec in specs}


def _nodes(value: Any) -> Iterator[Any]:
    """Yield the nodes of a tree, but of those in a module, which shares none that can change, nothing."""
    level = None if isinstance(value, Instance) else tree_level(value)
    if level is not None:
        yield value
        for child in level.children:
            yield from _nodes(child)


def _along(value: Any, path: Path) -> Iterator[Any]:
    """Yield what is on the way along a path, as far as it leads."""
    yield value
    level = tree_level(value) if path else None
    if level is not None and path[0] in level.entries:
        yield from _along(level.children[list(level.entries).index(path[0])], path[1:])
