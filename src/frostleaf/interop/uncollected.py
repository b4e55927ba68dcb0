"""What a call of original code changed and nobody collects: which of it is worth a warning."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx

from ..core.containers import static_key
from ..core.kept import COMPILED
from ..core.words import Path, keystr, listed
from ..transforms.jit.passing import MOST_NAMES, graph_of
from ..transforms.stateful import warn_uncollected
from .layout import is_atom

# Where a change is, what was there, and what is there now.
Change = tuple[Path, Any, Any]

_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, COMPILED)
_SOURCE = re.compile(r'rank=source; "(\w+)"')
_LABEL = re.compile(r'(\d+) \[label ="(\w+)"')
_TAKEN = re.compile(r'"(\w+)" -> (\d+)')
_MADE = re.compile(r'(\d+) -> "(\w+)"')
# These give out what they are given.
_PASSING = {"Copy", "Depends", "StopGradient"}


def warn_of(cls: str, name: str, changes: Iterable[Change]) -> None:
    """Warn of those changes that are not of private names, functions that are made again, or copies of what was there."""
    counted = [each for each in changes if _counts(*each)]
    arrays = [(old, new) for _, old, new in counted if isinstance(old, mx.array) and isinstance(new, mx.array)]
    copies = {id(new) for (_, new), is_copy in zip(arrays, are_copies(arrays), strict=True) if is_copy}
    changed = dict.fromkeys(keystr(path) or "its attributes" for path, _, new in counted if id(new) not in copies)
    if changed:
        call = "model" if name == "__call__" else f"model.{name}"
        warn_uncollected(UNCOLLECTED.format(cls=cls, name=name, changed=listed([*changed], 3), call=call))


def _counts(path: Path, old: Any, new: Any) -> bool:
    if any(str(name).startswith("_") for name in path) or any(map(_is_function, _in(new))):
        return False
    return new is old or not (is_atom(old) and is_atom(new) and static_key(old) == static_key(new))


def _is_function(value: Any) -> bool:
    return isinstance(value, _FUNCTIONS)


def _in(value: Any) -> Iterator[Any]:
    yield value
    if type(value) in (list, tuple, dict):
        for each in value.values() if type(value) is dict else value:
            yield from _in(each)


def are_copies(pairs: Sequence[tuple[mx.array, mx.array]]) -> Iterator[bool]:
    """Yield for pairs of arrays whether the second has the value of the first, as what a gradient is computed with has.

    Their graphs tell. Only what has been computed is compared.
    """
    for start in range(0, len(pairs), MOST_NAMES // 2):
        some = pairs[start : start + MOST_NAMES // 2]
        names = {f"old_{index}": old for index, (old, _) in enumerate(some)}
        names |= {f"new_{index}": new for index, (_, new) in enumerate(some)}
        graph = graph_of([new for _, new in some], **names)
        from_where, computed = _passed(graph), {*_SOURCE.findall(graph)}
        for index, (old, new) in enumerate(some):
            begin, name = f"old_{index}", f"new_{index}"
            if {begin, name} <= computed:
                yield _are_alike(old, new) and _are_equal(old, new)
                continue
            sources = [name]
            for each in sources:
                sources += [source for source in from_where.get(each, ()) if source not in sources]
            yield begin in sources and _are_alike(old, new)


def _passed(graph: str) -> dict[str, list[str]]:
    """Return among which arrays that is which each is a copy of, by the names in a graph."""
    given: dict[str, list[str]] = {}
    for array, operation in _TAKEN.findall(graph):
        given.setdefault(operation, []).append(array)
    labels = dict(_LABEL.findall(graph))
    return {array: given[each] for each, array in _MADE.findall(graph) if labels[each] in _PASSING and each in given}


def _are_alike(one: mx.array, other: mx.array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _are_equal(one: mx.array, other: mx.array) -> bool:
    try:
        return bool(mx.array_equal(one, other, equal_nan=True))
    except ValueError:  # they are being traced
        return False


UNCOLLECTED = (
    "{cls}.{name} changed {changed}, and nobody collects it: the tree is as it was. Write fl.stateful({call}, ...), which "
    "returns the changed model as well"
)
