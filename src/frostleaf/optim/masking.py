"""An optimizer for a part of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx

from ..core.fields import static
from ..core.words import describe
from ..tree.selecting import Where, matcher, require_arrays, require_no_alias
from .optimizer import Optimizer, require_optimizer
from .parameters import Parameters
from .wrapper import Wrapper


class Masked(Wrapper):
    """An optimizer for a part of a model, as made by :func:`masked`.

    >>> import frostleaf as fl
    >>> fl.optim.masked(fl.optim.SGD(0.1), "**.weight").where
    '**.weight'
    """

    where: Any = static()

    def __init__(self, optimizer: Optimizer, where: Any) -> None:
        self.optimizer, self.where = optimizer, where

    def _init(self, parameters: Parameters) -> Any:
        chosen = self._select(parameters)
        require_arrays(parameters.model, self.where)
        return self.optimizer._init(chosen)

    def _update(self, parameters: Parameters, gradients: Mapping[str, mx.array], state: Any) -> tuple[dict[str, mx.array], Any]:
        chosen = self._select(parameters)
        new, after = self.optimizer._update(chosen, {name: gradients[name] for name in chosen.arrays}, state)
        return {**parameters.arrays, **new}, after

    def _differences(self, parameters: Parameters, state: Any) -> Iterator[str]:
        return self.optimizer._differences(self._select(parameters), state)

    def _averaged(self, parameters: Parameters, state: Any) -> Mapping[str, mx.array]:
        return self.optimizer._averaged(self._select(parameters), state)

    def _adapt(self, state: Any, parameters: Parameters) -> Any:
        chosen = self._select(parameters)
        require_arrays(parameters.model, self.where)
        return self.optimizer._adapt(state, chosen)

    def _select(self, parameters: Parameters) -> Parameters:
        chosen = parameters.select(self.where)
        if not chosen.arrays:
            require_no_alias(parameters.model, self.where)
            names = first_names(parameters.arrays) or "nothing"
            raise ValueError(f"{describe(self.where)} selects nothing that can be trained: it has {names}")
        return chosen


def masked(opt: Optimizer, where: Where) -> Masked:
    """Return an optimizer that trains the selected parameters and leaves the others as they are.

    Its state is that of ``opt`` for the selected ones. Unlike frozen parameters, those that are not selected have gradients.

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


def first_names(names: Iterable[str]) -> str:
    """Return the first names for a message."""
    shown = [*map(repr, names)]
    return ", ".join(shown[:8] + ["..."] * (len(shown) > 8))
