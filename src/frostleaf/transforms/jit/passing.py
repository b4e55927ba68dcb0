"""Arrays that pass through a traced function untouched, and come out as the caller's own objects."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence

import mlx.core as mx

# The position of an array in the result and in the arguments, in the order of the result.
Origins = Sequence[tuple[int, int]]


class Inputs:
    """The arrays given to a function that is traced, as they were when the trace began."""

    def __init__(self, arrays: Sequence[mx.array]) -> None:
        self._arrays = arrays  # kept, so that no other array gets the id of one of these
        self._begun = {id(array): (place, copy.copy(array)) for place, array in enumerate(arrays)}

    def has(self, array: mx.array) -> bool:
        """Return whether an array is one of these."""
        return id(array) in self._begun

    def is_assigned(self, array: mx.array) -> bool:
        """Return whether one of these was assigned into since: it is the same object, and has another value."""
        _, begun = self._begun[id(array)]
        return graph_of([array], begun=begun) != graph_of([begun], begun=begun)

    def separate(self, outputs: Sequence[mx.array]) -> tuple[list[mx.array], Origins]:
        """Return the outputs without the inputs among them, and the origins of those."""
        origins = [(place, origin) for place, array in enumerate(outputs) if (origin := self._origin(array)) is not None]
        passed = {place for place, _ in origins}
        return [array for place, array in enumerate(outputs) if place not in passed], origins

    def _origin(self, output: mx.array) -> int | None:
        place, _ = self._begun.get(id(output), (None, None))
        return None if place is None or self.is_assigned(output) else place


def put_back(outputs: list[mx.array], origins: Origins, inputs: Sequence[mx.array]) -> None:
    """Put the inputs that passed through back into the outputs that :meth:`Inputs.separate` returned."""
    for place, origin in origins:
        outputs.insert(place, inputs[origin])


def graph_of(arrays: Sequence[mx.array], **names: mx.array) -> str:
    """Return the graph from which arrays are computed as text, in which some have names."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays, **names)
    return text.getvalue()
