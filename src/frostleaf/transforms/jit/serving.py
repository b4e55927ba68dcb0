"""Whether one trace serves arrays of other shapes: the function is traced for these as well, and must do the very same."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from ...core.structure import Structure
from ...core.words import listed, shape_and_dtype
from ..collectives import has_exchange, refused, settle
from ..context import setting
from ..random import restore_state, saved_state, unchanged_state

Shapes = tuple[tuple[int, ...], ...]
Kinds = tuple[tuple[int, mx.Dtype], ...]  # the number of dimensions and the dtype of each array
# Returns the arrays of the result for those of the arguments, and the structure that they have in it.
Function = Callable[[list[mx.array]], tuple[Sequence[mx.array], Structure]]

_MOST = 64
# What sizes are made multiples of: a function that takes multiples of 2, 3, 4, ... otherwise than others shows it there.
ROUND = 192, 24
# As MLX words it.
_NO_RULE = re.compile(r"\[Primitive::output_shapes\] (.+) cannot infer|Cannot compile primitive (.+) with")
_UNSEEN = re.compile(r"Unable to get state for primitive (\w+)")


_POSITIONS = "mx.cumsum(mx.ones_like(tokens), axis=1)"
_OF_POSITIONS = (
    f"For positions in rows of tokens write p = {_POSITIONS} rather than mx.arange(length), and as a causal mask "
    'p[:, None, :, None] >= p[:, None, None, :], or "causal" in fl.nn.MultiHeadAttention'
)
_OF_THE_LAST = (
    "What is sliced has lengths of its own. For the last of each row write mx.take_along_axis(x, last[..., None], axis=1) "
    f"rather than x[:, -1:], with last = mx.argmax({_POSITIONS}, axis=1, keepdims=True)"
)
_OF_UNSEEN = "Call that outside of it"
# What to write instead of an operation that keeps a shape.
INSTEAD = {
    "Arange": _OF_POSITIONS,
    **dict.fromkeys(("Slice", "Gather"), _OF_THE_LAST),
    **dict.fromkeys(("Load", "CustomTransforms"), _OF_UNSEEN),
}


class NeedsShapes(Exception):  # noqa: N818
    """A trace can't serve all shapes. Its text says why.

    Args:
        why: The text.
        operation: What MLX calls the operation that can't be of other shapes.

    Attributes:
        advice: What to write instead, if that is known of the operation.
    """

    def __init__(self, why: str, operation: str = "") -> None:
        super().__init__(why)
        self.advice = INSTEAD.get(operation)


class NeedsTheseShapes(NeedsShapes):
    """A trace can't serve certain shapes, and may serve others."""


class Step(NamedTuple):
    """One operation of a trace.

    Attributes:
        name: What MLX calls it.
        options: What it is told besides arrays.
        inputs: The numbers of its arrays: the arguments come first, then constants and results as they are met.
        outputs: The numbers of its results.
    """

    name: str
    options: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.options))})"


class Recorded(NamedTuple):
    """What a function does with arrays of certain shapes.

    Attributes:
        steps: Its operations, in order.
        constants: The arrays in it that were there before.
        results: The numbers of the arrays in its result.
        structure: The structure that they have in it.
    """

    steps: list[Step]
    constants: list[mx.array]
    results: tuple[int, ...]
    structure: Structure


NO_RULE = "MLX has no rule for the shape of what {name} returns"
UNSEEN = "MLX does not show what {name} does, so that it can't be compared for other shapes"
_UNSEEN_NAMES = {
    "CustomTransforms": "fl.checkpoint, or a custom function, or one from a file,",
    "Load": "a function from a file, or mx.load,",
}
STATIC = "what it returns besides arrays depends on the shapes"
CONSTANTS = "it computes with numbers that depend on the shapes"
STEPS = "with {arrays} it computes {step}, and with other shapes {other}"
INSIDE = "inside of other transformations MLX traces with shapes"
EXCHANGED = "it exchanges arrays with other processes, and MLX has no rule for the shapes of those"
REDUCED = "it reduces axes of length 1, at which a trace of MLX for all shapes ends the process"
LENGTH = "with {arrays} it takes {count} operations, and with other shapes {other}"


