"""How arrays are computed from others: which are copies, and which go on from what was there before."""

from __future__ import annotations

import re
from collections.abc import Sequence

import mlx.core as mx

from ..transforms.jit.passing import MOST_NAMES, graph_of

_SOURCE = re.compile(r'rank=source; "(\w+)"')
# Names of operations may have spaces and more: "Scatter Sum".
_LABEL = re.compile(r'(\d+) \[label ="([^"]*)"')
_TAKEN = re.compile(r'"(\w+)" -> (\d+)')
_MADE = re.compile(r'(\d+) -> "(\w+)"')
# These give out what they are given.
_PASSING = {"Copy", "Depends", "StopGradient"}
# These bring something new to a value that is not among what they are given.
_ADDING = re.compile("Add|Subtract|RandomBits|(Scatter|ScatterAxis|SliceUpdate) Sum")
# So do these, unless that is a constant: a bound, a row that is kept at zero, one more block of a table.
_JOINING = {"Concatenate", "Maximum", "Minimum", "Scatter", "ScatterAxis", "Select", "SliceUpdate"}


class Graph:
    """The graph of some arrays.

    Args:
        arrays: The arrays.
        names: What some in the graph are called, at most 1,000.

    Attributes:
        computed: The names of what is computed from nothing.
    """

    def __init__(self, arrays: Sequence[mx.array], names: dict[str, mx.array]) -> None:
        text = graph_of(arrays, **names)
        given: dict[str, list[str]] = {}
        for array, operation in _TAKEN.findall(text):
            given.setdefault(operation, []).append(array)
        labels = dict(_LABEL.findall(text))
        self.computed = {*_SOURCE.findall(text)}
        self._made = {array: (labels.get(each, ""), given.get(each, [])) for each, array in _MADE.findall(text)}

    def has(self, name: str) -> bool:
        """Return whether an array has this name: one that has several is called by the last."""
        return name in self.computed or name in self._made

    def is_copy(self, new: str, old: str) -> bool:
        """Return whether an array is another that is only passed on."""
        sources = [new]
        for each in sources:
            operation, given = self._made.get(each, ("", []))
            sources += [source for source in given if operation in _PASSING and source not in sources]
        return old in sources

    def goes_on(self, new: str, old: str, given: set[str]) -> bool:
        """Return whether an array is a next value of another, to which something is added that is not computed from it.

        Not so if the other is only cast, cut, bounded, masked or divided by what is computed from it.

        Args:
            new: The array.
            old: The other.
            given: What is not constant.
        """
        from_old, from_given = self._from({old}), self._from(given)
        waiting = [new]
        for each in waiting:
            operation, operands = self._made.get(each, ("", []))
            if each == old or each not in from_old or not operands:
                continue
            others = [operand for operand in operands if operand not in from_old]
            if operation == "RandomBits" or (others and _ADDING.search(operation)):
                return True
            if operation.partition(" ")[0] in _JOINING and any(operand in from_given for operand in others):
                return True
            # What an array is divided by, such as its norm, says how much of it there is.
            kept = operands[:1] if operation == "Divide" and operands[0] in from_old else operands
            waiting += [operand for operand in kept if operand in from_old and operand not in waiting]
        return False

    def is_from(self, new: str, given: set[str]) -> bool:
        """Return whether an array is one of those given, or computed from one."""
        return new in self._from(given)

    def _from(self, given: set[str]) -> set[str]:
        """Return what is computed from some, and these."""
        after: dict[str, list[str]] = {}
        for array, (_, operands) in self._made.items():
            for operand in operands:
                after.setdefault(operand, []).append(array)
        found = [*given]
        seen = set(given)
        for each in found:
            new = [array for array in after.get(each, ()) if array not in seen]
            seen.update(new)
            found += new
        return seen


def goes_on(old: mx.array, new: mx.array, given: Sequence[mx.array]) -> bool:
    """Return whether an array is a next value of another: see :meth:`Graph.goes_on`.

    Args:
        old: What was there.
        new: What is there.
        given: The arrays that the call was given.
    """
    inputs = {f"given_{index}": each for index, each in enumerate(given[: MOST_NAMES - 2])}
    return Graph([new], {**inputs, "old": old, "new": new}).goes_on("new", "old", {*inputs})


def is_from(array: mx.array, given: Sequence[mx.array]) -> bool:
    """Return whether an array is one of those that a call was given, or computed from one."""
    inputs = {f"given_{index}": each for index, each in enumerate(given[: MOST_NAMES - 1])}
    return any(each is array for each in given) or Graph([array], {"new": array, **inputs}).is_from("new", {*inputs})
