"""Arrays that pass through a traced function untouched, and so come out as the caller's own objects."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from typing import Any, cast

import mlx.core as mx

from ..tree.structure import Group

# The number of a group, and of an array in it: None if the group is an array.
Place = tuple[int, int | None]
# Where an array stands in the result, and where it came from; in the order of the result.
Origins = Sequence[tuple[Place, Place]]


class Inputs:
    """The arrays given to a function while it is traced, as they were when it began."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups  # kept, so that no other array gets the identity of one of these
        self._begun = {id(array): (place, copy.copy(array)) for place, array in _places(groups)}

    def separate(self, outputs: Sequence[Group]) -> tuple[list[Group], Origins]:
        """Return the outputs without the inputs among them, and where these stood; nothing is left of a group that was one."""
        origins = [(place, origin) for place, array in _places(outputs) if (origin := self._origin(array)) is not None]
        passed = {place for place, _ in origins}
        computed: list[Group] = [
            [array for index, array in enumerate(group) if (number, index) not in passed]
            if isinstance(group, list)
            else ([] if (number, None) in passed else group)
            for number, group in enumerate(outputs)
        ]
        return computed, origins

    def _origin(self, output: mx.array) -> Place | None:
        place, begun = self._begun.get(id(output), (None, output))
        # The function may have assigned into its argument: the same object, and another value.
        return place if place is not None and _graph(output, begun) == _graph(begun, begun) else None


def put_back(outputs: list[Group], origins: Origins, inputs: Sequence[Group]) -> None:
    """Put the inputs that passed through to their places in the outputs that :meth:`Inputs.separate` returned."""
    for (number, index), (origin, position) in origins:
        group: Any = inputs[origin]
        array = group if position is None else group[position]
        if index is None:
            outputs[number] = array
        else:
            cast(list[mx.array], outputs[number]).insert(index, array)


def _places(groups: Sequence[Group]) -> Iterator[tuple[Place, mx.array]]:
    for number, group in enumerate(groups):
        if isinstance(group, list):
            yield from (((number, index), array) for index, array in enumerate(group))
        else:
            yield (number, None), group


def _graph(array: mx.array, begun: mx.array) -> str:
    """Return the graph of an array as text, in which ``begun`` has a name."""
    text = io.StringIO()
    mx.export_to_dot(text, array, begun=begun)
    return text.getvalue()
