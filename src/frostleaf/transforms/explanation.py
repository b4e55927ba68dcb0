"""What a jitted function has been traced for, and what was new when it was traced again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx

from ..tree.compare import Change, describe, diff
from ..tree.functions import unflatten
from ..tree.structure import Structure
from ..tree.walk import level

NEVER = "{fn} has not been traced yet."
ONCE = "{fn} was traced once."
CLEARED = "{fn} has no trace: clear() dropped those that it had."
AGAIN = "{fn} was traced again (trace {count}) {reason}."

AFTER_CLEAR = "because clear() had dropped the traces before"
DROPPED = "because its trace for these arguments had been dropped to make room: max_traces={max_traces}"
ALIKE = (
    "although its arguments were like those of an earlier trace: MLX traces anew in each thread, inside other transformations "
    "(jit, grad, vmap), and while it is told not to compile"
)
DIFFERENT = "because {difference} before{more}"

# What is said of each kind of fl.tree.diff's changes; of arrays see _of_arrays.
DIFFERENCES = {
    "class": "{path} is {right} where it was {left}",
    "type": "{path} is {right} where it was {left}",
    "static": "{path} is {right} where it was {left}",
    "mode": "{path} is in {right} mode where it was in {left} mode",
    "frozen": "the frozen fields of {path} are {right} where they were {left}",
    "removed": "{path} is not there where it was {left}",
    "added": "{path} is {right} where there was nothing",
    "order": "the order of {path} is {right} where it was {left}",
}
ANOTHER = "{path} is another {right} than"
BY_NAME = "{path} is given by name where it was given by position"
BY_POSITION = "{path} is given by position where it was given by name"
OTHERWISE = "{path} is built otherwise than"
BY_DEFAULT = "the default dtype is {right} where it was {left}"

_lock = threading.RLock()


@attrs.frozen
class Traced:
    """What a function was traced for. It holds no arrays.

    Attributes:
        names: Those of the arguments given by name, which come last.
        structures: Those of all arguments.
        arrays: The shape and the dtype of each array; instead of its shape the number of its dimensions if shapes don't count.
        dtype: That in which layers are built by default.
    """

    names: tuple[str, ...]
    structures: tuple[Structure, ...]
    arrays: tuple[tuple[tuple[int, ...] | int, mx.Dtype], ...]
    dtype: mx.Dtype

    def likeness(self, other: Traced) -> tuple[bool, bool, int, int]:
        """Return a key by which what is more like ``other`` comes later."""
        structures = sum(one == two for one, two in zip(self.structures, other.structures, strict=False))
        arrays = sum(one == two for one, two in zip(self.arrays, other.arrays, strict=False))
        return self.dtype == other.dtype, self.names == other.names, structures, arrays

    def tree(self, labels: Sequence[str], stand_ins: dict[Any, mx.array]) -> dict[str, Any]:
        """Return the arguments under their names, with an array that is never evaluated for each kind of array."""
        for shape, dtype in self.arrays:
            if (shape, dtype) not in stand_ins:
                stand_ins[shape, dtype] = mx.zeros((0,) * shape if isinstance(shape, int) else shape, dtype)
        rest = iter(self.arrays)
        values = [
            unflatten(structure, [stand_ins[next(rest)] for _ in range(structure.num_leaves)]) for structure in self.structures
        ]
        return dict(zip(labels, values, strict=True))


class History:
    """The traces of one jitted function: how many there have been, and what the latest of them were made for.

    Args:
        max_traces: How many of them are kept at a time. As many again are remembered, so as to know one that comes back.
    """

    def __init__(self, max_traces: int | None) -> None:
        self.count = 0
        self._max_traces = max_traces
        self._traced: dict[Traced, None] = {}
        self._reason: str | None = None

    def add(self, traced: Traced, in_new_program: bool) -> None:
        """Note that the function has been traced.

        Args:
            traced: What for.
            in_new_program: Whether there was no program for it.
        """
        with _lock:
            self.count += 1
            if traced in self._traced:
                self._reason = DROPPED.format(max_traces=self._max_traces) if in_new_program else ALIKE
            else:
                self._reason = None if self._traced else AFTER_CLEAR
            self._traced.pop(traced, None)
            self._traced[traced] = None  # the last in order
            if self._max_traces is not None and len(self._traced) > 2 * self._max_traces:
                del self._traced[next(iter(self._traced))]

    def clear(self) -> None:
        """Forget all but their number."""
        with _lock:
            self._traced = {}

    def explain(self, fn: str, argument: Callable[[int, int, Sequence[str]], str]) -> str:
        """Return a sentence that says why the function was last traced.

        Args:
            fn: The name of the function.
            argument: Returns the name of an argument, given its position, the number of arguments and the names in the call.
        """
        with _lock:
            count, reason, traced = self.count, self._reason, list(self._traced)
        if not traced:
            return (CLEARED if count else NEVER).format(fn=fn)
        if count == 1:
            return ONCE.format(fn=fn)
        if reason is None:
            *earlier, last = traced
            # Of those that are equally alike the latest.
            nearest = max(reversed(earlier), key=last.likeness)
            found = _differences(nearest, last, argument)
            others = len(found) - 1
            more = f" (and {others} more difference{'s' * (others > 1)})" if others else ""
            reason = DIFFERENT.format(difference=found[0], more=more)
        return AGAIN.format(fn=fn, count=count, reason=reason)


def _differences(old: Traced, new: Traced, argument: Callable[[int, int, Sequence[str]], str]) -> list[str]:
    """Return in words each difference between what a function was traced for; there is at least one."""
    labels = [
        [argument(position, len(each.structures), each.names) for position in range(len(each.structures))]
        for each in (old, new)
    ]
    stand_ins: dict[Any, mx.array] = {}
    before, after = old.tree(labels[0], stand_ins), new.tree(labels[1], stand_ins)
    shapes = {id(array): shape for (shape, _), array in stand_ins.items()}
    found = [_in_words(change, _with_field_names(change.path, after), shapes) for change in diff(before, after)]
    if not found:
        found += [BY_NAME.format(path=name) for name in new.names if name not in old.names]
        found += [BY_POSITION.format(path=name) for name in old.names if name not in new.names]
    if not found:
        pairs = zip(labels[1], old.structures, new.structures, strict=True)
        found += [OTHERWISE.format(path=label) for label, one, other in pairs if one != other]
    if old.dtype != new.dtype:
        found.append(BY_DEFAULT.format(left=_dtype(old.dtype), right=_dtype(new.dtype)))
    return found


def _with_field_names(path: str, tree: Any) -> str:
    """Return the path with the names of named tuples' fields, which fl.tree counts, in place of their indices."""
    parts = path.split(".")
    for position, part in enumerate(parts):
        here = level(tree)
        inside = {} if here is None else dict(zip(map(str, here.entries), here.children, strict=True))
        if part not in inside:
            break
        if hasattr(type(tree), "_fields"):
            parts[position] = type(tree)._fields[int(part)]
        tree = inside[part]
    return ".".join(parts)


