"""An optimizer that updates many small arrays as one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import mlx.core as mx

from ..core.fields import static
from ..core.words import describe
from .adapting import carry_over_packed
from .optimizer import Optimizer
from .packing import Packed, TrainedArrays, check_size, pack, trained_arrays_of
from .parameters import Parameters, pack_gradients, parameters_of, with_parameters
from .rule import ELEMENTWISE, OptimizerState, Rule, require_rule_of


class FlattenedState(OptimizerState):
    """What a flattened optimizer remembers, and of which arrays: very different arrays can make vectors of one length.

    Attributes:
        trained: The arrays in the vectors, and the large ones.

    >>> import frostleaf as fl
    >>> state = fl.optim.flatten(fl.optim.Adam(0.1)).init(fl.nn.Linear(2, 1))
    >>> state.slots["vectors.float32"]["m"].shape
    (3,)
    """

    trained: TrainedArrays = static()


class Flattened(Optimizer):
    """An optimizer that works on packed arrays, as made by :func:`flatten`.

    >>> import frostleaf as fl
    >>> fl.optim.flatten(fl.optim.Adam(0.1)).max_size
    4096
    """

    optimizer: Rule
    max_size: int = static()

    __state__ = FlattenedState

    def __init__(self, optimizer: Rule, max_size: int) -> None:
        self.optimizer, self.max_size = optimizer, max_size

    def _init(self, parameters: Parameters) -> FlattenedState:
        packed = self._pack(parameters)
        return _flattened_state(self.optimizer._init(_arrays(parameters, packed)), packed)

    def _update(
        self, parameters: Parameters, gradients: Mapping[str, mx.array], state: FlattenedState
    ) -> tuple[dict[str, mx.array], FlattenedState]:
        packed = self._pack(parameters)
        if not parameters.is_packed:
            gradients = pack_gradients(packed, [gradients[name] for name in parameters.arrays])
        new, after = self.optimizer._update(_arrays(parameters, packed), gradients, state)
        if not parameters.is_packed:
            new = with_parameters(parameters_of(packed), new).unpack()
        return new, _flattened_state(after, packed)

    def _differences(self, parameters: Parameters, state: FlattenedState) -> Iterator[str]:
        packed = self._pack(parameters)
        if found := list(_differences(trained_arrays_of(packed), state.trained)):
            yield from found
        else:
            yield from self.optimizer._differences(_arrays(parameters, packed), state)

    def _adapt(self, state: FlattenedState, parameters: Parameters) -> FlattenedState:
        fresh = self._init(parameters)
        slots = {vector: dict(slot) for vector, slot in fresh.slots.items()}
        for key in {key for slot in slots.values() for key in slot}:
            new, old = ({name: slot[key] for name, slot in each.items() if key in slot} for each in (slots, state.slots))
            for vector, array in carry_over_packed(new, old, fresh.trained, state.trained).items():
                slots[vector][key] = array
        return self.optimizer._carried(fresh, state).replace(slots=slots)

    def _learning_rate(self, state: FlattenedState) -> mx.array:
        return self.optimizer._learning_rate(state)

    def _hyperparameters(self, state: FlattenedState) -> Collection[str]:
        return self.optimizer._hyperparameters(state)

    def _with_hyperparameters(self, state: FlattenedState, values: Mapping[str, Any]) -> FlattenedState:
        return self.optimizer._with_hyperparameters(state, values)

    def _not_elementwise(self) -> Iterator[Any]:
        yield from ()

    def _require_state(self, state: Any, method: str) -> None:
        super()._require_state(state, method)
        require_rule_of(state, self.optimizer, type(self).__name__, method)

    def _pack(self, parameters: Parameters) -> Packed[Any]:
        return parameters.model if parameters.is_packed else pack(dict(parameters.arrays), self.max_size)


NOT_A_RULE = "fl.optim.flatten takes an optimizer with one of MLX's rules, such as fl.optim.Adam(1e-3), and was given {given}"
AROUND = (
    ". What changes gradients or wraps an optimizer goes around it: fl.optim.chain(fl.distributed.average_gradients, "
    "fl.optim.flatten(opt))"
)
NOT_ELEMENTWISE = (
    "{rule} can't be flattened: it is not known to update every number by itself, whatever array the number is in, as {known} "
    "do. If yours does, say fl.optim.flatten(opt, elementwise=True)"
)


def flatten(opt: Rule, *, max_size: int = 4096, elementwise: bool | None = None) -> Flattened:
    """Return an optimizer that updates the small arrays of a model together, with the same results.

    They are laid end to end, one vector for each dtype, in its state and while it updates. For many small arrays a step then
    hands over fewer arrays and starts fewer kernels. A model that stays packed between steps, see :func:`pack`, saves the most.
    A state of ``opt`` and one of this can't become each other: a run goes on with the one that it began with.

    Args:
        opt: An optimizer whose rule updates every number by itself: SGD, RMSprop, Adagrad, AdaDelta, Adam, AdamW, Adamax, Lion.
            Wrap the result rather than ``opt``: ``chain(clip_by_global_norm(1.0), flatten(opt))``.
        max_size: Arrays of more elements are not packed. Give :func:`pack` the same number. Default: ``4096``.
        elementwise: Whether the rule updates every number by itself, for a rule of your own. Default: known for MLX's.

    Raises:
        TypeError: If ``opt`` is something else.
        ValueError: If its rule is not elementwise, or ``max_size`` is not a number of elements.

    >>> import frostleaf as fl
    >>> opt = fl.optim.flatten(fl.optim.Adam(1e-3))
    >>> opt.init(fl.nn.Linear(2, 3)).slots["vectors.float32"]["m"].shape
    (9,)
    """
    if not isinstance(opt, Rule):
        advice = AROUND if isinstance(opt, Optimizer) and not isinstance(opt, Flattened) else ""
        raise TypeError(NOT_A_RULE.format(given=describe(opt)) + advice)
    if not (opt.rule in ELEMENTWISE if elementwise is None else elementwise):
        known = ", ".join(sorted(rule.__name__ for rule in ELEMENTWISE))
        raise ValueError(NOT_ELEMENTWISE.format(rule=opt.rule.__name__, known=known))
    check_size(max_size)
    return Flattened(opt, max_size)


def _arrays(parameters: Parameters, packed: Packed[Any]) -> Parameters:
    """Return the arrays of the packed tree, or the parts of them given, as the parameters of a model that is not packed."""
    return Parameters(parameters.arrays if parameters.is_packed else parameters_of(packed).arrays, None)


def _flattened_state(state: OptimizerState, packed: Packed[Any]) -> FlattenedState:
    trained = trained_arrays_of(packed)
    return FlattenedState(state.step, state.hyperparameters, state.configured, state.slots, state.rule, trained)


def _differences(expected: TrainedArrays, given: TrainedArrays) -> Iterator[str]:
    """Yield in words how the arrays of a model differ from those that a state is for."""
    if expected == given:
        return
    now, then = ({name: f"{place} {shape}" for name, place, shape in each.arrays} for each in (expected, given))
    both = now.keys() & then.keys()
    found = [f"{name!r} is not trainable" for name in then.keys() - now.keys()]
    found += [f"{name!r} has no state" for name in now.keys() - then.keys()]
    found += [f"{name!r} is in {now[name]} and was in {then[name]}" for name in both if now[name] != then[name]]
    yield from found or ["the order of its arrays"]
