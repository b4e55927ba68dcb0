"""The differences between two trees, as a value that can be gone through and that prints what changed alike once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from ..core.shapes import LEAF
from ..core.shown import Shown
from ..core.words import describe, in_a_line, listed, shape_and_dtype
from .folding import fold

Kind = Literal[
    "class", "mode", "frozen", "ties", "shards", "static", "dtype", "shape", "value", "removed", "added", "type", "order"
]  # fmt: skip

_LINES = 100


class Change(NamedTuple):
    """One difference between two trees.

    Attributes:
        path: Where it is, as a dotted path.
        kind: What differs: ``"dtype"``, ``"shape"``, ``"value"``, ``"static"``, ``"mode"``, ``"frozen"``, ``"ties"``,
            ``"shards"``, ``"class"``, ``"type"``, ``"order"``, or that there is something in one tree only: ``"removed"``,
            ``"added"``.
        before, after: What each tree has there.
        norm: The Euclidean norm of ``after - before``, where it was asked for, of arrays of one shape. Otherwise ``None``.
        relative: The same divided by the norm of ``before``; ``inf`` where that is 0.

    >>> import frostleaf as fl
    >>> fl.tree.diff([1, 2], [1, 3])[0]
    Change(path='1', kind='static', before=2, after=3)
    """

    path: str
    kind: Kind
    before: Any
    after: Any
    norm: float | None = None
    relative: float | None = None

    def __repr__(self) -> str:
        norms = "" if self.norm is None else f", norm={self.norm!r}, relative={self.relative!r}"
        before, after = describe(self.before), describe(self.after)
        return f"Change(path={self.path!r}, kind={self.kind!r}, before={before}, after={after}{norms})"

    def __str__(self) -> str:
        return str(_row(self.path, [self]))


class ChangeRow(NamedTuple):
    """What changed alike at one place or more, in words: a line of what a :class:`Diff` prints.

    Attributes:
        path: The paths, with the indices in brackets where there are several: ``"layers.(0-11).weight"``.
        kind: As in :class:`Change`.
        before, after: What the trees have there, in short: ``"f32[2,3]"``, or ``"f32[...]"`` for arrays of several shapes.
        places: How many there are.
        norm, relative: As in :class:`Change`, the largest of all places.

    >>> import frostleaf as fl
    >>> fl.tree.diff([1, 1, 1], [2, 2, 2]).rows
    (ChangeRow(path='(0-2)', kind='static', before='1', after='2', places=3, norm=None, relative=None),)
    """

    path: str
    kind: Kind
    before: str
    after: str
    places: int
    norm: float | None
    relative: float | None

    @property
    def by(self) -> str:
        """The norm in short, ``"up to 0.12 (0.25%)"``; empty if there is none."""
        norm = "" if self.norm is None else f"{'up to ' * (self.places > 1)}{self.norm:.3g}"
        if self.relative is not None and math.isfinite(self.relative):
            norm += f" ({_share(self.relative)})"
        return norm

    def __str__(self) -> str:
        return (
            f"{in_a_line(self.path) or '(root)'}: {self.kind} {self.before} -> {self.after}{', by ' * bool(self.by)}{self.by}"
        )


def _share(share: float) -> str:
    return f"{share:.1e}" if 0 < share < 1e-4 else f"{share:.2%}"


class Diff(tuple[Change, ...], Shown):
    """The differences between two trees: a tuple of :class:`Change`. Empty, and so false, if there are none.

    What changed alike in three places or more whose paths differ in an index is printed once, at most a hundred lines in all.
    ``rows`` has those lines as records.

    >>> import frostleaf as fl, mlx.core as mx
    >>> model = fl.nn.Sequential(*[fl.nn.Linear(2, 2) for _ in range(4)])
    >>> changes = fl.tree.diff(model, model.astype(mx.float16).at("layers.3").freeze())
    >>> changes
    layers.(0-3).weight: dtype f32[2,2] -> f16[2,2]
    layers.(0-3).bias: dtype f32[2] -> f16[2]
    layers.3: frozen {} -> {bias, weight}
    >>> len(changes), {change.path for change in changes if change.kind == "frozen"}, changes.rows[1].places
    (9, {'layers.3'}, 4)
    >>> fl.tree.diff(model, model)
    no difference
    """

    @property
    def rows(self) -> tuple[ChangeRow, ...]:
        """What is printed, as one :class:`ChangeRow` a line, without an end at a hundred."""
        alike = fold([change.path for change in self], [(change.kind, _shown(change, whole=False)) for change in self])
        return tuple([_row(path, [self[number] for number in numbers]) for path, numbers in alike])

    def __repr__(self) -> str:
        return listed(map(str, self.rows), _LINES, "\n") if self else "no difference"


def _row(path: str, places: Sequence[Change]) -> ChangeRow:
    shown = {_shown(change) for change in places}
    before, after = shown.pop() if len(shown) == 1 else _shown(places[0], whole=False)
    another = "another " * (before == after and places[0].kind != "value")
    norm, relative = (
        max(numbers, key=lambda number: (math.isnan(number), number), default=None)
        for numbers in (_given(change.norm for change in places), _given(change.relative for change in places))
    )
    return ChangeRow(path, places[0].kind, before, f"{another}{after}", len(places), norm, relative)


def _given(numbers: Iterable[float | None]) -> list[float]:
    return [number for number in numbers if number is not None]


def _shown(change: Change, whole: bool = True) -> tuple[str, str]:
    """Return in short what each tree has; with ``whole=False`` without what need not be alike, the shapes of arrays."""
    before, after = change.before, change.after
    if not whole and change.kind in ("dtype", "value") and isinstance(before, LEAF) and isinstance(after, LEAF):
        return _any_shape(before), _any_shape(after)
    if change.kind in ("frozen", "ties", "shards"):
        return _names(before), _names(after)
    if change.kind == "class" and before.__name__ == after.__name__ and before.__module__ != after.__module__:
        return _with_module(before), _with_module(after)
    return describe(before), describe(after)


def _with_module(kind: type) -> str:
    return in_a_line(f"{kind.__module__}.{kind.__name__}")


def _names(names: Iterable[str]) -> str:
    return f"{{{listed(map(in_a_line, sorted(names)))}}}"


def _any_shape(array: Any) -> str:
    return shape_and_dtype(["..."], array.dtype)
