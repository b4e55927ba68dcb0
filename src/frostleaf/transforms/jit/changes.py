"""Arguments that a traced function changes in place: it gets copies of them, so the caller would not see it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx

from ...core.instance import Instance
from ...core.levels import tree_level
from ...core.structure import flat_of, specs_in
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
        self._inputs = inputs
        given = [(name, value, _places(value)) for name, value in zip(names, values, strict=True)]
        # A class may make its arrays anew whenever it is taken apart, and then nothing can be told.
        self._given = [each for each in given if all(map(inputs.has, _arrays(each[2])))]

    def warn_of_changes(self, fn: Callable[..., Any], result: Any, arrays: Sequence[mx.array]) -> None:
        """Warn of the first place in the arguments that has changed, unless what holds it is in the result.

        Args:
            fn: The function.
            result: What it returned.
            arrays: The arrays in its result.
        """
        returned: set[int] | None = None
        for name, value, begun in self._given:
            for path in self._changed(value, begun):
                returned = {*map(id, arrays), *map(id, _nodes(result))} if returned is None else returned
                if not any(id(each) in returned for each in _along(value, path)):
                    message = CHANGED.format(fn=function_name(fn), name=keystr((name, *path)))
                    warnings.warn(message, MutableArgumentWarning, stacklevel=level_of_caller())
                    return

    def _changed(self, value: Any, begun: dict[Path, Any]) -> Iterator[Path]:
        """Yield the paths of what is not as it was."""
        try:
            now = _places(value)
        except TypeError:  # what it was given is no tree
            now = {}
        for path, old in begun.items():
            new = now.get(path, _GONE)
            if isinstance(old, mx.array):
                if self._inputs.is_assigned(old) or new is not old:
                    yield path
            elif isinstance(new, mx.array) or new != old:
                yield path
        yield from [path for path in now if path not in begun]


def _places(value: Any) -> dict[Path, Any]:
    """Return what is at each path of a tree: an array, a static value, or of a node the class and what it is made from."""
    flat = flat_of(value, hidden=True)
    leaves = iter(flat.leaves)
    specs = specs_in(flat.structure)
    return {path: next(leaves) if spec is mx.array else spec[:2] if isinstance(spec, tuple) else spec for path, spec in specs}


def _arrays(places: dict[Path, Any]) -> Iterator[mx.array]:
    return (each for each in places.values() if isinstance(each, mx.array))


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
