"""What is in the states of optimizers, read and put back without a look at each container in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from ..core.instance import Instance, Metadata, children_of, is_finished, metadata_of
from ..core.structure import Kind, Signature, Structure, child_specs, flat_of, kind_of, specs_in, unflatten_late

S = TypeVar("S")


class Slots(NamedTuple):
    """What is remembered of each array: the names of the arrays, the keys of each, and the values of all of them in order."""

    names: Sequence[str]
    keys: Sequence[tuple[str, ...]]
    leaves: Sequence[mx.array]

    def items(self) -> Iterator[tuple[str, dict[str, mx.array]]]:
        """Yield each name with a new dict of what is remembered."""
        leaves = iter(self.leaves)
        for name, keys in zip(self.names, self.keys, strict=True):
            yield name, dict(zip(keys, leaves, strict=False))


class Contents(NamedTuple):
    """What is in the state of a rule, by the names of its fields."""

    step: mx.array
    hyperparameters: dict[str, mx.array]
    configured: tuple[mx.array, ...]
    slots: Slots


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
    """What a rule is known to remember of arrays, by their shapes and dtypes, and the state that fits the arrays it had last.

    Args:
        structure: That of the optimizer, with which this is kept.
    """

    __slots__ = ("_is_of_mlx", "_keeping", "_last", "_slots")

    def __init__(self, structure: Structure) -> None:
        self._is_of_mlx = is_of_mlx(structure)
        self._slots: dict[Kind, dict[str, Kind]] = {}
        self._last: Any = None
        self._keeping: Any = None

    def learn(self, kinds: Iterable[Kind], slots: Iterable[Mapping[str, mx.array]]) -> None:
        """Take note of the slots that the rule has made for arrays of some shapes and dtypes."""
        for kind, slot in dict(zip(kinds, slots, strict=True)).items():
            if kind not in self._slots and are_arrays(slot.values()):
                self._slots[kind] = dict(zip(slot, kinds_of(slot.values()), strict=True))

    def fits(self, state: Any, names: tuple[str, ...], kinds: Sequence[Kind], scalars: Callable[[], dict[str, Any]]) -> bool:
        """Return whether a state is known to be one for arrays of such names, shapes and dtypes.

        Args:
            state: The state of a rule.
            names: The names of the arrays.
            kinds: Their shapes and dtypes.
            scalars: Returns the hyperparameters of the rule.
        """
        flat, layout, last = flat_of(state), layout_of(state), self._last
        if layout is None or (flat.signature is None and not are_arrays(flat.leaves)):
            return False
        signature = flat.signed()
        if last is None or last[0] is not signature or last[1:] != (names, kinds):
            if not self._fits(signature, layout, names, kinds, scalars()):
                return False
            self._last = signature, names, kinds
        return True

    def put_together(self, state: Any, contents: Contents, *given: Any) -> Any:
        """Return a state like another with the contents after a step; ``None`` if they have other names, or are no arrays.

        With a rule of MLX the shapes and dtypes after a step depend on those before it, and on what is ``given``: they are
        looked at once, but for those of hyperparameters, which a schedule sets.
        """
        step, hyperparameters, configured, slots = contents
        names = tuple(hyperparameters), len(configured), tuple(slots.names), tuple(slots.keys)
        leaves = [step, *hyperparameters.values(), *configured, *slots.leaves]
        if layout_of(state) != names or not are_arrays(leaves):
            return None
        flat = flat_of(state)
        signature = flat.signature
        scheduled = tuple([(each.shape, each.dtype) for each in hyperparameters.values()])
        is_known = self._is_of_mlx and self._keeping == (signature, *given)
        if signature and not (is_known and scheduled == signature.leaves[1 : 1 + len(scheduled)]):
            signature = signature.if_of(leaves)
            self._keeping = (signature, *given) if signature else None
        return unflatten_late(flat.structure, leaves, signature)

    def _fits(
        self, signature: Signature, layout: Layout, names: tuple[str, ...], kinds: Sequence[Kind], scalars: dict[str, Any]
    ) -> bool:
        slots = [self._slots.get(kind) for kind in kinds]
        count = len(layout.hyperparameters) + 1
        shapes = {name: shape for name, (shape, _) in zip(layout.hyperparameters, signature.leaves[1:count], strict=True)}
        return (
            layout.names == names
            and layout.keys == tuple([None if slot is None else tuple(slot) for slot in slots])
            and shapes == {name: getattr(value, "shape", None) for name, value in scalars.items()}
            and [*signature.leaves[count + layout.configured :]] == [kind for slot in slots for kind in (slot or {}).values()]
        )


def is_of_mlx(structure: Structure) -> bool:
    """Return whether the rules in an optimizer are MLX's own, which never change what they remember in shape or dtype."""
    static = [value for _, spec in specs_in(structure.spec) if _is_module(spec) for value in spec[1].static.values()]
    return all(value.__module__.startswith("mlx.") for value in static if isinstance(value, type))


def _is_module(spec: Any) -> bool:
    return type(spec) is tuple and type(spec[1]) is Metadata


def take_apart(state: Any) -> Contents:
    """Return what is in the state of a rule."""
    layout = layout_of(state)
    if layout is None:
        return Contents(state.step, dict(state.hyperparameters), state.configured, slots_of(state.slots))
    leaves = iter(flat_of(state).leaves)
    step = next(leaves)
    hyperparameters = dict(zip(layout.hyperparameters, leaves, strict=False))
    configured = tuple(islice(leaves, layout.configured))
    return Contents(step, hyperparameters, configured, Slots(layout.names, layout.keys, [*leaves]))


def slots_of(slots: Mapping[str, Mapping[str, mx.array]]) -> Slots:
    """Return what is remembered of each array by the names of the arrays."""
    return Slots(tuple(slots), [*map(tuple, slots.values())], [each for slot in slots.values() for each in slot.values()])


def static_in(state: Any, name: str) -> Any:
    """Return the value of a static field, for which a state need not be put together."""
    return flat_of(state).structure.spec[1].static[name]


def renewed(state: S, **fields: Any) -> S:
    """Return a state with other values of fields. What an optimizer has just made of arrays is not checked again."""
    node: Any = state
    if metadata_of(node).ties or not all(map(_is_made_of_arrays, fields.values())):
        return node.replace(**fields)  # type: ignore[no-any-return]
    children = {**children_of(node), **{name: _frozen(value) for name, value in fields.items()}}
    return node.__frostleaf__.assemble(metadata_of(node), children.values())  # type: ignore[no-any-return]


def are_arrays(values: Iterable[Any]) -> bool:
    """Return whether all values are arrays with numbers."""
    return {*map(type, values)} <= {mx.array}


def are_of_kinds(arrays: Mapping[str, Any], names: tuple[str, ...], kinds: Iterable[Kind]) -> bool:
    """Return whether these are arrays with numbers of such names, shapes and dtypes, in order."""
    return tuple(arrays) == names and are_arrays(arrays.values()) and kinds_of(arrays.values()) == tuple(kinds)


def kinds_of(arrays: Iterable[mx.array]) -> tuple[Kind, ...]:
    """Return the shape and the dtype of each array."""
    return tuple(map(kind_of, arrays))


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
