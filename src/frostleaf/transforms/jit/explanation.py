"""Explaining why a jitted function was traced again."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any

import attrs
import mlx.core as mx

from ...core.containers import static_key
from ...core.instance import Metadata
from ...core.structure import Static, Structure, flat_of
from ...core.words import describe, dtype_name, shape_and_dtype
from ...tree.comparison import diff
from ...tree.differences import Change, Diff
from ...tree.functions import map as tree_map
from ...tree.functions import unflatten
from ...tree.walk import field_level
from .weak import is_itself

# Gives the name of an argument: its position, how many there are, and the names of those given by name.
Argument = Callable[[int, int, Sequence[str]], str]

_lock = threading.RLock()


@attrs.frozen
class Traced:
    """What a function was traced for. It holds neither arrays nor static values.

    Attributes:
        names: Those of the arguments given by name, which come last.
        structures: Those of all arguments, as :func:`remembered` returns them.
        arrays: The shape and the dtype of each array; instead of its shape the number of its dimensions if shapes don't count.
        dtype: That in which layers are built by default.
    """

    names: tuple[str, ...]
    structures: tuple[Structure, ...]
    arrays: tuple[tuple[tuple[int, ...] | int, mx.Dtype], ...]
    dtype: mx.Dtype

    def likeness(self, other: Traced) -> tuple[bool, bool, int, int]:
        """Return a key that is larger the more this is like ``other``."""
        structures = sum(one == two for one, two in zip(self.structures, other.structures, strict=False))
        arrays = sum(one == two for one, two in zip(self.arrays, other.arrays, strict=False))
        return self.dtype == other.dtype, self.names == other.names, structures, arrays

    def tree(self, labels: Sequence[str], stand_ins: dict[Any, mx.array]) -> dict[str, Any]:
        """Return the arguments under their names, with stand-ins for arrays: one, never evaluated, for each shape and dtype."""
        for shape, dtype in self.arrays:
            if (shape, dtype) not in stand_ins:
                stand_ins[shape, dtype] = mx.zeros((0,) * shape if isinstance(shape, int) else shape, dtype)
        rest = iter(self.arrays)
        values = [
            unflatten(structure, [stand_ins[next(rest)] for _ in range(structure.num_leaves)]) for structure in self.structures
        ]
        return dict(zip(labels, values, strict=True))


class Seen:
    """A static value as it is remembered: how it is shown, and what tells it from others.

    Attributes:
        sort: "number", "object" for what is equal to nothing but itself, or "static".
    """

    __slots__ = ("_hash", "_key", "_text", "sort")

    def __init__(self, value: Any) -> None:
        self._text = describe(value)
        # Another value may have the address, and so the hash, of one that is gone.
        told_by = weakref.ref(value) if is_itself(value) else hash(static_key(value))
        is_number = isinstance(value, Number) and not isinstance(value, bool)
        self.sort = "number" if is_number else "object" if is_itself(value) else "static"
        self._key = type(value).__qualname__, self._text, told_by
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seen) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return self._text


def remembered(structure: Structure) -> Structure:
    """Return a structure in which each static value is a :class:`Seen`, so that it holds none."""
    return structure.remember(_remembered)


def _remembered(structure: Structure) -> Structure:
    return Structure(_seen(structure.spec, {}), structure.num_leaves)


def _seen(spec: Any, known: dict[Metadata, Metadata]) -> Any:
    """As :func:`remembered`, for a spec. Many modules have equal metadata: ``known`` has what has been met."""
    if isinstance(spec, Structure):
        return remembered(spec)
    if isinstance(spec, Static):
        return Static(Seen(spec.value))
    if not isinstance(spec, tuple):
        return spec
    kind, metadata, specs = spec
    if isinstance(metadata, Metadata):
        if metadata not in known:
            static = {
                name: unflatten(remembered(flat_of(each, hidden=True).structure), iter(()))
                for name, each in metadata.static.items()
            }
            known[metadata] = Metadata(static, metadata.training, metadata.frozen, metadata.ties, metadata.shards)
        metadata = known[metadata]
    return kind, metadata, specs if isinstance(specs, int) else tuple([_seen(each, known) for each in specs])


ALIKE = (
    "although its arguments were like those of an earlier trace: MLX traces anew in each thread, inside other transformations "
    "(jit, grad, vmap), and while it is told not to compile"
)


class History:
    """The traces of one jitted function: how many there have been, and what the latest were made for.

    Args:
        max_traces: How many traces are kept at a time. As many again are remembered, to recognise one that comes back.

    Attributes:
        count: How many traces there have been.
        reused: How many of them were used again.
    """

    def __init__(self, max_traces: int | None) -> None:
        self.count = 0
        self.reused = 0
        self._max_traces = max_traces
        self._traced: dict[Traced, None] = {}
        self._reason: str | None = None

    def add(self, traced: Traced, in_new_program: bool) -> None:
        """Note that the function has been traced.

        Args:
            traced: What it was traced for.
            in_new_program: Whether the trace is the first of its program.
        """
        with _lock:
            self.count += 1
            if traced in self._traced:
                dropped = f"because its trace for these arguments had been dropped to make room: max_traces={self._max_traces}"
                self._reason = dropped if in_new_program else ALIKE
            else:
                self._reason = None if self._traced else "because clear() had dropped the traces before"
            self._traced.pop(traced, None)
            self._traced[traced] = None  # the last in order
            if self._max_traces is not None and len(self._traced) > 2 * self._max_traces:
                del self._traced[next(iter(self._traced))]

    @property
    def latest(self) -> Traced:
        """What the latest trace was made for. There must be one."""
        with _lock:
            return next(reversed(self._traced))

    def clear(self) -> None:
        """Forget all traces but their number."""
        with _lock:
            self._traced = {}

    def explain(self, fn: str, argument: Argument) -> str:
        """Say in a sentence why the function was last traced.

        Args:
            fn: The name of the function.
            argument: Returns the name of an argument, given its position, the number of arguments and the names in the call.
        """
        with _lock:
            count, reason, traced = self.count, self._reason, list(self._traced)
        if not traced:
            return f"{fn} has no trace: clear() dropped those that it had." if count else f"{fn} has not been traced yet."
        if count == 1:
            return f"{fn} was traced once."
        if reason is None:
            *earlier, last = traced
            # Among equals, the latest.
            nearest = max(reversed(earlier), key=last.likeness)
            first, others = _difference(nearest, last, argument)
            more = f" (and {others} more difference{'s' * (others > 1)})" if others else ""
            reason = f"for {first}{more}"
        return f"{fn} was traced again (trace {count}) {reason}."


def changes_between(old: Traced, new: Traced, argument: Argument) -> tuple[Diff, Callable[[Change], str]]:
    """Return how the arguments that a function was traced for differ, and a function that puts such a change in words."""
    labels = [
        [argument(position, len(each.structures), each.names) for position in range(len(each.structures))]
        for each in (old, new)
    ]
    stand_ins: dict[Any, mx.array] = {}
    before, after = old.tree(labels[0], stand_ins), new.tree(labels[1], stand_ins)
    dims = {id(array): shape for (shape, _), array in stand_ins.items() if isinstance(shape, int)}
    return diff(before, after), lambda change: _in_words(change, after, dims)


def _difference(old: Traced, new: Traced, argument: Argument) -> tuple[str, int]:
    """Return in words the first difference between what a function was traced for, and how many more there are."""
    changes, in_words = changes_between(old, new, argument)
    found = [in_words(change) for change in changes[:1]]
    if not found:
        found += [f"{name}: given by name, where it was given by position" for name in new.names if name not in old.names]
        found += [f"{name}: given by position, where it was given by name" for name in old.names if name not in new.names]
    if not found:
        pairs = zip(old.structures, new.structures, strict=True)
        found += [
            f"{argument(position, len(new.structures), new.names)}: built otherwise"
            for position, (one, other) in enumerate(pairs)
            if one != other
        ]
    if old.dtype != new.dtype:
        found.append(f"the default dtype: {dtype_name(old.dtype)} -> {dtype_name(new.dtype)}")
    return found[0], len(found) - 1 + len(changes[1:])


def _in_words(change: Change, tree: Any, dims: dict[int, int]) -> str:
    """Describe a change as ``fl.tree.diff`` prints it, but with stars for the shape of an array if shapes don't count."""
    path = _with_field_names(change.path, tree) or "the arguments"

    def shown(array: mx.array) -> Any:
        return _Shown(shape_and_dtype("*" * dims[id(array)], array.dtype)) if id(array) in dims else array

    return str(Change(path, change.kind, tree_map(shown, change.before), tree_map(shown, change.after)))


class _Shown(str):
    def __repr__(self) -> str:
        return str(self)


def _with_field_names(path: str, tree: Any) -> str:
    """Replace the indices of named tuples in a path by their fields' names."""
    names = path.split(".")
    for position, name in enumerate(names):
        here = field_level(tree)
        inside = {} if here is None else dict(zip(map(str, here.entries), here.children, strict=True))
        if name not in inside:
            break
        if hasattr(type(tree), "_fields"):
            names[position] = type(tree)._fields[int(name)]
        tree = inside[name]
    return ".".join(names)
