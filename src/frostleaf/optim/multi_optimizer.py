"""A different optimizer for each part of a model."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..core.fields import buffer, static
from ..core.words import describe
from ..tree.selecting import Where, covers, matcher, require_arrays
from .contents import renewed
from .masking import first_names
from .optimizer import NOT_A_STATE, Optimizer, State, require_optimizer
from .parameters import PACKED_NAMES, Parameters


class MultiState(State):
    """What :func:`multi` remembers: the states of its optimizers, in order.

    >>> import frostleaf as fl
    >>> state = fl.optim.multi({"weight": fl.optim.Muon(0.02), "bias": fl.optim.SGD(0.1)}).init(fl.nn.Linear(2, 1))
    >>> [each.rule for each in state.inner]
    ['Muon', 'SGD']
    """

    inner: tuple[Any, ...] = buffer()


COUNT = "{filters} filters go with {filters} optimizers, or with one more for what none of them selects; there are {optimizers}"


class MultiOptimizer(Optimizer):
    """An optimizer for each part of a model. :func:`multi` takes the same as a dict.

    Args:
        optimizers: The optimizers.
        filters: For each optimizer a predicate of path and array, or another selection. A parameter goes to the first that
            selects it. The last optimizer may have no filter, and trains what is left.

    Raises:
        TypeError: If one of ``optimizers`` is something else, or a filter is not a selection.
        ValueError: If their numbers don't fit; in ``init``, if there is no optimizer for a parameter, or a path leads nowhere.

    >>> import frostleaf as fl
    >>> opt = fl.optim.MultiOptimizer([fl.optim.Muon(0.02), fl.optim.AdamW(1e-3)], [lambda path, array: array.ndim == 2])
    >>> [list(state.slots) for state in opt.init(fl.nn.Linear(2, 2)).inner]
    [['weight'], ['bias']]
    """

    optimizers: tuple[Optimizer, ...]
    filters: tuple[Any, ...] = static()

    __state__ = MultiState

    def __init__(self, optimizers: Sequence[Optimizer], filters: Sequence[Where] = ()) -> None:
        for each in optimizers:
            require_optimizer(each, "MultiOptimizer")
        for where in filters:
            matcher(where)
        if not optimizers or len(optimizers) - len(filters) not in (0, 1):
            raise ValueError(COUNT.format(filters=len(filters), optimizers=len(optimizers)))
        self.optimizers, self.filters = tuple(optimizers), tuple(filters)

    def _init(self, parameters: Parameters) -> MultiState:
        groups = self._split(parameters)
        require_arrays(parameters.model, self.filters)
        return MultiState(tuple(opt._init(group) for opt, group in zip(self.optimizers, groups, strict=True)))

    def _update(
        self, parameters: Parameters, gradients: Mapping[str, mx.array], state: MultiState
    ) -> tuple[dict[str, mx.array], MultiState]:
        new, after = dict(parameters.arrays), []
        for opt, group, inner in zip(self.optimizers, self._split(parameters), state.inner, strict=True):
            arrays, inner = opt._update(group, {name: gradients[name] for name in group.arrays}, inner)
            new.update(arrays)
            after.append(inner)
        return new, renewed(state, inner=tuple(after))

    def _differences(self, parameters: Parameters, state: MultiState) -> Iterator[str]:
        for opt, group, inner in zip(self.optimizers, self._split(parameters), state.inner, strict=True):
            yield from opt._differences(group, inner)

    def _averaged(self, parameters: Parameters, state: MultiState) -> Mapping[str, mx.array]:
        each = zip(self.optimizers, self._split(parameters), state.inner, strict=True)
        return {name: array for opt, group, inner in each for name, array in opt._averaged(group, inner).items()}

    def _adapt(self, state: MultiState, parameters: Parameters) -> MultiState:
        groups = self._split(parameters)
        require_arrays(parameters.model, self.filters)
        each = zip(self.optimizers, groups, state.inner, strict=True)
        return MultiState(tuple(opt._adapt(inner, group) for opt, group, inner in each))

    def _learning_rate(self, state: MultiState) -> mx.array:
        return self.optimizers[0]._learning_rate(state.inner[0])

    def _hyperparameters(self, state: MultiState) -> Collection[str]:
        each = zip(self.optimizers, state.inner, strict=True)
        return {name for opt, inner in each for name in opt._hyperparameters(inner)}

    def _with_hyperparameters(self, state: MultiState, values: Mapping[str, Any]) -> MultiState:
        after = []
        for opt, inner in zip(self.optimizers, state.inner, strict=True):
            own = {name: values[name] for name in opt._hyperparameters(inner) if name in values}
            after.append(opt._with_hyperparameters(inner, own))
        return MultiState(tuple(after))

    def _not_elementwise(self) -> Iterator[Any]:
        return (each for opt in self.optimizers for each in opt._not_elementwise())

    def _require_state(self, state: Any, method: str) -> None:
        super()._require_state(state, method)
        if len(state.inner) != len(self.optimizers):
            given = f"the states of {len(state.inner)} optimizers, where there are {len(self.optimizers)}"
            raise TypeError(NOT_A_STATE.format(optimizer=type(self).__name__, method=method, given=given))
        for opt, inner in zip(self.optimizers, state.inner, strict=True):
            opt._require_state(inner, method)

    def _split(self, parameters: Parameters) -> list[Parameters]:
        """Return the parameters of each optimizer."""
        if parameters.is_packed:
            raise ValueError(PACKED_NAMES)
        left = dict(parameters.arrays)
        groups = []
        for where in self.filters:
            names = [name for name in parameters.select(where).arrays if name in left]
            groups.append(Parameters({name: left.pop(name) for name in names}, parameters.model))
        if len(groups) < len(self.optimizers):
            groups.append(Parameters(left, parameters.model))
        elif left:
            raise ValueError(f"no optimizer of multi is for {first_names(left)}. Add one for the rest, under '**' at the end")
        return groups


NOTHING_LEFT = "{later} comes after {earlier}, which selects all that it does, and would train nothing: put {later} first"


def multi(optimizers: Mapping[Any, Optimizer]) -> MultiOptimizer:
    """Return an optimizer that trains each part of a model with another optimizer.

    A parameter goes to the first whose selection has it. The learning rate is that of the first optimizer.

    Args:
        optimizers: From selections to optimizers, in order: a path, glob, class, predicate, or a tuple of these.

    Raises:
        TypeError: If it is not a dict of optimizers, or a key is not a selection.
        ValueError: If a key comes after ``"**"``, or a path after a glob that selects it; in ``init`` and ``update``, if there
            is no optimizer for a parameter; in ``init``, if a path leads nowhere, or all at a selection is tied. A glob, class
            or predicate may select nothing, so that the optimizer serves other models too.

    >>> import frostleaf as fl
    >>> opt = fl.optim.multi({"bias": fl.optim.SGD(0.1), "**": fl.optim.Adam(0.1)})
    >>> [list(state.slots) for state in opt.init(fl.nn.Linear(2, 2)).inner]
    [['bias'], ['weight']]
    """
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TypeError(f"multi takes a dict from selections to optimizers, and was given {describe(optimizers)}")
    for each in optimizers.values():
        require_optimizer(each, "multi")
    made = MultiOptimizer([*optimizers.values()], [*optimizers])
    for earlier, later in itertools.combinations(optimizers, 2):
        if covers(earlier, later):
            raise ValueError(NOTHING_LEFT.format(earlier=describe(earlier), later=describe(later)))
    return made
