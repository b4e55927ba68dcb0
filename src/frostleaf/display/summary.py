"""``fl.summary``: a model as a table, a row for each module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from operator import or_
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx

from ..core import fields
from ..core.definition import Node
from ..core.leaves import leaf_flags, leaf_spans
from ..core.shapes import LEAF
from ..core.structure import flat_of
from ..core.words import Path, describe, dtype_name, keystr
from ..edits.freezing import trainable_leaves, unfrozen
from ..tree.selecting import Where, require_found, search
from ..tree.walk import all_ties
from .calls import Calls, bound_to, calls_in, modules_in
from .rows import Summary, SummaryPart, SummaryRow

NOT_CALLABLE = "a {given} can't be called, so that fl.summary takes no inputs with it: give a model, or one of its methods"
NO_MODEL = (
    "fl.summary takes a model, a method of one, or another tree, and was given {given}. For a model that is not built yet give "
    "fl.eval_shape(Model, ...), and for one of mlx.nn fl.from_mlx(model)"
)
A_SHAPE = "fl.summary was given {shape}. For an input of that shape give fl.ShapeDtypeStruct({shape}, mx.float32)"
NO_DEPTH = "depth is the number of levels of modules to show, 0 or more, or None for all, and was given as {given}"


def summary(model: Any, /, *inputs: Any, depth: int | None = None, where: Where | None = None, **named: Any) -> Summary:
    """Describe a tree by a table with a row for each module: its class, what it returns, and how large it is.

    Nothing is computed, and no array is evaluated: outputs are those of :func:`eval_shape`. The model need not be built
    either: give ``fl.eval_shape(Model)``, and shapes as inputs.

    Args:
        model: A model, native or from :func:`from_mlx`; a method of one, which is called instead; or any tree, such as the
            state of an optimizer or a dict of models.
        *inputs, **named: The arguments of a call, as arrays or as :class:`ShapeDtypeStruct`. Without any, the model is not
            called, and the table has no outputs.
        depth: How many levels of modules inside the model have rows. Default: all.
        where: Which arrays count, as for ``model.at(where)``. Rows are then the modules that are selected or inside of what is,
            and those that hold a selected array. Default: all.

    Returns:
        A :class:`Summary`, which prints as a table. A module that was called several times has the number of calls beside what
        they returned. One that returns no array in a call has no output, and so has one of which it isn't known whether it was
        called, as a copy with other arrays was: a cast, or what :func:`vmap` or :func:`grad` made.

    Raises:
        TypeError: If there are inputs and the tree can't be called; if ``depth`` is no such number.
        LookupError: If ``where`` selects nothing.
        Exception: What the call raises; the message says in which module that was.

    >>> import frostleaf as fl, mlx.core as mx
    >>> model = fl.nn.Sequential(fl.nn.Linear(2, 64), fl.nn.relu, fl.nn.Linear(64, 3)).at("layers.0").freeze()
    >>> fl.summary(model, fl.ShapeDtypeStruct((8, 2)))
    path        module      output     parameters  trainable    bytes
    ─────────────────────────────────────────────────────────────────
    (root)      Sequential  f32[8,3]          387        195  1.55 kB
      layers.0  Linear      f32[8,64]         192          0    768 B
      layers.2  Linear      f32[8,3]          195        195    780 B
    ─────────────────────────────────────────────────────────────────
    387 parameters (195 trainable, 192 frozen), 1.55 kB
    by dtype: float32 1.55 kB
    by name: weight 1.28 kB, bias 268 B
    """
    if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 0):
        raise TypeError(NO_DEPTH.format(given=describe(depth)))
    fn, tree = bound_to(model)
    if fn is None and callable(model):
        raise TypeError(NO_MODEL.format(given=describe(model)))
    calls: Calls | None = None
    if inputs or named:
        if fn is None:
            raise TypeError(NOT_CALLABLE.format(given=type(tree).__name__))
        try:
            calls = calls_in(fn, tree, inputs, named)
        except Exception as error:
            _explain_shapes(error, inputs, named)
            raise
    selected = None if where is None else search(tree, where)
    if selected is not None:
        require_found(tree, selected)
    sizes = _Sizes(tree, None if selected is None else selected.values)
    modules: dict[Path, Any] = {(): tree, **dict(modules_in(tree))}
    levels = _levels(modules)
    shown = modules if selected is None else _holders(modules, sizes.places(selected.values))
    rows = [_row(path, modules[path], sizes, calls) for path in shown if depth is None or levels[path] <= depth]
    ties = {keystr(target): keystr(source) for target, source in all_ties(tree).items()}
    packed, unpacked = sizes.packed(modules.values())
    total = SummaryRow("", type(tree).__name__, (), None, *sizes.of(()))
    return Summary(
        rows=tuple(rows),
        parameters=total.parameters,
        trainable=total.trainable,
        frozen=sizes.frozen(),
        buffers=total.buffers,
        nbytes=total.nbytes,
        dtypes=sizes.parts(lambda path, leaf: dtype_name(leaf.dtype)),
        names=sizes.parts(lambda path, leaf: _last_name(path)),
        ties=MappingProxyType(ties),
        packed=packed,
        unpacked=unpacked,
    )


def _explain_shapes(error: Exception, inputs: Iterable[Any], named: Mapping[str, Any]) -> None:
    """Add to an error how to give a shape, where an input looks like one."""
    given = [each for each in (*inputs, *named.values()) if isinstance(each, tuple | list)]
    shape = next((tuple(each) for each in given if each and all(type(length) is int for length in each)), None)
    if shape is not None and error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n\n{A_SHAPE.format(shape=describe(shape))}", *error.args[1:])


def _row(path: Path, module: Any, sizes: _Sizes, calls: Calls | None) -> SummaryRow:
    known = None if calls is None else calls.get(path, [])
    returned = known or []
    distinct = [each for number, each in enumerate(returned) if each is not None and each not in returned[:number]]
    count = None if known is None else len(known)
    return SummaryRow(keystr(path), type(module).__name__, tuple(distinct), count, *sizes.of(path))


def _levels(modules: Iterable[Path]) -> dict[Path, int]:
    """Return how many modules each one is inside of, the outer ones coming first."""
    levels: dict[Path, int] = {}
    for path in modules:
        above = next((path[:length] for length in range(len(path) - 1, -1, -1) if path[:length] in levels), None)
        levels[path] = 0 if above is None else levels[above] + 1
    return levels


def _holders(modules: Iterable[Path], selected: Collection[Path]) -> list[Path]:
    """Return the modules that are selected or inside of what is, and the innermost around each other selected place."""
    paths = [*modules]
    known, chosen = {*paths}, {*selected}
    around = {next(path[:length] for length in range(len(path), -1, -1) if path[:length] in known) for path in selected}
    return [path for path in paths if path in around or any(path[:length] in chosen for length in range(len(path)))]


class _Kind(NamedTuple):
    """Whether an array is a parameter, one that is not frozen, and one that is trained."""

    parameter: bool
    unfrozen: bool
    trained: bool


class _Sizes:
    """How large a tree and its parts are.

    Args:
        tree: The tree.
        selected: The paths of what counts. ``None`` for all.
    """

    def __init__(self, tree: Any, selected: Collection[Path] | None) -> None:
        flat = flat_of(tree)
        self._structure = flat.structure
        self._spans = flat.structure.remember(leaf_spans)
        self._leaves = flat.leaves
        self._kinds: dict[int, _Kind] = {}  # an array is what it is at any place, however many places it has
        flags = (leaf_flags(flat.structure, fields.is_parameter), flat.structure.remember(unfrozen), trainable_leaves(flat))
        for leaf, *kind in zip(flat.leaves, *flags, strict=True):
            known = self._kinds.get(id(leaf), _Kind(False, False, False))
            self._kinds[id(leaf)] = _Kind(*map(or_, known, kind))
        self._chosen = [selected is None] * len(flat.leaves)
        for path in selected or ():
            start, stop = self._spans.get(path, (0, 0))
            self._chosen[start:stop] = [True] * (stop - start)

    def places(self, selected: Mapping[Path, Any]) -> list[Path]:
        """Return the paths of the modules among what is selected, and of what has arrays."""
        return [
            path for path, value in selected.items() if isinstance(value, Node) or len(range(*self._spans.get(path, (0, 0))))
        ]

    def _numbers(self, path: Path) -> Iterable[int]:
        """Yield the number of each array at and below a path that counts, one at several places once."""
        inside = range(*self._spans.get(path, (0, 0)))
        return {id(self._leaves[number]): number for number in reversed(inside) if self._chosen[number]}.values()

    def of(self, path: Path) -> tuple[int, int, int, int]:
        """Return how many numbers there are of parameters, of trained ones and of buffers, and how many bytes of all."""
        parameters = trained = buffers = nbytes = 0
        for leaf, kind in self._found(path):
            parameters += leaf.size * kind.parameter
            trained += leaf.size * kind.trained
            buffers += leaf.size * (not kind.parameter)
            nbytes += leaf.nbytes
        return parameters, trained, buffers, nbytes

    def frozen(self) -> int:
        """Return how many numbers there are of parameters that are frozen at each of their places."""
        return sum(leaf.size for leaf, kind in self._found(()) if kind.parameter and not kind.unfrozen)

    def _found(self, path: Path) -> Iterator[tuple[Any, _Kind]]:
        for number in self._numbers(path):
            leaf = self._leaves[number]
            yield leaf, self._kinds[id(leaf)]

    def parts(self, part_of: Callable[[Path, Any], str]) -> Mapping[str, SummaryPart]:
        """Return the size of the arrays of each part, the largest first, for a function of the path and the array."""
        parts: dict[str, SummaryPart] = {}
        paths = self._structure.leaf_paths()
        for number in self._numbers(()):
            leaf = self._leaves[number]
            part = part_of(paths[number], leaf)
            numbers, nbytes = parts.get(part, (0, 0))
            parts[part] = SummaryPart(numbers + leaf.size, nbytes + leaf.nbytes)
        return MappingProxyType(dict(sorted(parts.items(), key=lambda part: (-part[1].nbytes, part[0]))))

    def packed(self, modules: Iterable[Any]) -> tuple[int, int]:
        """Return how many numbers are packed weights of quantized layers, and how many weights these are."""
        chosen = {id(self._leaves[number]) for number in self._numbers(())}
        layers = [(getattr(each, "bits", None), getattr(each, "weight", None)) for each in modules]
        weights = {
            id(weight): (weight.size, weight.size * 32 // bits)
            for bits, weight in layers
            if type(bits) is int and isinstance(weight, LEAF) and weight.dtype == mx.uint32 and id(weight) in chosen
        }
        return sum(size for size, _ in weights.values()), sum(size for _, size in weights.values())


def _last_name(path: Path) -> str:
    return next((str(entry) for entry in reversed(path) if not isinstance(entry, int)), "")
