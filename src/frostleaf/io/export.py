"""Write functions of trees to files that MLX reads, without Python if need be."""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from ..core.structure import Flat, Structure, flat_of, require_numbers, unflatten
from ..core.words import describe, function_name, level_of_caller, listed
from ..transforms import evaluation
from ..transforms.binding import REFUSED, unbind
from ..transforms.collectives import has_exchange, refused, settle
from ..transforms.context import override, setting
from ..transforms.jit.captured import captured_arrays
from ..transforms.random import saved_state, unchanged_state
from ..transforms.stateful import records, warn_uncollected
from ..transforms.without_values import explained
from ..transforms.wrapping import RUNS_LATER, require_runs_when_called
from . import exported
from .atomic import atomic_write, require_path
from .export_checks import Checks, in_our_words, require_rows
from .results import Parts
from .signatures import Signature, require_shapeless, signature_of
from .trees import UncomparedValueWarning

T = TypeVar("T")


def export_function(
    path: str | os.PathLike[str],
    fn: Callable[..., Any],
    *example_trees: Any,
    shapeless: bool | Sequence[Any] = False,
    metadata: Any = None,
    **named_trees: Any,
) -> None:
    """Write a function of trees to a file, from which :func:`import_function` and MLX's own function of that name read it.

    The function is traced with the examples. What it does with arrays is in the file, and the structure of its arguments and
    of its result. Static values of the arguments (numbers, modes, frozen names) and arrays that it has from elsewhere are
    constants; what is not computed yet is computed before. Of a module given as ``fn``, or of a bound method, the weights are
    such constants: the file alone suffices, and has their size. Given as an argument, a module stays an argument.

    The file is kept if what it computes is what ``fn`` computes, with the examples and, if ``shapeless``, with three more
    lengths of what may vary: about twice as many rows, one fewer and a single one, drawn from the examples. ``fn`` is also
    traced with round numbers of rows such as 192 and with 100,000, and has to do the same with them, or raise an error. One row
    is refused in calls where MLX can't compute it (a sum over the batch); plain MLX ends the process when it is called with
    one there. Lengths that are equal in the examples must be equal in each call, so that unlike lengths need unlike numbers in
    the examples. The file replaces one of that name whole, or leaves it. What :func:`checkpoint` made runs as a plain function:
    MLX can't write that something is computed again.

    MLX, in Python, C++ or Swift, takes the arrays of the first module (or, if there is none, of the first argument that is
    more than one array) by name, under the names that they have in a file of weights: ``fn(x, **mx.load(weights))`` for a
    function of a model and ``x``. An argument that is one array goes by position. Those of every other argument go by its
    name and theirs, such as ``batch.tokens``; ``*args`` as ``args.0``. Arrays that a file of weights lacks, such as buffers
    that are not persistent or what an optimizer keeps, have to be given as well: ``.arguments(*trees)`` of the imported
    function returns all, by position and by name. MLX returns the arrays of the result in the order of
    :func:`frostleaf.tree.leaves`, and ``mx.import_function(path, return_metadata=True)`` also a text in JSON, of which
    ``metadata`` is what was given here.

    Args:
        path: The file; MLX's files end in ``.mlxfn``.
        fn: A function of trees that returns a tree: a function, method or module, or a partial application of one.
        *example_trees, **named_trees: Its arguments, with values. Those given by name are the last for ``shapeless``. MLX takes
            them by their names, also those that are one array.
        shapeless: Whether axes may be of other lengths: ``True`` for the first axis of each array that is in no module, or as
            ``in_axes`` of :func:`vmap` a tuple with an entry for each argument, in which a tuple in the place of an array is
            several of its axes: ``(None, (0, 1))``. Default: ``False``.
        metadata: Anything that JSON can hold, which comes back as ``.metadata`` of the imported function. Default: ``None``.

    Raises:
        TypeError: If an argument is none of these, or the result has something that neither JSON nor the arguments can hold.
        ValueError: If ``fn`` draws random numbers from ``mx.random``, or MLX can't write it, or what the file computes differs,
            or an array that it has from elsewhere is a part of another or transposed, which MLX would write as if it were not
            (those in ``fn`` itself, its module and its bound arguments, are laid out anew); the message says what to do.
        FileNotFoundError: If the file's directory doesn't exist.

    Warns:
        UncomparedValueWarning: If a static value of the arguments is of a class that doesn't say when two are equal.

    >>> import frostleaf as fl, mlx.core as mx, tempfile
    >>> def predict(model, x):
    ...     return {"logits": model(x)}
    >>> model, x = fl.nn.Linear(2, 3), mx.ones((4, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.export_function(f"{folder}/f.mlxfn", predict, model, x, shapeless=True)
    ...     imported = fl.import_function(f"{folder}/f.mlxfn")
    ...     plain = mx.import_function(f"{folder}/f.mlxfn")
    >>> imported(model, mx.ones((9, 2)))["logits"].shape
    (9, 3)
    >>> plain(x, weight=model.weight, bias=model.bias)[0].shape
    (4, 3)
    """
    with exporter(path, fn, shapeless=shapeless, metadata=metadata) as export:
        export(*example_trees, **named_trees)


