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

    def separate(self, outputs: Sequence[mx.array]) -> tuple[list[mx.array], Origins]:
        """Return the outputs without the inputs among them, and the origins of those."""
        origins = [(place, origin) for place, array in enumerate(outputs) if (origin := self._origin(array)) is not None]
        passed = {place for place, _ in origins}
        return [array for place, array in enumerate(outputs) if place not in passed], origins

    def _origin(self, output: mx.array) -> int | None:
        place, begun = self._begun.get(id(output), (None, output))
        # The function may have assigned into its argument: the same object with another value.
        return place if place is not None and _graph(output, begun) == _graph(begun, begun) else None


def put_back(outputs: list[mx.array], origins: Origins, inputs: Sequence[mx.array]) -> None:
    """Put the inputs that passed through back into the outputs that :meth:`Inputs.separate` returned."""
    for place, origin in origins:
        outputs.insert(place, inputs[origin])


def _graph(array: mx.array, begun: mx.array) -> str:
    """Return the graph of an array as text, in which ``begun`` has a name."""
    text = io.StringIO()
    mx.export_to_dot(text, array, begun=begun)
    return text.getvalue()
