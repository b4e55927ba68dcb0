"""Tables as text that is no wider than it may be."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .text import WIDTH

_GAP = "  "
_NARROWEST = 8
_CUT = "…"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        cells: What it is, and what is in its rows.
        is_text: Whether it is aligned on the left, and may be cut.
        leave: When it is left out of a table that is too wide: that of the lowest number first, one of 0 never.
        least: How much of the text there is room for, unless the columns that stay are too wide.
        is_redundant: Whether it is left out before any text is cut.
    """

    cells: Sequence[str]
    is_text: bool
    leave: int
    least: int = _NARROWEST
    is_redundant: bool = False


def terminal_width() -> int:
    """Return the width of the terminal; where there is none, that of the text of a module."""
    return shutil.get_terminal_size((WIDTH, 24)).columns


def in_bytes(count: int) -> str:
    """Return a number of bytes in three digits.

    >>> in_bytes(12), in_bytes(1_234), in_bytes(999_999), in_bytes(45_600_000)
    ('12 B', '1.23 kB', '1 MB', '45.6 MB')
    """
    size, unit = float(count), 0
    while float(f"{size:.3g}") >= 1_000 and unit + 1 < len(_UNITS):
        size, unit = size / 1_000, unit + 1
    return f"{float(f'{size:.3g}'):,g} {_UNITS[unit]}"


def table(columns: Sequence[Column], more: Sequence[str], about: Sequence[str], width: int) -> str:
    """Lay out a table.

    Args:
        columns: The columns.
        more: Lines to be put below the rows.
        about: What is said below the table.
        width: How long a line may be.
    """
    fits = _total(map(_longest, columns)) <= width
    shown = [column for column in columns if fits or not column.is_redundant]
    for column in sorted(shown, key=lambda column: column.leave):
        if column.leave and _total(map(_least, shown)) > width:
            shown.remove(column)
    lines = _aligned(shown, width)
    rule = "─" * max(map(_width, lines))
    said = [each for line in about for each in textwrap.wrap(line, max(width, _NARROWEST), subsequent_indent="  ")]
    return "\n".join([lines[0], rule, *lines[1:], *[_cut(line, width) for line in more], rule, *said])


def _total(widths: Iterable[int]) -> int:
    every = [*widths]
    return sum(every) + len(_GAP) * (len(every) - 1)


def _narrowest(column: Column) -> int:
    return min(_longest(column), _NARROWEST) if column.is_text else _longest(column)


def _least(column: Column) -> int:
    return min(_longest(column), column.least) if column.is_text else _longest(column)


def _longest(column: Column) -> int:
    return max(map(_width, column.cells))


def _width(text: str) -> int:
    """Return how many places of a terminal a text takes: two for a wide character, none for what combines with another."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF") for each in text)


def _aligned(columns: Sequence[Column], width: int) -> list[str]:
    """Return the rows of a table as lines, with the longest texts cut until they are short enough."""
    widths = [*map(_longest, columns)]
    narrowest = [*map(_least, columns)]
    if _total(narrowest) > width:
        narrowest = [*map(_narrowest, columns)]
    while _total(widths) > width and widths != narrowest:
        widths[max(range(len(widths)), key=lambda number: (widths[number] > narrowest[number]) * widths[number])] -= 1
    padded = [
        [_padded(_cut(cell, length), length) if column.is_text else cell.rjust(length) for cell in column.cells]
        for column, length in zip(columns, widths, strict=True)
    ]
    return [_cut(_GAP.join(row), width) for row in zip(*padded, strict=True)]


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text) >= width:
        text = text[:-1]
    return f"{text}{_CUT}"


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