def exporter(
    path: str | os.PathLike[str], fn: Callable[..., Any], *, shapeless: bool | Sequence[Any] = False, metadata: Any = None
) -> Exporter:
    """Make a context manager that writes a function for several kinds of arguments to one file.

    Inside the block call what it gives with the arguments of each kind. The file is written when the block ends, unless it
    ends with an exception.

    Args:
        path, fn, shapeless, metadata: As for :func:`export_function`, which says what is written.

    Raises:
        TypeError: If an argument is none of these.
        ValueError: When the block ends, if nothing was exported, or for two kinds that MLX can't tell apart, since they differ
            in static values alone; or as :func:`export_function`.

    >>> import frostleaf as fl, mlx.core as mx, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with fl.exporter(f"{folder}/f.mlxfn", lambda batch: batch["x"].sum()) as export:
    ...         for length in (16, 32):
    ...             export({"x": mx.ones(length)})
    ...     fl.import_function(f"{folder}/f.mlxfn")({"x": mx.ones(32)})
    array(32, dtype=float32)
    """
    return Exporter(path, fn, shapeless, metadata)


class _Example(NamedTuple):
    """What a function is exported for.

    Attributes:
        signature: The description of the arguments.
        given: The arguments, taken apart.
        keywords: The names of the last of them, which are given by name.
        result: The structure of the result.
        code: The same in JSON.
    """

    signature: Signature
    given: list[Flat]
    keywords: list[str]
    result: Structure
    code: Any


_NOT_JSON = "metadata is anything that JSON can hold, and was given as {given}: {error}"
_EMPTY = "nothing was exported to {path}: call what the block was given with example arguments"
_DRAWS = (
    "{fn} draws random numbers from mx.random, which would be the same in each call of the exported function. Pass a key: take "
    "it as an argument, and draw inside `with fl.rng(key):`. Or turn dropout off with model.eval()"
)
_EXCHANGES = (
    "{fn} exchanges arrays with other processes, which a file can't hold: export what one process computes, of a model made "
    "whole by fl.distributed.gather(model)"
)
_UNCOMPARED = (
    "a call of the exported function will not notice if {places} is another object of its class, which doesn't say when two "
    "are equal. Make it a frozen dataclass, or give it an __eq__"
)


