"""Optimizers for a part of a model, and a different one for each part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..edits.tying import tied_places
from ..fields import buffer, static
from ..module import Module
from ..node import nearest
from ..tree.compare import describe
from ..tree.functions import dotted, structure
from ..tree.parts import selected
from ..tree.where import Where, matcher
from .optimizer import NOT_A_STATE, Optimizer, require_optimizer
from .parameters import PACKED_NAMES, Parameters

NOTHING_SELECTED = "{where!r} selects nothing that can be trained: it has {names}"
NOWHERE = "{where!r} selects no array of the {tree}{advice}"
UNCLAIMED = "no optimizer of multi is for {names}. Add one for the rest, under '**' at the end"
NO_OPTIMIZERS = "multi takes a dict from selections to optimizers, and was given {given}"
OTHER_COUNT = "the states of {given} optimizers, where there are {expected}"
COUNT = "{filters} filters go with {filters} optimizers, or with one more for what none of them selects; there are {optimizers}"


class Masked(Optimizer):
    """An optimizer for a part of a model, as made by :func:`masked`."""

    optimizer: Optimizer
    where: Any = static()

    __state__ = Module

    def __init__(self, optimizer: Optimizer, where: Any) -> None:
        self.optimizer, self.where = optimizer, where

    def _init(self, parameters: Parameters) -> Any:
        part = self._part(parameters)
        _require_places(self.where, parameters)
        return self.optimizer._init(part)

    def _update(self, parameters: Parameters, gradients: Mapping[str, mx.array], state: Any) -> tuple[dict[str, mx.array], Any]:
        part = self._part(parameters)
        new, after = self.optimizer._update(part, {name: gradients[name] for name in part.arrays}, state)
        return {**parameters.arrays, **new}, after

    def _differences(self, parameters: Parameters, state: Any) -> Iterator[str]:
        return self.optimizer._differences(self._part(parameters), state)

    def _adapt(self, state: Any, parameters: Parameters) -> Any:
        part = self._part(parameters)
        _require_places(self.where, parameters)
        return self.optimizer._adapt(state, part)

    def _learning_rate(self, state: Any) -> mx.array:
        return self.optimizer._learning_rate(state)

    def _require_state(self, state: Any, method: str) -> None:
        self.optimizer._require_state(state, method)

    def _part(self, parameters: Parameters) -> Parameters:
        part = parameters.selected(self.where)
        if not part.arrays:
            raise ValueError(NOTHING_SELECTED.format(where=self.where, names=_listed(parameters.arrays)))
        return part


class MultiState(Module):
    """What :func:`multi` remembers: the states of its optimizers, in order."""

    inner: tuple[Any, ...] = buffer()


class MultiOptimizer(Optimizer):
    """An optimizer for each part of a model. :func:`multi` says the same with a dict.

    Args:
        optimizers: The optimizers.
        filters: For each optimizer a predicate of path and array, or another selection. A parameter goes to the first that
            selects it. The last optimizer may do without, and takes what is left.

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
        parts = self._parts(parameters)
        _require_places(self.filters, parameters)
        return MultiState(tuple(opt._init(part) for opt, part in zip(self.optimizers, parts, strict=True)))

    def _update(
        self, parameters: Parameters, gradients: Mapping[str, mx.array], state: MultiState
    ) -> tuple[dict[str, mx.array], MultiState]:
        new, after = dict(parameters.arrays), []
        for opt, part, inner in zip(self.optimizers, self._parts(parameters), state.inner, strict=True):
            arrays, inner = opt._update(part, {name: gradients[name] for name in part.arrays}, inner)
            new.update(arrays)
            after.append(inner)
        return new, MultiState(tuple(after))

    def _differences(self, parameters: Parameters, state: MultiState) -> Iterator[str]:
        for opt, part, inner in zip(self.optimizers, self._parts(parameters), state.inner, strict=True):
            yield from opt._differences(part, inner)

    def _adapt(self, state: MultiState, parameters: Parameters) -> MultiState:
        parts = self._parts(parameters)
        _require_places(self.filters, parameters)
        inner = zip(self.optimizers, parts, state.inner, strict=True)
        return MultiState(tuple(opt._adapt(each, part) for opt, part, each in inner))

    def _learning_rate(self, state: MultiState) -> mx.array:
        return self.optimizers[0]._learning_rate(state.inner[0])

    def _require_state(self, state: Any, method: str) -> None:
        super()._require_state(state, method)
        if len(state.inner) != len(self.optimizers):
            given = OTHER_COUNT.format(given=len(state.inner), expected=len(self.optimizers))
            raise TypeError(NOT_A_STATE.format(optimizer=type(self).__name__, method=method, given=given))
        for opt, inner in zip(self.optimizers, state.inner, strict=True):
            opt._require_state(inner, method)

    def _parts(self, parameters: Parameters) -> list[Parameters]:
        if parameters.packed:
            raise ValueError(PACKED_NAMES)
        left = dict(parameters.arrays)
        parts = []
        for where in self.filters:
            chosen = parameters.selected(where).arrays
            parts.append(Parameters({name: left.pop(name) for name in chosen if name in left}, parameters.model))
        if len(parts) < len(self.optimizers):
            parts.append(Parameters(left, parameters.model))
        elif left:
            raise ValueError(UNCLAIMED.format(names=_listed(left)))
        return parts


