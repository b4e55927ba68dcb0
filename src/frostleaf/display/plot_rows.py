"""What the rows of a picture are: the floating-point arrays of a tree, gathered by module so that they are few."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx

from ..core.definition import Node
from ..core.instance import field_values
from ..core.shapes import require_no_shapes
from ..core.words import Path, describe, dtype_name, keystr
from ..edits.freezing import trainable
from ..tree.functions import flatten
from ..tree.selecting import Where, mask, require_arrays
from ..tree.walk import Descend, rewrite

_LONGEST = 60
_QUANTIZED = {"weight", "scales", "group_size", "bits"}


class Numbers(NamedTuple):
    """The numbers of one array, how many they are, whether they are trained, and how they are stored."""

    make: Callable[[], mx.array]
    size: int
    trained: bool
    stored: str

    @property
    def values(self) -> mx.array:
        """Return the numbers as a vector in float32, made anew each time: what is not kept takes no memory."""
        return self.make()


def numbers_in(function: str, tree: Any, where: Where | None = None) -> dict[str, Numbers]:
    """Return the numbers of the floating-point and complex arrays of a tree, by path. Nothing is evaluated.

    Complex numbers are two numbers each. A quantized weight has the numbers that it stands for, and its scales and biases are
    left out. Arrays without numbers are left out as well.

    Args:
        function: The name of the public function, for messages.
        tree: Any tree of arrays.
        where: Which arrays. Default: all.

    Raises:
        TypeError: If an array is only a shape.
        ValueError: If no such array is left.
    """
    leaves, structure = flatten(tree)
    require_no_shapes(function, leaves)
    if where is not None:
        require_arrays(tree, where)
    chosen = itertools.repeat(True) if where is None else mask(tree, where)
    packed = _quantized_in(tree)
    found = {}
    for name, leaf, trained, picked in zip(structure.leaf_names(), leaves, trainable(tree), chosen, strict=False):
        holder, _, entry = name.rpartition(".")
        stored = dtype_name(leaf.dtype)
        source: mx.array | Mapping[str, Any] = leaf
        if holder in packed and entry in ("weight", "scales", "biases"):
            source, picked = packed[holder], picked and entry == "weight"
            leaf = _dequantized(packed[holder])  # for its dtype and size
            stored = f"{packed[holder]['bits']} bits"
        if picked and mx.issubdtype(leaf.dtype, mx.inexact) and leaf.size:
            found[name] = Numbers(partial(_real, source), leaf.size * (1 + (leaf.dtype == mx.complex64)), trained, stored)
    if not found:
        selected = "" if where is None else f" that {describe(where)} selects"
        raise ValueError(f"{function} draws floating-point arrays, and {describe(tree)} has none{selected}")
    return found


def _quantized_in(tree: Any) -> dict[str, Mapping[str, Any]]:
    """Return the fields of each module that holds a weight as MLX's codes and scales, by the module's path."""
    found: dict[str, Mapping[str, Any]] = {}

    def enter(path: Path, value: Any) -> Any:
        fields = field_values(value) if isinstance(value, Node) else {}
        if fields.keys() >= _QUANTIZED and getattr(fields["weight"], "dtype", None) == mx.uint32:
            found[keystr(path)] = fields
        return Descend

    rewrite(tree, enter)
    return found


def _real(source: mx.array | Mapping[str, Any]) -> mx.array:
    """Return the numbers of an array, or of the fields of a module with a quantized weight, as a vector in float32."""
    array = source if isinstance(source, mx.array) else _dequantized(source)
    is_complex = mx.issubdtype(array.dtype, mx.complexfloating)
    return (array.view(mx.float32) if is_complex else array.astype(mx.float32)).reshape(-1)


def _dequantized(fields: Mapping[str, Any]) -> mx.array:
    options = {name: fields[name] for name in ("group_size", "bits", "mode") if name in fields}
    return mx.dequantize(fields["weight"], fields["scales"], fields.get("biases"), **options)


def gathered(names: Sequence[str], most: int) -> dict[str, list[str]]:
    """Gather paths into at most ``most`` rows: each by itself if there are so few, else by the deepest module that will do.

    What has an index there is gathered by some of these rather than as a whole. If there are more names at the root, the last
    row is all of the rest.

    >>> gathered(["a.0.w", "a.0.b", "a.1.w", "c"], 3)
    {'a.0': ['a.0.w', 'a.0.b'], 'a.1': ['a.1.w'], 'c': ['c']}
    >>> gathered(["a.0.w", "a.1.w", "a.2.w", "c"], 3)
    {'a.(0-1)': ['a.0.w', 'a.1.w'], 'a.2': ['a.2.w'], 'c': ['c']}
    >>> gathered(["a", "b", "c"], 2)
    {'a': ['a'], '2 more': ['b', 'c']}
    """
    depth = max(name.count(".") for name in names) + 1
    while depth and len(_at_depth(names, depth)) > most:
        depth -= 1
    finer = _at_depth(names, depth + 1)
    inside: dict[str, list[str]] = {}
    for row, members in finer.items():
        inside.setdefault(_cut(members[0], depth), []).append(row)
    if depth or _are_indexed(finer):
        return next(rows for length in itertools.count(1) if len(rows := _in_runs(inside, finer, length)) <= most)
    first = dict(itertools.islice(finer.items(), most - 1))
    rest = [*itertools.islice(finer.values(), most - 1, None)]
    return {**first, f"{len(rest):,} more": [*itertools.chain.from_iterable(rest)]}


def _at_depth(names: Iterable[str], depth: int) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for name in names:
        rows.setdefault(_cut(name, depth), []).append(name)
    return rows


def _cut(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])


def _are_indexed(rows: Iterable[str]) -> bool:
    return all(_last(row).isdecimal() for row in rows)


def _last(row: str) -> str:
    return row.rpartition(".")[2]


def _in_runs(inside: Mapping[str, Sequence[str]], finer: Mapping[str, list[str]], length: int) -> dict[str, list[str]]:
    """Return a row for each module; of one in which all names are indices, one for each ``length`` of these."""
    rows = {}
    for module, several in inside.items():
        size = length if _are_indexed(several) else len(several)
        for start in range(0, len(several), size):
            run = several[start : start + size]
            name = module if len(run) == len(several) else run[0]
            if 1 < len(run) < len(several):
                name = f"{module}.({_last(run[0])}-{_last(run[-1])})".lstrip(".")
            rows[name] = [member for row in run for member in finer[row]]
    return rows


def require_rows(rows: Any) -> None:
    """Raise where a number of rows is no whole number above zero."""
    if isinstance(rows, bool) or not isinstance(rows, int):
        raise TypeError(f"rows is a whole number, and was given as {describe(rows)}")
    if rows < 1:
        raise ValueError(f"rows is how many rows there may be, at least 1, and was given as {rows}")


def shown(names: Iterable[str]) -> list[str]:
    """Return names as a picture shows them: the end of a long one, and the root by a word.

    >>> shown(["", "layers.0"])
    ['(root)', 'layers.0']
    """
    return [f"…{name[1 - _LONGEST :]}" if len(name) > _LONGEST else name or "(root)" for name in names]