class Exporter:
    """Writes a function to a file for several kinds of arguments. :func:`exporter` makes it."""

    def __init__(self, path: Any, fn: Any, shapeless: Any, metadata: Any) -> None:
        require_path(path, "fl.export_function(path, fn, *example_trees)")
        if not callable(fn):
            raise TypeError(f"fl.export_function takes a function second, and was given {describe(fn)}")
        require_runs_when_called(unbind(fn)[0], RUNS_LATER.format(transformation="fl.export_function"))
        require_shapeless(shapeless)
        try:
            json.dumps(metadata)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(_NOT_JSON.format(given=describe(metadata), error=error)) from None
        self._path, self._fn, self._shapeless, self._metadata = path, fn, shapeless, metadata
        inner, bound, named = unbind(fn)
        # MLX writes the memory of a constant as if it lay row by row.
        self._bound = functools.partial(inner, *map(_by_rows, bound), **{name: _by_rows(each) for name, each in named.items()})
        self._examples: list[_Example] = []

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def __call__(self, /, *example_trees: Any, **named_trees: Any) -> None:
        """Export the function for arguments like these, in the file that :meth:`close` writes. It runs once.

        Raises:
            TypeError: If the arguments or the result can't be described.
            ValueError: If two arrays would have the same name, random numbers are drawn, or arrays are exchanged
                with other processes.
        """
        trees, keywords = [*example_trees, *named_trees.values()], [*named_trees]
        given = [flat_of(tree) for tree in trees]
        for flat in given:
            require_numbers(flat)
        signature = signature_of(self._fn, trees, given, keywords, self._shapeless)
        before = saved_state()
        settle()
        with unchanged_state():
            result = self._call(given, keywords, _leaves(given))
            if not mx.array_equal(before, saved_state()):
                raise ValueError(_DRAWS.format(fn=function_name(self._fn)))
            # With the result all that it is computed from, wherever the function has that from: the trace would have its
            # recipe, and with shapeless that of arrays of which it needs only the shape.
            bound = self._bound
            evaluation.eval(_leaves(given), result.leaves, captured_arrays(bound.func, [*bound.args, *bound.keywords.values()]))
            if self._shapeless:
                signature = signature._replace(least=self._checks(signature, given, keywords).least())
        if signature.unknown:
            places = listed(f"{place} ({kind})" for place, kind in signature.unknown.items())
            warnings.warn(_UNCOMPARED.format(places=places), UncomparedValueWarning, stacklevel=level_of_caller())
        code = Parts([flat.structure for flat in given]).encode(result.structure)
        self._examples.append(_Example(signature, given, keywords, result.structure, code))

    def close(self) -> None:
        """Write the file, if what it computes is right.

        Raises:
            ValueError: If nothing was exported, MLX can't write the function, or what the file computes is not right.
        """
        if not self._examples:
            raise ValueError(_EMPTY.format(path=os.fspath(self._path)))
        with atomic_write(self._path) as temporary:
            self._write(temporary)
            exported.seal(temporary)
            imported: Any = mx.import_function(temporary)
            for example in self._examples:
                self._checks(example.signature, example.given, example.keywords).check(imported)

    def _write(self, file: str) -> None:
        parts = [exported.Part(example.signature, example.code) for example in self._examples]
        text = exported.header_text(parts, self._metadata)
        tracing = self._examples[0]

        def on_leaves(*positional: mx.array, **named: mx.array) -> list[mx.array]:
            result = self._run(tracing.given, tracing.keywords, tracing.signature.joined(positional, named))
            if result.structure != tracing.result:
                raise ValueError(_OTHER_RESULT.format(fn=function_name(self._fn)))
            return list(result.leaves)

        is_shapeless, name = bool(self._shapeless), function_name(self._fn)
        with in_our_words(name), mx.exporter(file, on_leaves, shapeless=is_shapeless, metadata=text) as export:
            for tracing in self._examples:
                # Other objects, since the function may have those of the examples from elsewhere as well.
                arrays = [mx.stop_gradient(leaf) for leaf in _leaves(tracing.given)]
                evaluation.eval(arrays)
                positional, named = tracing.signature.split(arrays)
                require_rows(name, on_leaves, positional, named)
                export(positional, named)

    def _run(self, given: Sequence[Flat], keywords: Sequence[str], arrays: Sequence[mx.array]) -> Flat:
        """Call the function with other arrays in the arguments, which need not have values."""
        with unchanged_state(), explained("fl.export_function", self._fn):
            return self._call(given, keywords, arrays)

    def _call(self, given: Sequence[Flat], keywords: Sequence[str], arrays: Sequence[mx.array]) -> Flat:
        """Call the function as it is called to be traced. The random state shows whether it has drawn."""
        rest = iter([array[...] for array in arrays])  # that it may assign to
        trees = [unflatten(flat.structure, rest) for flat in given]
        count = len(trees) - len(keywords)
        recorded = dict(records.get() or {})
        before = len(recorded)
        recording = setting(records, recorded)
        with override(plain=True, shapeless=bool(self._shapeless)), recording, setting(refused, self._no_exchange):
            result = flat_of(self._bound(*trees[:count], **dict(zip(keywords, trees[count:], strict=True))))
        if has_exchange(result.leaves):
            raise self._no_exchange()
        if len(recorded) > before:
            classes = [type(module).__name__ for module, _ in recorded.values()][before:]
            warn_uncollected(_UNCOLLECTED.format(fn=function_name(self._fn), cls=classes[0]))
        return result

    def _no_exchange(self) -> ValueError:
        return ValueError(_EXCHANGES.format(fn=function_name(self._fn)))

    def _checks(self, signature: Signature, given: list[Flat], keywords: list[str]) -> Checks:
        return Checks(function_name(self._fn), functools.partial(self._run, given, keywords), _leaves(given), signature)


def _by_rows(tree: T) -> T:
    """Return a tree of which each array lies in memory row by row. One that does so keeps its memory."""
    try:
        flat = flat_of(tree, hidden=True)
    except REFUSED:
        return tree
    once = {id(leaf): mx.contiguous(leaf) for leaf in flat.leaves}
    evaluation.eval([*once.values()])
    laid_out: T = unflatten(flat.structure, iter([once[id(leaf)] for leaf in flat.leaves]))
    return laid_out


def _leaves(given: Sequence[Flat]) -> list[mx.array]:
    return [leaf for flat in given for leaf in flat.leaves]


_UNCOLLECTED = (
    "{fn} calls {cls} in training mode: what is exported computes with the statistics of each batch, and what is recorded "
    "is lost. Export it with model.eval(), or export a function that returns what fl.stateful(model, ...) does"
)
_OTHER_RESULT = (
    "{fn} returns something of another structure when it is traced than when it runs: it depends on more than its arguments"
)
