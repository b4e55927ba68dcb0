"""What ``fl.summary`` returns: rows and totals, and how they are printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import attrs

from ..core.shown import Shown
from ..core.words import describe, in_a_line, listed
from ..tree.folding import fold
from .table import Column, in_bytes, table, terminal_width

_LINES = 100
# There is room for so much of a path before another column is left out.
_PATH = 40


class SummaryRow(NamedTuple):
    """A module in a :class:`Summary`.

    What is in the modules inside it counts as well, and an array at several places once.

    Attributes:
        path: Its dotted path; empty for the whole tree.
        kind: The name of its class.
        outputs: What it returned, a shape for each array: once if all calls returned the same.
        calls: How often it was called; ``None`` if nothing was, or if a copy of it with other arrays was.
        parameters: How many numbers its parameters have.
        trainable: How many of these are trained.
        buffers: How many numbers its buffers have, which are never trained.
        nbytes: How many bytes all its arrays take.

    >>> import frostleaf as fl
    >>> fl.summary(fl.nn.Linear(2, 3), fl.ShapeDtypeStruct((4, 2))).rows[0]
    SummaryRow(path='', kind='Linear', outputs=(f32[4,3],), calls=1, parameters=9, trainable=9, buffers=0, nbytes=36)
    """

    path: str
    kind: str
    outputs: tuple[Any, ...]
    calls: int | None
    parameters: int
    trainable: int
    buffers: int
    nbytes: int

    @property
    def output(self) -> str:
        """Return the outputs in short, such as ``"f32[4,3]"``, ``"f32[4,3], f32[4] ×2"`` or ``"not called"``."""
        if not self.calls:
            return "" if self.calls is None else "not called"
        return (", ".join(map(describe, self.outputs)) or "no array") + f" ×{self.calls}" * (self.calls > 1)


class SummaryPart(NamedTuple):
    """How many numbers some arrays of a :class:`Summary` have, and how many bytes they take.

    >>> import frostleaf as fl
    >>> fl.summary(fl.nn.Linear(2, 3)).dtypes["float32"].nbytes
    36
    """

    numbers: int
    nbytes: int


def _read_only(items: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(items))


@attrs.frozen(repr=False)
class Summary(Shown):
    """A model as a table. :func:`summary` makes it.

    Printed, it is as wide as the terminal at most, and shows rows that are alike but for their indices once. Equal to another
    if all of it is.

    Attributes:
        rows: A :class:`SummaryRow` for the tree and for each module in it.
        parameters: How many numbers the parameters have.
        trainable: How many of these are trained, at one place at least.
        frozen: How many are frozen. The rest are not trained because of their dtype.
        buffers: How many numbers the buffers have.
        nbytes: How many bytes all arrays take.
        dtypes: The same by the name of the dtype, a :class:`SummaryPart` each.
        names: The same by the last name in the path of an array: ``"weight"``, or ``"m"`` and ``"v"`` of an optimizer's state.
        ties: For each tied place its source.
        packed: How many numbers in these are packed weights of quantized layers.
        unpacked: How many weights these are.

    >>> import frostleaf as fl
    >>> found = fl.summary(fl.nn.Linear(2, 3).freeze(keys="bias"))
    >>> found.parameters, found.trainable, found.frozen, found.dtypes["float32"], found.names["bias"].nbytes
    (9, 6, 3, SummaryPart(numbers=9, nbytes=36), 12)
    """

    rows: tuple[SummaryRow, ...]
    parameters: int
    trainable: int
    frozen: int
    buffers: int
    nbytes: int
    dtypes: Mapping[str, SummaryPart] = attrs.field(converter=_read_only)
    names: Mapping[str, SummaryPart] = attrs.field(converter=_read_only)
    ties: Mapping[str, str] = attrs.field(converter=_read_only)
    packed: int = 0
    unpacked: int = 0

    def __hash__(self) -> int:
        return hash((tuple([(row.path, row.kind) for row in self.rows]), self.parameters, self.nbytes))

    def __reduce__(self) -> tuple[type[Summary], tuple[Any, ...]]:
        values = [getattr(self, field.name) for field in attrs.fields(Summary)]
        return Summary, tuple([dict(value) if isinstance(value, MappingProxyType) else value for value in values])

    def __repr__(self) -> str:
        return _text(self, terminal_width())


def _text(summary: Summary, width: int) -> str:
    shown = [(row.kind, row.output, row.parameters, row.trainable, row.buffers, row.nbytes) for row in summary.rows]
    folded = fold([row.path for row in summary.rows], shown)
    folded, more = folded[:_LINES], len(folded) - _LINES
    rows = [summary.rows[numbers[0]] for _, numbers in folded]
    kinds = [
        f"{len(places)} × {row.kind}" if len(places) > 1 else row.kind for row, (_, places) in zip(rows, folded, strict=True)
    ]
    all_trained = all(row.trainable == row.parameters for row in rows)
    columns = [
        Column(["path", *_indented([path for path, _ in folded])], True, 0, _PATH),
        Column(["module", *kinds], True, 3),
        Column(["output", *[row.output for row in rows]], True, 2),
        Column(["parameters", *[f"{row.parameters:,}" for row in rows]], False, 0),
        Column(["trainable", *[f"{row.trainable:,}" for row in rows]], False, 1, is_redundant=all_trained),
        Column(["bytes", *[in_bytes(row.nbytes) for row in rows]], False, 0),
    ]
    if all(row.calls is None for row in rows):
        del columns[2]
    left = [f"and {more:,} more rows: depth= or where= shows fewer"] if more > 0 else []
    return table(columns, left, [*totals(summary)], width)


def _indented(paths: Sequence[str]) -> list[str]:
    """Return each path from the nearest one before it that leads there, indented as deep as that is."""
    above: list[str] = []
    names = []
    for path in paths:
        while above and above[-1] and not path.startswith(f"{above[-1]}."):
            above.pop()
        inside = path.removeprefix(f"{above[-1]}.") if above and above[-1] else path
        names.append(f"{'  ' * len(above)}{in_a_line(inside) or '(root)'}")
        above.append(path)
    return names


def totals(summary: Summary) -> Iterator[str]:
    """Yield what is said below the table, a line each."""
    others = summary.parameters - summary.trainable - summary.frozen
    kinds = f"{summary.trainable:,} trainable, {summary.frozen:,} frozen" + f", {others:,} of other dtypes" * bool(others)
    parts = [f"{summary.parameters:,} parameters ({kinds})"]
    if summary.buffers:
        parts.append(f"{summary.buffers:,} numbers in buffers")
    yield f"{', '.join(parts)}, {in_bytes(summary.nbytes)}"
    if summary.packed:
        yield f"quantized: {summary.unpacked:,} weights in {summary.packed:,} of these numbers"
    for title, each in (("dtype", summary.dtypes), ("name", summary.names)):
        if each and [*each] != [""]:
            yield f"by {title}: {listed(f'{in_a_line(name)} {in_bytes(part.nbytes)}' for name, part in each.items())}"
    if summary.ties:
        yield f"tied: {listed(f'{in_a_line(place)} → {in_a_line(source)}' for place, source in summary.ties.items())}"
