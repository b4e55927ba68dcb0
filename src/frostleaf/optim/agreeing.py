"""What ranks compare before an optimizer exchanges with them what it updates: whether all have the same to update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx

from .. import io
from ..core.structure import Kind, Structure, flat_of, specs_in
from ..core.words import shape_and_dtype
from ..transforms.agreement import Said, agreed, settled
from ..transforms.context import setting
from ..transforms.group import Group
from .contents import kinds_of
from .parameters import Parameters, groups_in

Given = tuple[Parameters, Mapping[str, mx.array]]


class Exchanging:
    """A class of optimizers that exchange with other ranks what they update. It has a static field ``group``."""


def agreed_update(optimizer: Any, method: str, prepare: Callable[[], Given]) -> Given:
    """Return what is updated, which ``prepare`` returns. An optimizer that exchanges it does so on all ranks, or on none.

    Raises:
        ValueError: If other ranks have something else to update, or fail. A rank on which ``prepare`` fails raises its error.
    """
    known = flat_of(optimizer).structure.remember(_Known)
    if known.group is None:
        return prepare()

    def said() -> tuple[Given, Said]:
        given = prepare()
        return given, known.said_of(*given)

    return agreed(f"opt.{method}", known.group, said, own=True)


def settling(optimizer: Any, parameters: Parameters, gradients: Mapping[str, mx.array]) -> AbstractContextManager[Any]:
    """Tell what is called inside a ``with`` block that all ranks have gradients of these names, shapes and dtypes."""
    group = flat_of(optimizer).structure.remember(_Known).group
    if group is None:
        return nullcontext()
    return setting(settled, (group, parameters.names, _kinds(parameters, gradients)))


def _kinds(parameters: Parameters, gradients: Mapping[str, mx.array]) -> Sequence[Kind]:
    return parameters.kinds if gradients is parameters.alike else kinds_of(gradients.values())


class _Known:
    """The ranks with which an optimizer exchanges what it updates, and what it has told of that last.

    Args:
        structure: That of the optimizer, with which this is kept.
    """

    __slots__ = ("_facts", "_last", "group")

    def __init__(self, structure: Structure) -> None:
        found = [spec for _, spec in specs_in(structure) if isinstance(spec, tuple) and issubclass(spec[0], Exchanging)]
        group: Group | None = found[0][1].static["group"] if found else None
        self.group = group if group is not None and group.size() > 1 else None
        self._facts = io.alike.said_of_structure(Structure(found[0], 0)) if self.group else {}
        self._last: tuple[Any, Said] = None, {}

    def said_of(self, parameters: Parameters, gradients: Mapping[str, mx.array]) -> Said:
        """Say what is updated: by name the shape and dtype of each array, and of its gradient."""
        given = _kinds(parameters, gradients)
        key = parameters.names, parameters.kinds, given, groups_in(parameters)
        if self._last[0] != key:
            names, kinds, _, groups = key
            said = dict(self._facts)
            for name, kind, gradient in zip(names, kinds, given, strict=True):
                divided = "a shard " if self.group in groups.get(name, ()) else ""
                said[name] = f"{divided}{shape_and_dtype(*kind)} with a gradient {shape_and_dtype(*gradient)}"
            self._last = key, said
        return self._last[1]
