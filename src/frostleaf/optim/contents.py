"""What is in the states of optimizers, read and put back without a look at each container in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from ..core.instance import Instance, children_of, is_finished, metadata_of
from ..core.structure import Structure, child_specs, flat_of, unflatten_late

S = TypeVar("S")
# The shape and the dtype of an array.
Kind = tuple[tuple[int, ...], mx.Dtype]
_kind = attrgetter("shape", "dtype")


class Contents(NamedTuple):
    """What is in the state of a rule, by the names of its fields."""

    step: mx.array
    hyperparameters: dict[str, mx.array]
    configured: tuple[mx.array, ...]
    slots: dict[str, dict[str, mx.array]]


class Layout(NamedTuple):
    """What the leaves of the state of a rule are, in order: the step, hyperparameters, what was configured, and slots."""

    hyperparameters: tuple[str, ...]
    configured: int
    names: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]


def layout_of(state: Any) -> Layout | None:
    """Return what the leaves of the state of a rule are; ``None`` if it has anything but arrays."""
    return flat_of(state).structure.remember(_layout)


class Known:
    """What a rule is known to remember of arrays, by their shapes and dtypes.

    Args:
        structure: That of the optimizer, with which this is kept.
    """

    __slots__ = ("_fitting", "_slots")

    def __init__(self, structure: Structure) -> None:
        self._slots: dict[Kind, dict[str, Kind]] = {}
        self._fitting: tuple[Layout | None, list[Kind], list[Kind]] = None, [], []

    def learn(self, kinds: Iterable[Kind], slots: Iterable[Mapping[str, mx.array]]) -> None:
        """Take note of the slots that the rule has made for arrays of some shapes and dtypes."""
        for kind, slot in dict(zip(kinds, slots, strict=True)).items():
            if kind not in self._slots and are_arrays(slot.values()):
                self._slots[kind] = dict(zip(slot, kinds_of(slot.values()), strict=True))

    def fits(self, layout: Layout, kinds: list[Kind], slots: Iterable[mx.array]) -> bool:
        """Return whether slots of a layout are known to be what the rule remembers of arrays of some shapes and dtypes."""
        fitting = self._fitting
        if fitting[0] is not layout or fitting[1] != kinds:
            expected = [self._slots.get(kind) for kind in kinds]
            if layout.keys != tuple([None if slot is None else tuple(slot) for slot in expected]):
                return False
            fitting = self._fitting = layout, kinds, [kind for slot in expected for kind in (slot or {}).values()]
        return fitting[2] == kinds_of(slots)


def take_apart(state: Any) -> Contents:
    """Return what is in the state of a rule, in containers that may be changed."""
    layout = layout_of(state)
    if layout is None:
        slots = {name: dict(slot) for name, slot in state.slots.items()}
        return Contents(state.step, dict(state.hyperparameters), state.configured, slots)
    leaves = iter(flat_of(state).leaves)
    step = next(leaves)
    hyperparameters = dict(zip(layout.hyperparameters, leaves, strict=False))
    configured = tuple(islice(leaves, layout.configured))
    slots = {name: dict(zip(keys, leaves, strict=False)) for name, keys in zip(layout.names, layout.keys, strict=True)}
    return Contents(step, hyperparameters, configured, slots)


def put_together(state: Any, contents: Contents) -> Any:
    """Return a state like that of a rule with other contents; ``None`` if they have other names, or are not all arrays."""
    step, hyperparameters, configured, slots = contents
    keys = tuple(map(tuple, slots.values()))
    if layout_of(state) != (tuple(hyperparameters), len(configured), tuple(slots), keys):
        return None
    leaves = [step, *hyperparameters.values(), *configured]
    for slot in slots.values():
        leaves += slot.values()
    return unflatten_late(flat_of(state).structure, leaves) if are_arrays(leaves) else None


def values_in(state: Any, layout: Layout) -> tuple[list[mx.array], list[mx.array]]:
    """Return the hyperparameters and the arrays of all slots in the state of a rule."""
    leaves, count = flat_of(state).leaves, len(layout.hyperparameters) + 1
    return leaves[1:count], leaves[count + layout.configured :]


def static_in(state: Any, name: str) -> Any:
    """Return the value of a static field, for which a state need not be put together."""
    return flat_of(state).structure.spec[1].static[name]


def renewed(state: S, **fields: Any) -> S:
    """Return a state with other values of fields. What an optimizer has just made of arrays is not checked again."""
    if not all(map(_is_made_of_arrays, fields.values())):
        return state.replace(**fields)  # type: ignore[attr-defined, no-any-return]
    node: Any = state
    children = {**children_of(node), **{name: _frozen(value) for name, value in fields.items()}}
    return node.__frostleaf__.assemble(metadata_of(node), children.values())  # type: ignore[no-any-return]


def are_arrays(values: Iterable[Any]) -> bool:
    """Return whether all values are arrays with numbers."""
    return {*map(type, values)} <= {mx.array}


def kinds_of(arrays: Iterable[mx.array]) -> list[Kind]:
    """Return the shape and the dtype of each array."""
    return [*map(_kind, arrays)]


def _is_made_of_arrays(value: Any) -> bool:
    if type(value) is dict:
        return are_arrays(value.values()) or all(map(_is_made_of_arrays, value.values()))
    if type(value) is tuple:
        return all(map(_is_made_of_arrays, value))
    return type(value) is mx.array or (isinstance(value, Instance) and is_finished(value))


def _frozen(value: Any) -> Any:
    if type(value) is not dict:
        return value
    return MappingProxyType({name: each if type(each) is mx.array else _frozen(each) for name, each in value.items()})


def _layout(structure: Structure) -> Layout | None:
    """Return what the leaves are if there is an array at each place, and nothing else."""
    step, hyperparameters, configured, slots = structure.spec[2]
    of_slots: list[Any] = [_keys(spec) for spec in child_specs(slots[2])] if type(slots) is tuple else [None]
    of_others = [_keys(hyperparameters), _keys(configured)]
    if step is not mx.array or None in of_slots or None in of_others or slots[0] is not MappingProxyType:
        return None
    return Layout(of_others[0], len(of_others[1]), tuple(slots[1].entries), tuple(of_slots))


def _keys(spec: Any) -> Any:
    """Return the names of the arrays in a container; ``None`` if it is something else, or has something else."""
    return tuple(spec[1].entries) if type(spec) is tuple and type(spec[2]) is int else None