class Serving:
    """The shapes that the traces of one program serve.

    A trace serves other shapes if the function, traced for those, does the same operations with the same options and constants.
    That is seen to for the first shapes that differ in certain axes from those of the trace. Where there are second ones it is
    for all sizes from half of theirs to a round number and the odd one before that: what is the same there is so in between,
    unless the function knows a single size from those around it.

    Args:
        fn: The function.
    """

    def __init__(self, fn: Function) -> None:
        self._fn = fn
        self._begun: dict[Kinds, tuple[Shapes, Recorded]] = {}
        self._served: dict[Any, list[tuple[list[int], list[int]]]] = {}

    def require(self, arrays: Sequence[mx.array]) -> None:
        """Check that a trace for arrays of these kinds serves them: the one that there is, or else the one that is to be made.

        Raises:
            NeedsShapes: If it does not.
            Exception: What the function raises when it is given arrays of these shapes.
        """
        if not _is_outermost():
            raise NeedsTheseShapes(INSIDE)
        kinds = tuple([(array.ndim, array.dtype) for array in arrays])
        shapes = tuple([array.shape for array in arrays])
        begun = self._begun.get(kinds)
        if begun is None:
            begun = self._begun.setdefault(kinds, (shapes, self._record(kinds, shapes)))
        if begun[0] == shapes:
            return
        pattern, sizes = _differences(begun[0], shapes)
        if self._is_served(kinds, pattern, sizes):
            return
        self._require_same(kinds, shapes)
        served = self._served.setdefault((kinds, pattern), [])
        low = high = sizes
        if served:  # there will be more
            for unit in ROUND:
                others = around(sizes, unit)
                if all(self._is_same_with(kinds, shapes, pattern, dict(zip(sizes, other, strict=True))) for other in others):
                    low, *_, high = others
                    break
        self._served[kinds, pattern] = [*served[1 - _MOST :], (low, high)]

    def _is_served(self, kinds: Kinds, pattern: Any, sizes: list[int]) -> bool:
        ranges = self._served.get((kinds, pattern), ())
        return any(all(map(_is_between, lows, sizes, highs)) for lows, highs in ranges)

    def _is_same_with(self, kinds: Kinds, shapes: Shapes, pattern: Any, new: dict[int, int]) -> bool:
        """Return whether the trace serves shapes with new sizes in the place of those that differ from its own."""
        ranks = iter([rank for rank, *_ in pattern])
        try:
            other = tuple([tuple([new[size] if next(ranks) >= 0 else size for size in shape]) for shape in shapes])
            self._require_same(kinds, other)
        except Exception:  # the function may raise anything, since nobody has called it with these shapes
            return False
        return True

    def _require_same(self, kinds: Kinds, shapes: Shapes) -> None:
        begun, now = self._begun[kinds][1], self._record(kinds, shapes)
        if now.structure != begun.structure:
            raise NeedsShapes(STATIC)
        arrays = listed([shape_and_dtype(shape, dtype) for shape, (_, dtype) in zip(shapes, kinds, strict=True)])
        for step, other in zip(now.steps, begun.steps, strict=False):
            if step != other:
                raise NeedsShapes(STEPS.format(arrays=arrays, step=step, other=other), step.name)
        if len(now.steps) != len(begun.steps) or now.results != begun.results:
            raise NeedsShapes(LENGTH.format(arrays=arrays, count=len(now.steps), other=len(begun.steps)))
        if len(now.constants) != len(begun.constants) or not all(map(_is_same, now.constants, begun.constants)):
            raise NeedsShapes(CONSTANTS)

    def _record(self, kinds: Kinds, shapes: Shapes) -> Recorded:
        made: list[Structure] = []
        said: list[dict[str, Any]] = []

        def on_arrays(state: mx.array, *given: mx.array) -> list[mx.array]:
            with unchanged_state(), setting(refused, lambda: NeedsShapes(EXCHANGED)):
                restore_state(state)
                out, structure = self._fn(list(given))
                results = [*out, saved_state()]
            if has_exchange(results):
                raise NeedsShapes(EXCHANGED)
            made.append(structure)
            return results

        settle()
        given = [mx.zeros(shape, dtype) for shape, (_, dtype) in zip(shapes, kinds, strict=True)]
        try:
            mx.export_function(said.append, on_arrays, saved_state(), *given, shapeless=True)
        except ValueError as error:
            if not made:
                raise
            found = _UNSEEN.search(str(error))
            name = found[1] if found else "the function"
            raise NeedsShapes(UNSEEN.format(name=_UNSEEN_NAMES.get(name, name)), name) from error
        return _read(said, made[0])


