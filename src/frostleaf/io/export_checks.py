"""Whether the file of an exported function computes what the function does, with the examples and with other lengths."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import mlx.core as mx

from ..core.structure import Flat, Structure
from ..core.words import listed, shape_and_dtype
from ..transforms.jit.serving import ROUND, NeedsShapes, Serving, around, reason
from .signatures import Signature

# What a length in the examples is replaced by, besides one: about twice as many rows, and one fewer, which is not one.
_OTHERS: list[Callable[[int], int]] = [lambda length: 2 * length + 1, lambda length: length - (length > 2)]
# Far more rows than the examples have, with which nothing is computed: from some number on a function may do something else.
_FAR = 99_991


_FAILS = (
    "{fn} can't be called {where}: {error}\n\nWith shapeless=True the first axis of each array that is in no module may be of "
    "another length. Say which axes may vary with a tuple as in_axes of fl.vmap, such as shapeless=(None, 0), and let unlike "
    "lengths be unlike in the examples"
)
_CANT_RUN = "what MLX wrote of {fn} can't run {where}: {error}\n\n{advice}"
_WRONG = "what MLX wrote of {fn} computes something else {where}, in {places}. {advice}"
_IMPURE = "A function that is exported must depend on its arguments alone, and return the same each time"
_SHAPES = (
    "It can't be exported with shapeless: a length that it reads in Python is that of the example, and some of MLX's functions "
    "keep a shape. Export it without, for each shape that is needed, with fl.exporter"
)
_STEPS = (
    "{fn} can't be exported with shapeless: {where}, {error}. Export it without, for each shape that is needed, with "
    "fl.exporter, or give an example that has more than one row. Layers of mlx.nn may keep a shape where those of "
    "fl.convert(model) don't, as a Linear with a bias does, and mx.addmm"
)
_NO_STREAM = "There is no Stream"  # as MLX words it
_OTHER_THREAD = "MLX runs what it reads from a file in the main thread alone: export it there"
_NO_RULE = "{fn} can't be exported with shapeless: {why}. Export it without, for each shape that is needed, with fl.exporter"
_EXAMPLE = "with the example arguments"


_UNWRITTEN, _TWICE = re.compile(r"(?:serialize|get state for) primitive (\w+)"), "twice with the same signature"
_CANT_WRITE = (
    "MLX can't write {primitive}, which {fn} computes, to a file. What makes processes exchange arrays is among what it can't, "
    "and what mx.compile made and is called with constants. Leave it out of what is exported. If it made arrays that {fn} gets "
    "from elsewhere and that have no values yet, call fl.eval(model) on what holds them"
)
_DERIVATIVE = (
    "MLX can't write what has a derivative of its own (mx.checkpoint, mx.custom_function, and what fl.tree.ravel unravels) to "
    "a file, which {fn} computes. Write fl.checkpoint for mx.checkpoint, which is written as a plain function, and export what "
    "the others compute without it"
)
_READS = (
    "{fn} reads arrays from a file when it is called, which MLX can't write. Read them outside of it: what it computes with is "
    "then in the file as it is, or is an argument"
)
# What is said of a primitive of MLX.
_UNWRITABLE = {"Load": _READS, "CustomTransforms": _DERIVATIVE}
_ALIKE = (
    "two of the examples have arrays of the same names, shapes and dtypes, by which alone MLX tells which is meant: write them "
    "to two files"
)


@contextmanager
def in_our_words(fn: str) -> Iterator[None]:
    """Say why MLX can't write a function, if it says so inside a ``with`` block, and what to do.

    Raises:
        ValueError: If it can't.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        said = _in_our_words(error, fn)
        if said is None:
            raise
        raise ValueError(said) from error


def _in_our_words(error: BaseException | None, fn: str) -> str | None:
    unwritten = _UNWRITTEN.search(str(error))
    if unwritten:
        return _UNWRITABLE.get(unwritten[1], _CANT_WRITE).format(fn=fn, primitive=unwritten[1])
    return _ALIKE if _TWICE in str(error) else None


_NOT_BY_ROWS = (
    "{fn} computes with an array {array} that it gets from elsewhere, and that is a part or a transposition of another, or "
    "broadcast: MLX would write other numbers. Make it mx.contiguous(array) before, for a whole model "
    "fl.tree.map(mx.contiguous, model), or pass it as an argument"
)


def require_rows(name: str, fn: Callable[..., Any], positional: Sequence[mx.array], named: Mapping[str, mx.array]) -> None:
    """Require that the constants in a function lie in memory row by row, as MLX writes them. It is traced.

    Raises:
        ValueError: If one doesn't.
    """
    said: list[dict[str, Any]] = []
    mx.export_function(said.append, fn, positional, named)
    for each in said:
        for _, constant in each["constants"] if each["type"] == "constants" else ():
            if not memoryview(constant).c_contiguous:
                array = shape_and_dtype(constant.shape, constant.dtype)
                raise ValueError(_NOT_BY_ROWS.format(fn=name, array=array))


