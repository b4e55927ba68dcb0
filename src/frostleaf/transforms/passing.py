"""Arrays that pass through a traced function untouched, and so come out as the caller's own objects."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence

import mlx.core as mx

Origins = Sequence[int | None]


class Inputs:
    """The arrays given to a function while it is traced, as they were when it began."""

    def __init__(self, arrays: Sequence[mx.array]) -> None:
        self._arrays = arrays  # kept, so that no other array gets the identity of one of these
        self._begun = {id(array): (position, copy.copy(array)) for position, array in enumerate(arrays)}

    def separate(self, outputs: Sequence[mx.array]) -> tuple[list[mx.array], Origins | None]:
        """Return the outputs that were computed, and for each output the position of the input that it is, or ``None``.

        The second is ``None`` if every output was computed.
        """
        origins = [self._origin(output) for output in outputs]
        computed = [output for output, origin in zip(outputs, origins, strict=True) if origin is None]
        return computed, None if len(computed) == len(outputs) else origins

    def _origin(self, output: mx.array) -> int | None:
        position, begun = self._begun.get(id(output), (None, output))
        # The function may have assigned into its argument: the same object, and another value.
        return position if position is not None and _graph(output, begun) == _graph(begun, begun) else None


def together(computed: Sequence[mx.array], origins: Origins | None, inputs: Sequence[mx.array]) -> Sequence[mx.array]:
    """Return all outputs in order: those that were computed, and the inputs that passed through."""
    if origins is None:
        return computed
    rest = iter(computed)
    return [next(rest) if origin is None else inputs[origin] for origin in origins]


def _graph(array: mx.array, begun: mx.array) -> str:
    """Return the graph of an array as text, in which ``begun`` has a name."""
    text = io.StringIO()
    mx.export_to_dot(text, array, begun=begun)
    return text.getvalue()
