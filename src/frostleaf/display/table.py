"""Tables as text that is no wider than it may be."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from .text import WIDTH

_GAP = "  "
_NARROWEST = 8
_CUT = "…"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


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


def table(cells: Sequence[Sequence[str]], texts: int, more: Sequence[str], about: Sequence[str], width: int) -> str:
    """Lay out a table.

    Args:
        cells: A header, and then rows.
        texts: The number of columns of text, which come first and may be cut; the others are numbers.
        more: Lines to be put below the rows.
        about: What is said below the table.
        width: How long a line may be. Where the numbers alone are longer, lines are cut.
    """
    lines = _aligned(cells, texts, width)
    rule = "─" * max(map(len, lines))
    said = [each for line in about for each in textwrap.wrap(line, max(width, _NARROWEST), subsequent_indent="  ")]
    return "\n".join([lines[0], rule, *lines[1:], *[_cut(line, width) for line in more], rule, *said])


def _aligned(cells: Sequence[Sequence[str]], texts: int, width: int) -> list[str]:
    """Return the rows of a table as lines, with the longest texts cut until they are short enough."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width and max(widths[:texts]) > _NARROWEST:
        widths[widths.index(max(widths[:texts]))] -= 1
    return [_cut(_GAP.join(_padded(row, texts, widths)), width) for row in cells]


def _padded(row: Sequence[str], texts: int, widths: Sequence[int]) -> list[str]:
    cut = [_cut(cell, length).ljust(length) for cell, length in zip(row[:texts], widths, strict=False)]
    return [*cut, *[cell.rjust(length) for cell, length in zip(row[texts:], widths[texts:], strict=True)]]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}{_CUT}"
