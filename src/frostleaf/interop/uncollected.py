"""What a call of original code changed and nobody collects: which of it is worth a warning."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.nn.layers.base import Module as MLXModule

from ..core.containers import arrays_in, static_key
from ..core.kept import COMPILED
from ..core.words import Path, describe, keystr, listed
from ..transforms.jit.code import ANY, names_renewed
from ..transforms.jit.passing import MOST_NAMES, graph_of
from ..transforms.stateful import warn_uncollected
from .graphs import Graph, goes_on, is_from
from .layout import is_atom


class Change(NamedTuple):
    """Something that a call changed.

    Attributes:
        path: Where it is.
        old: What was there. :data:`FROZEN` if the names changed that are frozen in a module.
        new: What is there now.
        is_usual: Whether original code makes such a change again in each call.
    """

    path: Path
    old: Any
    new: Any
    is_usual: bool = False


FROZEN: Any = object()
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, COMPILED)


def warn_of(
    cls: str, name: str, runs_later: bool, changes: Iterable[Change], given: Any, class_at: Callable[[Path], type]
) -> list[Change]:
    """Warn of those changes that are not of private names, functions that are made again, or copies of what was there.

    Of private names, and of what is made again in each call, of those that go on from what was there before: a random key that
    is split, a mean that moves, a number that is counted up, a list that gets longer. Return those of which nothing was said.

    Args:
        cls: The name of the class.
        name: That of the method.
        runs_later: Whether the method is a generator.
        changes: The changes.
        given: The arguments.
        class_at: Returns the class of the module at a path.
    """
    found = [each for each in changes if not is_made_again(each)]
    counted = [each for each in found if not _is_usual(each)]
    arrays = [(each.old, each.new) for each in counted if isinstance(each.old, mx.array) and isinstance(each.new, mx.array)]
    copies = {id(new) for (_, new), is_copy in zip(arrays, are_copies(arrays), strict=True) if is_copy}
    usual = [each for each in found if _is_usual(each)]
    if usual:
        inputs = [*arrays_in(given)]
        counted += [each for each in usual if _is_next(each, inputs, class_at)]
    said = [each for each in counted if id(each.new) not in copies]
    changed = dict.fromkeys(map(_said, said))
    if changed:
        words = {"cls": cls, "name": name, "changed": listed([*changed], 3)}
        call = "model" if name == "__call__" else f"model.{name}"
        written = f"lambda model: list({call}(...)), model" if runs_later else f"{call}, ..."
        warn_uncollected(UNCOLLECTED.format(**words, call=written))
    paths = {each.path for each in said}
    return [each for each in found if each.path not in paths]


def warn_of_block(cls: str, name: str, changes: Iterable[Change]) -> None:
    """Warn of what a context manager changes until its block has run, which sees nothing of it in the tree.

    Args:
        cls: The name of the class.
        name: That of the method.
        changes: The changes.
    """
    found = [each for each in changes if not is_made_again(each)]
    if found:
        first = next((each for each in found if is_atom(each.new) and each.path), None)
        edit = "model.replace(...)" if first is None else f"model.at({keystr(first.path)!r}).set({describe(first.new)})"
        changed = listed([*dict.fromkeys(map(_said, found))], 3)
        warn_uncollected(IN_A_BLOCK.format(cls=cls, name=name, changed=changed, edit=edit))


def _said(change: Change) -> str:
    if change.new is FROZEN:
        return f"which parameters of {keystr(change.path) or 'it'} are frozen"
    return keystr(change.path) or "its attributes"


def _is_usual(change: Change) -> bool:
    return change.is_usual or any(str(name).startswith("_") for name in change.path)


def is_made_again(change: Change) -> bool:
    """Return whether a change is of a function, or to what is equal."""
    _, old, new, _ = change
    if any(map(_is_function, _in(new))):
        return True
    return new is not old and is_atom(old) and is_atom(new) and static_key(old) == static_key(new)


def _is_next(change: Change, given: Sequence[mx.array], class_at: Callable[[Path], type]) -> bool:
    """Return whether what is there now goes on from what was there before."""
    _, old, new, _ = change
    if type(old) is list and isinstance(new, list):
        pairs = [each for each in zip(old, new, strict=False) if each[0] is not each[1]]
        if any(_is_next_array(*each, given) for each in pairs):
            return True
        if any(map(_are_numbers, pairs)) and _is_counted(change.path, class_at):
            return True
        is_longer = len(new) > len(old) and not pairs
        return is_longer and any(is_from(each, given) for each in new[len(old) :] if isinstance(each, mx.array))
    if _are_numbers((old, new)):
        return _is_counted(change.path, class_at)
    if old is None and isinstance(new, mx.array):  # the first value, and the code has a way to make the next
        return change.path[-1] in renewed("computed", class_at(change.path[:-1])) and is_from(new, given)
    return _is_next_array(old, new, given)


def _are_numbers(pair: tuple[Any, Any]) -> bool:
    return {*map(type, pair)} <= {int, float}


def _is_counted(path: Path, class_at: Callable[[Path], type]) -> bool:
    """Return whether the code of a module may count what is at a path: an attribute of it, or an item of one."""
    return any(renewed("counted", class_at(path[:at])) & {name, ANY} for at, name in enumerate(path))


def _is_next_array(old: Any, new: Any, given: Sequence[mx.array]) -> bool:
    return isinstance(old, mx.array) and isinstance(new, mx.array) and goes_on(old, new, given)


@functools.cache
def renewed(how: str, kind: Any) -> frozenset[str]:
    """Return the names of attributes to which the methods of a class may give a next value. See :func:`names_renewed`."""
    bases = [base for base in kind.__mro__ if base not in MLXModule.__mro__]
    functions = [each for base in bases for each in vars(base).values() if isinstance(each, types.FunctionType)]
    return frozenset([name for each in functions for kinds, name in names_renewed(each.__code__) if kinds == how])


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
        names = {f"new_{index}": new for index, (_, new) in enumerate(some)}
        names |= {f"old_{index}": old for index, (old, _) in enumerate(some)}  # by which the same array is called
        graph = Graph([new for _, new in some], names)
        for index, (old, new) in enumerate(some):
            before, after = f"old_{index}", f"new_{index}"
            if {before, after} <= graph.computed:
                yield _are_alike(old, new) and _are_equal(old, new)
            elif graph.has(after):
                yield graph.is_copy(after, before) and _are_alike(old, new)
            else:
                yield graph_of([new], old=old) == graph_of([old], old=old)


def _are_alike(one: mx.array, other: mx.array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _are_equal(one: mx.array, other: mx.array) -> bool:
    try:
        return bool(mx.array_equal(one, other, equal_nan=True))
    except ValueError:  # they are being traced
        return False


IN_A_BLOCK = (
    "{cls}.{name} changes {changed} while its block runs, and the tree is in the block as it was. Call {edit} there, or let "
    "the method yield self: with model.{name}(...) as changed"
)

UNCOLLECTED = (
    "{cls}.{name} changed {changed}, and nobody collects it: the tree is as it was. Write fl.stateful({call}), which "
    "returns the changed model as well, in a loss too: y, model = fl.stateful({call}), and read it from that model"
)
