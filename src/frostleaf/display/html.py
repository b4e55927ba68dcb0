"""What a notebook shows: trees that can be folded, as HTML that needs nothing else and can be read without style and script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, singledispatch
from typing import Any

import mlx.core as mx

from ..core.definition import Node
from ..core.words import dtype_name, in_a_line, shape_and_dtype
from ..edits.selection import Selection
from ..io.inventory import CheckpointInfos
from ..tree.differences import Diff
from .html_table import checkpoints_page, diff_page, summary_page
from .markup import Markup, element
from .outline import Row, outline, outline_at
from .page import page
from .rows import Summary
from .table import in_bytes

# So many rows are seen at first, more or less, and so many are in a page. From so many on there is a field to search in.
_SEEN = 24
_MOST = 4_000
_SEARCHED = 30


@singledispatch
def show(value: Any) -> Markup | None:
    """Return a value as HTML; ``None`` if there is no way to show it but as text."""
    return None


@show.register
def _(value: Node) -> Markup:
    row = outline(value)
    return tree_page([row], row.sizes.nbytes)


@show.register
def _(value: Selection) -> Markup:  # type: ignore[type-arg]
    paths = value._found.values
    rows = outline_at(value._tree, [*paths][:_MOST])
    title = f"Selection of {len(paths) or 'nothing'} in {type(value._tree).__name__}"
    return tree_page(rows, outline(value._tree).sizes.nbytes, title, more=len(paths) - len(rows))


@show.register
def _(value: Summary) -> Markup:
    return summary_page(value)


@show.register
def _(value: Diff) -> Markup:
    return diff_page(value)


@show.register
def _(value: CheckpointInfos) -> Markup:
    return checkpoints_page(value)


def tree_page(rows: Sequence[Row], whole: int, title: str = "", more: int = 0) -> Markup:
    """Return a page with some rows at the top.

    Args:
        rows: The rows.
        whole: The bytes that a full bar stands for.
        title: Stands above them, if given.
        more: How many rows were left out.
    """
    shown = _Tree(whole, _main_dtype(rows), _opened(rows), {id(row) for row in rows} if not title else set())
    tree = element("ul", *[shown.row(row) for row in rows], shown.left_out(more))
    bar = None
    if _count(rows) > _SEARCHED:
        search = element("input", type="search", placeholder="search paths, classes, dtypes", aria_label="search")
        bar = element("div", search, _button("open all"), _button("close all"), class_="bar", hidden=True)
    return page(bar, tree, title=title)


class _Tree:
    """The rows of a page, as many as fit.

    Args:
        whole: The bytes that a full bar stands for.
        dtype: What most arrays have. A module of that alone does not say so.
        opened: The ``id`` of each row that is open at first.
        roots: The ``id`` of each row that has no name.
    """

    def __init__(self, whole: int, dtype: mx.Dtype | None, opened: set[int], roots: set[int]) -> None:
        self._whole = whole
        self._dtype = dtype
        self._opened = opened
        self._roots = roots
        self._left = _MOST

    def row(self, row: Row) -> Markup:
        """Return a row with what it holds."""
        self._left -= 1
        run = None
        if row.times > 1:
            first, last = row.name.split("-")
            nbytes = _nbytes_of_one(row)
            run = "|".join([first, last, row.shown, in_bytes(nbytes), self._width(nbytes)])
        if not row.rows:
            return element("li", self._line("div", row), data_run=run)
        line = self._line("summary", row)
        inside = []
        for number, each in enumerate(row.rows):
            if self._left <= 0:
                inside.append(self.left_out(len(row.rows) - number))
                break
            inside.append(self.row(each))
        details = element("details", line, element("ul", *inside), open=id(row) in self._opened)
        return element("li", details, data_run=run)

    def left_out(self, number: int) -> Markup | None:
        """Return a row that says how many others are not shown."""
        return element("li", element("small", f"and {number:,} more")) if number else None

    def _line(self, tag: str, row: Row) -> Markup:
        is_root = id(row) in self._roots
        kinds = sorted(row.dtypes, key=str) if row.is_array or is_root or row.dtypes - {self._dtype} else ()
        dtypes = [each for dtype in kinds for each in (_SPACE, _dtype(dtype))]
        shown = element("code", f"{row.times:,} × {row.shown}" if row.times > 1 else row.shown)
        if is_root:
            parts = [element("b", row.shown, class_="root"), *dtypes]
        elif row.is_array:
            parts = [element("b", in_a_line(row.name)), *dtypes, _SPACE, shown]
        else:
            parts = [element("b", in_a_line(row.name)), _SPACE, shown, *dtypes]
        for mark in row.marks:
            parts += [_SPACE, element("i", f"❄ {mark}" if "frozen" in mark else in_a_line(mark), class_=_MARKS.get(mark, "m"))]
        if is_root:
            parts += [_SPACE, element("small", _totals(row))]
        if hint := _hint(row):
            parts += [_SPACE, element("small", hint, class_="h")]
        if row.note:
            parts += [_SPACE, element("small", row.note)]
        nbytes = row.sizes.nbytes
        amount = element("em", in_bytes(nbytes), style=f"--w:{self._width(nbytes)}") if nbytes else None
        title = f"{row.sizes.numbers:,} numbers" if row.rows and row.sizes.numbers else None
        return element(tag, element("span", *parts), _SPACE, amount, class_="r", title=title)

    def _width(self, nbytes: int) -> str:
        return f"{100 * nbytes / max(self._whole, 1):.3g}%"


_SPACE = Markup(" ")
_MARKS = {"frozen": "z", "partly frozen": "z", "buffer": "b"}


@cache
def _dtype(dtype: mx.Dtype) -> Markup:
    name = dtype_name(dtype)
    kind = "f" if name == "float32" else "g" if mx.issubdtype(dtype, mx.floating) else "n"
    return element("i", shape_and_dtype((), dtype).removesuffix("[]"), class_=kind, title=name)


def _hint(row: Row) -> str:
    """Return the shapes of the arrays in a small row, which stand beside its name while it is closed."""
    if not 0 < len(row.rows) <= 4 or not all(each.is_array for each in row.rows):
        return ""
    return ", ".join([f"{in_a_line(each.name)}{each.shown}{_hinted_mark(each, row)}" for each in row.rows])


def _hinted_mark(row: Row, around: Row) -> str:
    tie = next((f" {in_a_line(mark)}" for mark in row.marks if mark[0] == "→"), "")
    return tie or " ❄" * ("frozen" in row.marks and "frozen" not in around.marks)


def _main_dtype(rows: Iterable[Row]) -> mx.Dtype | None:
    """Return the dtype of most bytes."""
    counts: Counter[mx.Dtype] = Counter()
    waiting = [*rows]
    for row in waiting:
        if row.is_array:
            counts[next(iter(row.dtypes))] += row.sizes.nbytes
        waiting += row.rows
    return counts.most_common(1)[0][0] if counts else None


def _totals(row: Row) -> str:
    numbers, _, parameters, _, trained = row.sizes
    kinds = [f"{numbers:,} numbers"] if numbers else []
    if parameters not in (0, numbers):
        kinds.append(f"{parameters:,} parameters")
    if parameters and trained != parameters:
        kinds.append(f"{trained:,} trainable")
    return " · ".join(kinds)


def _opened(rows: Sequence[Row]) -> set[int]:
    """Return the ``id`` of each row that is open at first: from the outside in, as long as not too many are seen."""
    opened: set[int] = set()
    seen, waiting = len(rows), [*rows]
    for row in waiting:
        opens = [*rows] == [row] or (row.times == 1 and not _hint(row) and seen + len(row.rows) <= _SEEN)
        if row.rows and opens:
            opened.add(id(row))
            seen += len(row.rows)
            waiting += row.rows
    return opened


def _nbytes_of_one(row: Row) -> int:
    """Return the bytes of the first of the modules that a row stands for."""
    inside = {number: sizes.nbytes for each in row.rows for number, sizes in each.arrays.items()}
    return sum(inside.values())


def _count(rows: Iterable[Row]) -> int:
    return sum(1 + _count(row.rows) for row in rows)


def _button(text: str) -> Markup:
    return element("button", text, type="button")
