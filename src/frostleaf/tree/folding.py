"""Paths that differ in indices only, written as one: ``layers.(0-11).weight``."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from ..core.words import listed

# So many places that are alike are shown once.
FOLDED = 3

# The names in one path or more: several at once where there are indices.
_Names = tuple[tuple[str, ...], ...]


class Places(NamedTuple):
    """Places that are alike: their paths as one, and their numbers in what was folded."""

    path: str
    numbers: list[int]


def fold(paths: Sequence[str], kinds: Sequence[Hashable]) -> list[Places]:
    """Put places of one kind together where three or more of their dotted paths differ in an index only.

    They are in the order of the first of each.

    >>> fold(["a.0.w", "a.0.b", "a.1.w", "a.2.w", "a.3.w"], ["f32", "f32", "f32", "f32", "f16"])
    [Places(path='a.(0-2).w', numbers=[0, 2, 3]), Places(path='a.0.b', numbers=[1]), Places(path='a.3.w', numbers=[4])]
    """
    alike: dict[Hashable, list[int]] = {}
    for number, (path, kind) in enumerate(zip(paths, kinds, strict=True)):
        alike.setdefault((_pattern(path), kind), []).append(number)
    found = itertools.chain.from_iterable(_folded(paths, numbers) for numbers in alike.values())
    return sorted(found, key=lambda places: places.numbers[0])


def _pattern(path: str) -> tuple[str, ...]:
    """Return the names in a path, with a star in the place of each index."""
    return tuple(["*" if name.isdecimal() else name for name in path.split(".")])


def _folded(paths: Sequence[str], numbers: Sequence[int]) -> list[Places]:
    """Fold paths of one pattern."""
    rows: dict[_Names, list[int]] = {}
    for number in numbers:  # two may have one path, where a dict has the keys 1 and "1"
        rows.setdefault(tuple([(name,) for name in paths[number].split(".")]), []).append(number)
    indices = [position for position, name in enumerate(_pattern(paths[numbers[0]])) if name == "*"]
    for position in reversed(indices):
        rows = _folded_at(position, rows)
    return [Places(".".join([_ranges(each) for each in names]), inside) for names, inside in rows.items()]


def _folded_at(position: int, rows: dict[_Names, list[int]]) -> dict[_Names, list[int]]:
    """Put rows together that differ in the index at a position only."""
    alike: dict[_Names, list[_Names]] = {}
    for names in rows:
        alike.setdefault((*names[:position], (), *names[position + 1 :]), []).append(names)
    new: dict[_Names, list[int]] = {}
    for each in alike.values():
        if len(each) < FOLDED:
            new.update({names: rows[names] for names in each})
        else:
            at = tuple(itertools.chain.from_iterable([names[position] for names in each]))
            whole = (*each[0][:position], at, *each[0][position + 1 :])
            new[whole] = [number for names in each for number in rows[names]]
    return new


def _ranges(names: tuple[str, ...]) -> str:
    """Return a name, or indices as ranges: ``"(0-3, 7)"``."""
    if len(names) == 1:
        return names[0]
    numbers = sorted(map(int, names))
    runs = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in ([*run] for _, run in runs)]
    return f"({listed(str(first) if first == last else f'{first}-{last}' for first, last in ends)})"