def without_rule(error: ValueError) -> NeedsShapes | None:
    """Return the error that says why a trace can't serve all shapes, if an error of MLX says that it can't."""
    found = _NO_RULE.search(str(error))
    name = found and (found[1] or found[2])
    return NeedsShapes(NO_RULE.format(name=name), name) if name else None


def _differences(begun: Shapes, shapes: Shapes) -> tuple[Any, list[int]]:
    """Return what a function may make of the sizes that are new without knowing them, and those sizes in order.

    That is which of them are larger than others, which are equal to sizes that are as they were, and which are 0 or 1.
    """
    pairs = [pair for one, other in zip(begun, shapes, strict=True) for pair in zip(one, other, strict=True)]
    sizes = sorted({new for old, new in pairs if old != new})
    rest = {new for old, new in pairs if old == new}
    ranks = {size: (rank, size in rest, min(size, 2)) for rank, size in enumerate(sizes)}
    return tuple([ranks[new] if old != new else (-1,) for old, new in pairs]), sizes


def _read(said: Sequence[dict[str, Any]], structure: Structure) -> Recorded:
    """Return what MLX said of a function, with numbers for the names in it."""
    by_type: dict[str, list[dict[str, Any]]] = {}
    for each in said:
        by_type.setdefault(each["type"], []).append(each)
    numbers: dict[str, int] = {}
    constants = dict(by_type["constants"][0]["constants"])
    met: list[mx.array] = []

    def numbered(arrays: Sequence[tuple[Any, ...]]) -> tuple[int, ...]:
        met.extend([constants.pop(name) for name, *_ in arrays if name in constants])
        return tuple([numbers.setdefault(name, len(numbers)) for name, *_ in arrays])

    numbered(by_type["inputs"][0]["inputs"])
    steps = []
    for each in by_type.get("primitive", ()):
        # Arrays that are broadcast with others get the shape that they have together, whatever the one is that MLX tells.
        depends = each["name"] != "Broadcast" or len(each["inputs"]) == 1
        options = each["arguments"] if depends else []
        if each["name"] == "Reduce" and _is_over_one(each["inputs"][0][1], options[1]):
            raise NeedsTheseShapes(REDUCED)
        steps.append(Step(each["name"], options, numbered(each["inputs"]), numbered(each["outputs"])))
    return Recorded(steps, met, numbered(by_type["outputs"][0]["outputs"]), structure)


def _is_outermost() -> bool:
    """Return whether what MLX traces here for all shapes is outside of other transformations, as it must be."""
    said: list[dict[str, Any]] = []
    mx.export_function(said.append, mx.mean, mx.zeros((2,)), shapeless=True)
    return any(each.get("name") == "NumberOfElements" for each in said)


def around(sizes: list[int], unit: int) -> list[list[int]]:
    """Return the sizes at which a function that knows a limit shows it: half of others, which are in order, and round ones."""
    rounded = _rounded(sizes, unit)
    return [[size // 2 if size > 3 else size for size in sizes], [each - (each > 1) for each in rounded], rounded]


def _rounded(sizes: list[int], unit: int) -> list[int]:
    """Return multiples of a unit that are larger than sizes, which are in order, and in the same order; 0 and 1 as they are."""
    rounded: list[int] = []
    for size in sizes:
        least = max([size, *rounded[-1:]]) + 1
        rounded.append(size if size < 2 else -(-least // unit) * unit)
    return rounded


def _is_between(low: int, size: int, high: int) -> bool:
    return low <= size <= high


def _is_over_one(shape: tuple[int, ...], axes: Sequence[int]) -> bool:
    """Return whether a reduction takes every number by itself, but not as the only one."""
    return len(axes) < len(shape) and all(shape[axis] == 1 for axis in axes)


def _is_same(one: mx.array, other: mx.array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and mx.array_equal(one, other, equal_nan=True).item() is True
