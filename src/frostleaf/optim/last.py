"""What an optimizer knows of the last step that it took, so that the next is not looked at as closely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any
from weakref import ref

import mlx.core as mx

from ..core.instance import flat_kept
from ..core.structure import Flat, Signature, Structure, specs_in
from .contents import are_arrays, is_of_mlx


class Last:
    """What an optimizer knows of the last step that it took.

    It keeps no model alive, nor the structure of one: that may hold static values of any kind.

    Args:
        structure: That of the optimizer, with which this is kept.

    Attributes:
        is_averaged: Whether it is known that nothing in the optimizer lacks an average of gradients over the ranks.
    """

    __slots__ = ("_is_of_mlx", "_kept", "_plain", "is_averaged")

    def __init__(self, structure: Structure) -> None:
        self._is_of_mlx = is_of_mlx(structure)
        self.is_averaged = False
        self._kept: tuple[Callable[[], Any], Callable[[], Any]] = _nothing, _nothing
        self._plain: Signature | None = None

    def recognised(self, flat: Flat) -> Flat:
        """Return a tree taken apart, with the structure of the last one if that was equal, and all that is known of it.

        A module keeps its structure, and hands it on. Python's containers can't: theirs is kept here.
        """
        if flat.structure.is_of_module or not are_arrays(flat.leaves):
            return flat
        plain = self._plain
        if plain is not None and plain.structure == flat.structure:
            flat = Flat(flat.leaves, plain.structure, plain.if_of(flat.leaves))
        elif not _is_plain(flat.structure):
            return flat
        self._plain = flat.signed()
        return flat

    def signature_after(self, model: Signature, state: Any, leaves: Sequence[mx.array]) -> Signature | None:
        """Return the signature of a model after a step with gradients like its arrays, if it is that before the step.

        With a rule of MLX its shapes and dtypes depend on those of the model and the state before it: they are looked at once.
        """
        flat = flat_kept(state)
        of_state = flat.signature if flat else None
        then, state_then = self._kept
        if not self._is_of_mlx or of_state is None or then() is not model or state_then() is not of_state:
            if model.if_of(leaves) is None:
                return None
            if of_state is not None:
                self._kept = ref(model), ref(of_state)
        return model


def _nothing() -> None:
    """Stand for a reference to what is gone."""


_CONTAINERS = tuple, list, dict, MappingProxyType


def _is_plain(structure: Structure) -> bool:
    """Return whether a tree is made of Python's own containers, names, numbers and arrays alone."""
    return all(
        spec is mx.array
        or spec is None
        or (type(spec) is tuple and spec[0] in _CONTAINERS and {*map(type, spec[1].entries)} <= {str, int})
        for _, spec in specs_in(structure.spec)
    )
