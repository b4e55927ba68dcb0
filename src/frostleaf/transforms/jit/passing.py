"""Arrays that pass through a traced function untouched, and come out as the caller's own objects."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import mlx.core as mx

# The position of an array in the result and in the arguments, in the order of the result.
Origins = Sequence[tuple[int, int]]

MOST_NAMES = 1000  # that a function of MLX can be given
_NAMES = [f"begun_{number}" for number in range(MOST_NAMES)]
_QUOTED = re.compile('"(.*?)"')


class Inputs:
    """The arrays given to a function that is traced, as they were when the trace began."""

    def __init__(self, arrays: Sequence[mx.array]) -> None:
        self._arrays = arrays  # kept, so that no other array gets the id of one of these
        self._begun = {id(array): (place, array.__copy__()) for place, array in enumerate(arrays)}

    def has(self, array: mx.array) -> bool:
        """Return whether an array is one of these."""
        return id(array) in self._begun

    def assigned(self, arrays: Sequence[mx.array]) -> set[int]:
        """Return the ids of those among these that were assigned into since: the same object has another value."""
        found: set[int] = set()
        for start in range(0, len(arrays), MOST_NAMES):
            some = arrays[start : start + MOST_NAMES]
            begun = [self._begun[id(array)][1] for array in some]
            # Where all are as they were and computed from nothing, as when MLX compiles, the graph is their names in order.
            if _QUOTED.findall(graph_of(some, **dict(zip(_NAMES, begun, strict=False)))) != _NAMES[: len(some)]:
                pairs = zip(some, begun, strict=True)
                found |= {id(now) for now, old in pairs if graph_of([now], begun=old) != graph_of([old], begun=old)}
        return found

    def separate(self, outputs: Sequence[mx.array]) -> tuple[list[mx.array], Origins]:
        """Return the outputs without the inputs among them, and the origins of those."""
        passed = [array for array in outputs if self.has(array)]
        origins_of = {id(array): self._begun[id(array)][0] for array in passed}
        for each in self.assigned(passed):
            del origins_of[each]
        origins = [(place, origins_of[id(array)]) for place, array in enumerate(outputs) if id(array) in origins_of]
        return [array for array in outputs if id(array) not in origins_of], origins


def put_back(outputs: list[mx.array], origins: Origins, inputs: Sequence[mx.array]) -> None:
    """Put the inputs that passed through back into the outputs that :meth:`Inputs.separate` returned."""
    for place, origin in origins:
        outputs.insert(place, inputs[origin])


def graph_of(arrays: Sequence[mx.array], **names: mx.array) -> str:
    """Return the graph from which arrays are computed as text, in which some have names."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays, **names)
    return text.getvalue()