@attrs.frozen
class Checks:
    """Compares a function with what MLX has written of it.

    Attributes:
        fn: The name of the function.
        run: Calls the function, and returns the result taken apart.
        given: The arrays in the example arguments.
        signature: The description of the arguments.
    """

    fn: str
    run: Callable[[Sequence[mx.array]], Flat]
    given: Sequence[mx.array]
    signature: Signature

    def least(self) -> dict[int, int]:
        """Return the lengths that have to be more than one, and 2, for one trace to serve. It is traced, and nothing computed.

        MLX sums over no axis of a single element, and ends the process if an axis becomes one in a trace for all shapes.

        Raises:
            ValueError: If the function can't be called with other lengths, or takes other steps then.
        """
        serving = Serving(self._computed)
        with in_our_words(self.fn):
            self._require(serving, self.given, _EXAMPLE)
        for change in _OTHERS:
            self._require_lengths(serving, self._lengths(change))
        more = self._lengths(_OTHERS[0])
        sizes = sorted(more.values())
        far = [_FAR + place for place in range(len(sizes))]
        for each in [*[each for unit in ROUND for each in around(sizes, unit)], far]:
            new = dict(zip(sizes, each, strict=True))
            try:
                self._require_lengths(serving, {length: new[size] for length, size in more.items()})
            except ValueError as error:
                if isinstance(error.__cause__, NeedsShapes):
                    raise
                continue  # it has a limit, and says so
        single = [length for length in more if self._serves(serving, {length: 1})]
        single = single if self._serves(serving, dict.fromkeys(single, 1)) else []
        return {length: 2 for length in more if length not in single}

    def _serves(self, serving: Serving, lengths: Mapping[int, int]) -> bool:
        try:
            self._require_lengths(serving, {**self._lengths(lambda length: length), **lengths})
        except ValueError:
            return False
        return True

    def _require_lengths(self, serving: Serving, lengths: Mapping[int, int]) -> None:
        self._require(serving, self._resized(lengths), _where(lengths))

    def _require(self, serving: Serving, arrays: Sequence[mx.array], where: str) -> None:
        try:
            serving.require(arrays)
        except NeedsShapes as error:
            unwritten = _in_our_words(error.__cause__, self.fn)
            raise ValueError(unwritten or _STEPS.format(fn=self.fn, where=where, error=error)) from error
        except Exception as error:
            if where == _EXAMPLE:
                raise
            raise ValueError(_FAILS.format(fn=self.fn, where=where, error=error)) from error

    def check(self, imported: Callable[..., Any]) -> None:
        """Raise an error unless the imported function computes what the function does.

        Raises:
            ValueError: If it doesn't.
        """
        lengths = self._lengths(lambda length: length)
        self._compare(imported, self.given, _EXAMPLE, _SHAPES if lengths else _IMPURE)
        for change in (*_OTHERS, lambda _: 1) if lengths else ():
            lengths = {old: max(self.signature.least.get(old, 1), new) for old, new in self._lengths(change).items()}
            self._compare(imported, self._resized(lengths), _where(lengths), _SHAPES)

    def _compare(self, imported: Callable[..., Any], arrays: Sequence[mx.array], where: str, advice: str) -> None:
        said = {"fn": self.fn, "where": where, "advice": advice}
        expected = self.run(arrays)
        positional, named = self.signature.split(arrays)
        try:
            found = imported(positional, named)
            mx.eval(found, expected.leaves)
        except (ValueError, RuntimeError) as error:
            if isinstance(error, ValueError) and (why := reason(error)):
                raise ValueError(_NO_RULE.format(fn=self.fn, why=why)) from error
            if _NO_STREAM in str(error):
                said["advice"] = _OTHER_THREAD
            raise ValueError(_CANT_RUN.format(**said, error=error)) from error
        names = expected.structure.leaf_names()
        wrong = [name for name, one, other in zip(names, expected.leaves, found, strict=True) if not _is_close(one, other)]
        if wrong:
            places = listed(f"{name} of the result" if name else "the result" for name in wrong)
            raise ValueError(_WRONG.format(**said, places=places))

    def _computed(self, arrays: list[mx.array]) -> tuple[Sequence[mx.array], Structure]:
        result = self.run(arrays)
        return result.leaves, result.structure

    def _lengths(self, change: Callable[[int], int]) -> dict[int, int]:
        """Return a new length for each in the example that may vary."""
        return {length: change(length) for leaf in self.signature.leaves for length in leaf.lengths}

    def _resized(self, lengths: Mapping[int, int]) -> list[mx.array]:
        """Return the arrays with other lengths, of rows drawn from their own."""
        arrays = []
        for leaf, array in zip(self.signature.leaves, self.given, strict=True):
            for axis, length in zip(leaf.axes, leaf.lengths, strict=True):
                array = mx.take(array, _rows(length, lengths[length]), axis=axis)
            arrays.append(array)
        return arrays


def _rows(length: int, new: int) -> mx.array:
    # The same for all arrays of one length, whose rows belong together.
    return mx.random.randint(0, length, (new,), key=mx.random.key(length))


def _where(lengths: Mapping[int, int]) -> str:
    return f"with {listed(f'{new} in the place of {old}' for old, new in lengths.items())}"


# Of the largest number: on a GPU, sums may come out a little otherwise each time, and factors may be rounded to 10 bits.
_TOLERANCE = 16
_EPS_OF_FACTORS = 2.0**-10


def _is_close(one: mx.array, other: mx.array) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if mx.array_equal(one, other, equal_nan=True).item():
        return True
    if not mx.issubdtype(one.dtype, mx.inexact):
        return False
    eps = mx.finfo(mx.float32 if one.dtype == mx.complex64 else one.dtype).eps
    tolerance = _TOLERANCE * (eps if mx.default_device().type == mx.cpu else max(eps, _EPS_OF_FACTORS))
    largest: Any = mx.max(mx.where(mx.isfinite(one), mx.abs(one), 0)).item()
    return bool(mx.allclose(one, other, rtol=tolerance, atol=tolerance * largest, equal_nan=True))