def masked(opt: Optimizer, where: Where) -> Masked:
    """Return an optimizer that trains the selected parameters, and leaves the others as they are.

    Its state is that of ``opt`` for the selected ones. Unlike a frozen parameter, one that is not selected has a gradient.

    Args:
        opt: Any optimizer.
        where: A path, glob, class, predicate ``(path, array) -> bool``, or several of these (see :meth:`Module.at`).

    Raises:
        TypeError: If ``opt`` is something else, or ``where`` is not a selection.
        ValueError: In ``init`` and ``update``, if nothing trainable is selected; in ``init``, if one of several paths leads
            nowhere.

    >>> import frostleaf as fl
    >>> opt = fl.optim.masked(fl.optim.SGD(0.1), "bias")
    >>> list(opt.init(fl.nn.Linear(2, 2)).slots)
    ['bias']
    """
    require_optimizer(opt, "masked")
    matcher(where)
    return Masked(opt, where)


def multi(optimizers: Mapping[Any, Optimizer]) -> MultiOptimizer:
    """Return an optimizer that trains each part of a model with an optimizer of its own.

    A parameter goes to the first that selects it. The learning rate is that of the first optimizer.

    Args:
        optimizers: From selections to optimizers, in order: a path, glob, class, predicate, or a tuple of these.

    Raises:
        TypeError: If it is not a dict of optimizers, or a key is not a selection.
        ValueError: In ``init`` and ``update``, if there is no optimizer for a parameter; in ``init``, if a path leads nowhere.
            A glob, class or predicate may select nothing, so that the optimizer serves other models too.

    >>> import frostleaf as fl
    >>> opt = fl.optim.multi({"bias": fl.optim.SGD(0.1), "**": fl.optim.Adam(0.1)})
    >>> [list(state.slots) for state in opt.init(fl.nn.Linear(2, 2)).inner]
    [['bias'], ['weight']]
    """
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TypeError(NO_OPTIMIZERS.format(given=describe(optimizers)))
    for each in optimizers.values():
        require_optimizer(each, "multi")
    return MultiOptimizer([*optimizers.values()], [*optimizers])


def _require_places(where: Any, parameters: Parameters) -> None:
    """Raise a ``ValueError`` if a path in a selection leads to no array of the model, trainable or not."""
    if isinstance(where, list | tuple | set | frozenset):
        for each in where:
            _require_places(each, parameters)
    elif isinstance(where, str) and not set("*?") & set(where) and not any(selected(parameters.model, where)):
        source = tied_places(parameters.model).get(where)
        leaves = structure(parameters.model).leaf_paths()
        places = {dotted(path[:length]) for path in leaves for length in range(1, len(path) + 1)}
        advice = f". It is tied to {source!r}: select that" if source else nearest(where, sorted(places))
        raise ValueError(NOWHERE.format(where=where, tree=type(parameters.model).__name__, advice=advice))


def _listed(names: Mapping[str, Any]) -> str:
    shown = ", ".join(map(repr, [*names][:8]))
    return shown + ", ..." * (len(names) > 8) if names else "nothing"
