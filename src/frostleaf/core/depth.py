"""Trees that are nested too deeply for Python, or contain themselves."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from .instance import Instance, is_finished
from .levels import entries_of, one_level
from .words import Path, keystr

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

TOO_DEEP = (
    "this {kind} is nested more deeply than Python's recursion limit of {limit} allows, or contains itself: it goes down at "
    "{way} and on. Keep the parts in one flat list, or raise the limit with sys.setrecursionlimit"
)
# So many entries of the way down are shown, and so many levels are deep.
_SHOWN, _DEEP = 4, 100


def tells_depth(function: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Decorate a function that goes down a tree, its first argument, so that the error for one that is too deep has the way.

    A function that calls itself decorates what calls it first.
    """

    @functools.wraps(function)
    def telling(tree: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(tree, *args, **kwargs)
        except RecursionError:
            tell_depth(tree)
            raise

    return telling


def tell_depth(tree: Any) -> None:
    """Raise an error that has the way down a tree if it is deep; if not, the calls around are.

    Raises:
        RecursionError: If it is.
    """
    if way := _way_down(tree):
        said = {"kind": type(tree).__name__, "way": keystr(way), "limit": sys.getrecursionlimit()}
        raise RecursionError(TOO_DEEP.format(**said)) from None


def _way_down(tree: Any) -> Path:
    """Return the beginning of the path to something very deep in a tree; an empty path if nothing is. It doesn't recurse."""
    waiting: list[tuple[int, Path, Any]] = [(0, (), tree)]
    while waiting:
        depth, path, value = waiting.pop()
        if depth == _DEEP:
            return path
        node = None if isinstance(value, Instance) and not is_finished(value) else one_level(value)
        for entry, child in zip(entries_of(type(value), node[0]), node[1], strict=True) if node else ():
            waiting.append((depth + 1, (*path, entry)[:_SHOWN], child))
    return ()