def _in_words(change: Change, path: str, shapes: dict[int, Any]) -> str:
    left, right, path = change.left, change.right, path or "the arguments"
    if isinstance(left, mx.array) and isinstance(right, mx.array):
        return _of_arrays(path, left, right, shapes)
    if change.kind in ("mode", "order"):
        return DIFFERENCES[change.kind].format(path=path, left=left, right=right)
    names = _named(left), _named(right)
    if names[0] == names[1]:
        return ANOTHER.format(path=path, right=names[1])
    return DIFFERENCES[change.kind].format(path=path, left=names[0], right=names[1])


def _of_arrays(path: str, left: mx.array, right: mx.array, shapes: dict[int, Any]) -> str:
    """Return how two arrays differ: in dtype, in shape, or in the number of dimensions where only that counts."""
    old, new = shapes[id(left)], shapes[id(right)]
    here, there = [], []
    if left.dtype != right.dtype:
        here.append(f"dtype {_dtype(right.dtype)}")
        there.append(_dtype(left.dtype))
    if old != new:
        here.append(f"{'ndim' if isinstance(new, int) else 'shape'} {new}")
        there.append(str(old))
    return f"{path} has {' and '.join(here)} where it had {' and '.join(there)}"


def _dtype(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _named(value: Any) -> str:
    """Return a static value itself, and of a container or a class its name."""
    if isinstance(value, type):
        return with_article(value.__name__)
    return describe(value) if level(value) is None else with_article(type(value).__name__)


def with_article(noun: str) -> str:
    """Return ``"a Linear"``, ``"an Embedding"``."""
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"
