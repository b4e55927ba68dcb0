"""What is shown of a tree beyond its text: its rows, with what is frozen, tied and switched, and how large it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx

from ..core.definition import Node
from ..core.fields import kind
from ..core.instance import field_values, is_finished, metadata_of
from ..core.levels import one_level, tree_level
from ..core.shapes import LEAF, ShapeDtypeStruct
from ..core.structure import flat_of
from ..core.words import Path, describe, keystr
from .repeats import repeats, told_apart
from .text import DEEPEST, FOLDED

_LONGEST_NOTE = 240


class Sizes(NamedTuple):
    """What the arrays of a row amount to: numbers, bytes, parameters, those of them that are frozen and that are trained."""

    numbers: int = 0
    nbytes: int = 0
    parameters: int = 0
    frozen: int = 0
    trained: int = 0


class Row(NamedTuple):
    """A module, an array, a container or another value.

    Attributes:
        name: The last name, key or index of its path.
        shown: Its class, the shape of an array, or the value in a few words.
        marks: What is special about it: ``"frozen"``, ``"partly frozen"``, ``"buffer"``, ``"eval"``, ``"train"``,
            ``"no values"``, or ``"→"`` and the source of a tied place.
        note: Its static values.
        rows: What it holds.
        sizes: What its arrays amount to.
        dtypes: Those of its arrays.
        is_array: Whether it is an array.
        times: How many equal modules in a row it stands for; ``rows`` are those of the first, ``sizes`` those of all.
        arrays: What each array amounts to, by its ``id``: one at several places counts once.
    """

    name: str
    shown: str
    marks: tuple[str, ...] = ()
    note: str = ""
    rows: tuple[Row, ...] = ()
    sizes: Sizes = Sizes()
    dtypes: frozenset[mx.Dtype] = frozenset()
    is_array: bool = False
    times: int = 1
    arrays: Mapping[int, Sizes] = MappingProxyType({})


class _Around(NamedTuple):
    """What a row knows of what is around it.

    Attributes:
        owner: The innermost module.
        start: The length of the path of that module.
        training: Its mode.
        frozen: Whether it is frozen from outside.
        trains: Whether the arrays in there are parameters.
        tied: The source of each tied place.
    """

    owner: Node | None = None
    start: int = 0
    training: bool = True
    frozen: bool = False
    trains: bool = True
    tied: dict[Path, str] = {}  # noqa: RUF012  # never changed


def outline(tree: Any) -> Row:
    """Return the row of a tree, with everything in it. Nothing is evaluated."""
    return _row("", tree, (), _Around())


def outline_at(tree: Any, paths: Iterable[Path]) -> list[Row]:
    """Return the row of each value that stands at one of some paths of a tree, named by its whole path."""
    return [_row_at(tree, path) for path in paths]


def _row_at(tree: Any, path: Path) -> Row:
    value, around = tree, _Around()
    for length, entry in enumerate(path):
        if isinstance(value, Node):
            around = _inside(value, path[:length], around)
            around = _in_field(value, entry, around)
            value = field_values(value)[entry]
        elif isinstance(value, Mapping) or (isinstance(value, tuple | list) and isinstance(entry, int)):
            value = value[entry]  # without a look at the others, which may be many
        else:
            level = tree_level(value)
            assert level is not None
            value = next(child for name, child in zip(level.entries, level.children, strict=True) if name == entry)
    return _row(keystr(path), value, path, around)


def _row(name: str, value: Any, path: Path, around: _Around) -> Row:
    if path in around.tied:
        marks = (f"→ {around.tied[path]}",)
        if isinstance(value, Node):
            return Row(name, type(value).__name__, marks)
        return _array(name, value, marks, None) if isinstance(value, LEAF) else Row(name, "None")
    if isinstance(value, LEAF):
        frozen = _is_frozen(path, around)
        trained = around.trains and not frozen and mx.issubdtype(value.dtype, mx.floating)
        parameters = value.size * around.trains
        sizes = Sizes(value.size, value.nbytes, parameters, parameters * frozen, value.size * trained)
        return _array(name, value, ("frozen",) * (frozen and around.trains), sizes)
    if isinstance(value, Node) and not is_finished(value):
        return Row(name, f"{type(value).__name__} (being built)")
    if len(path) >= DEEPEST:
        return _cut(name, value)
    if isinstance(value, Node):
        return _module(name, value, path, around)
    level = None if value is None else tree_level(value)
    if level is None:
        return Row(name, describe(value))
    items = [*zip(level.entries, level.children, strict=True)]
    if isinstance(value, tuple | list):
        rows = [*_rows_in_a_row(value, items, path, around)]
    else:
        rows = [_row(str(entry), child, (*path, entry), around) for entry, child in items]
    shown = "dict" if isinstance(value, MappingProxyType) else type(value).__name__
    return _holding(name, shown, (), "", rows)


def _array(name: str, value: Any, marks: tuple[str, ...], sizes: Sizes | None) -> Row:
    shape = f"[{','.join(map(str, value.shape))}]"
    marks = (*marks, "no values") if isinstance(value, ShapeDtypeStruct) else marks
    arrays = {} if sizes is None else {id(value): sizes}
    return Row(name, shape, marks, "", (), sizes or Sizes(), frozenset([value.dtype]), True, arrays=arrays)


def _module(name: str, node: Node, path: Path, around: _Around) -> Row:
    metadata = metadata_of(node)
    inside = _inside(node, path, around)
    shown_fields = getattr(type(node), "_shown_fields", None)
    rows, notes = [], []
    for field, value in dict(shown_fields(node) if shown_fields else field_values(node)).items():
        if field in node.__frostleaf__.children and _is_row(value):
            row = _row(field, value, (*path, field), _in_field(node, field, inside))
            rows.append(_marked(row, "buffer") if kind(node.__frostleaf__.fields[field]) == "buffer" else row)
        else:
            said = describe(dict(value) if isinstance(value, MappingProxyType) else value)
            notes.append(f"{field}={said}" if field.isidentifier() else f"{field}{said}")
    mode = () if metadata.training == around.training else ("train",) if metadata.training else ("eval",)
    note = ", ".join(notes)
    note = note if len(note) <= _LONGEST_NOTE else note[: _LONGEST_NOTE - 3] + "..."
    row = _holding(name, type(node).__name__, mode, note, rows)
    if not row.sizes.frozen:
        return row
    return _marked(row, "frozen" if row.sizes.frozen == row.sizes.parameters else "partly frozen")


def _inside(node: Node, path: Path, around: _Around) -> _Around:
    metadata = metadata_of(node)
    ties = {(*path, *target): keystr(source) for target, source in metadata.ties}
    tied = {**around.tied, **ties} if ties else around.tied
    return _Around(node, len(path), metadata.training, _is_frozen(path, around), around.trains, tied)


def _in_field(node: Node, field: str, around: _Around) -> _Around:
    return around if field in node.__frostleaf__.parameters else around._replace(trains=False)


def _is_frozen(path: Path, around: _Around) -> bool:
    return around.frozen or (around.owner is not None and metadata_of(around.owner).freezes(path[around.start :]))


def _is_row(value: Any) -> bool:
    return isinstance(value, (*LEAF, Node)) or (value is not None and one_level(value) is not None)


def _rows_in_a_row(value: Any, items: list[tuple[Any, Any]], path: Path, around: _Around) -> Iterator[Row]:
    for first, last in repeats(value, told_apart(around.owner, path, around.start, around.tied)):
        count = last - first + 1
        if count >= FOLDED:
            entry, child = items[first]
            row = _row(f"{first}-{last}", child, (*path, entry), around)
            arrays = _of_equal(row.arrays, [child for _, child in items[first : last + 1]])
            yield row._replace(times=count, sizes=_sum(arrays), arrays=arrays)
        else:
            yield from [_row(str(entry), child, (*path, entry), around) for entry, child in items[first : last + 1]]


def _holding(name: str, shown: str, marks: tuple[str, ...], note: str, rows: Iterable[Row]) -> Row:
    rows = tuple(rows)
    arrays = _together([row.arrays for row in rows])
    dtypes = frozenset[mx.Dtype]().union(*[row.dtypes for row in rows])
    return Row(name, shown, marks, note, rows, _sum(arrays), dtypes, arrays=arrays)


def _together(parts: Iterable[Mapping[int, Sizes]]) -> Mapping[int, Sizes]:
    """Return the arrays of some rows. One in several rows is trained if it is in one of them, and frozen if it is in all."""
    arrays: dict[int, Sizes] = {}
    for part in parts:
        for number, sizes in part.items():
            known = arrays.get(number, sizes)
            arrays[number] = Sizes(*map(max, known, sizes))._replace(frozen=min(known.frozen, sizes.frozen))
    return arrays


def _of_equal(first: Mapping[int, Sizes], modules: Sequence[Any]) -> Mapping[int, Sizes]:
    """Return the arrays of equal modules, of which those of the first are known."""
    leaves = [flat_of(module).leaves for module in modules]
    return _together(
        [{id(leaf): first[id(own)] for own, leaf in zip(leaves[0], each, strict=True) if id(own) in first} for each in leaves]
    )


def _sum(arrays: Mapping[int, Sizes]) -> Sizes:
    return Sizes(*map(sum, zip(*arrays.values(), strict=True))) if arrays else Sizes()


def _marked(row: Row, mark: str) -> Row:
    return row._replace(marks=(mark, *row.marks))


def _cut(name: str, value: Any) -> Row:
    """Return a row for what lies too deep to be shown, with its size."""
    arrays: dict[int, Sizes] = {}
    waiting, dtypes = [value], set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, LEAF):
            arrays[id(each)] = Sizes(each.size, each.nbytes)
            dtypes.add(each.dtype)
        elif (level := one_level(each)) is not None:
            waiting += level[1]
    return Row(name, describe(value), sizes=_sum(arrays), dtypes=frozenset(dtypes), arrays=arrays)
