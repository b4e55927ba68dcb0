"""Optimizers around another optimizer, to which they delegate what they don't do themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

import mlx.core as mx

from ..core.structure import flat_of, unflatten_late
from ..tree.functions import map as tree_map
from .optimizer import Optimizer
from .parameters import Parameters

T = TypeVar("T")


OF_THE_INNER = (
    "keep the optimizer inside, sharded = fl.optim.shard(...): sharded.gather(state) and sharded.scatter(state) in a chain, "
    "and in accumulate, ema and the like state.replace(inner=sharded.gather(state.inner))"
)


class Wrapper(Optimizer):
    """An optimizer around another, with the state of the other."""

    optimizer: Optimizer

    def _init(self, parameters: Parameters) -> Any:
        return self.optimizer._init(parameters)

    def _update(self, parameters: Parameters, gradients: Mapping[str, mx.array], state: Any) -> tuple[dict[str, mx.array], Any]:
        return self.optimizer._update(parameters, gradients, state)

    def _differences(self, parameters: Parameters, state: Any) -> Iterator[str]:
        return self.optimizer._differences(parameters, state)

    def _adapt(self, state: Any, parameters: Parameters) -> Any:
        return self.optimizer._adapt(state, parameters)

    def _averaged(self, parameters: Parameters, state: Any) -> Mapping[str, mx.array]:
        return self.optimizer._averaged(parameters, state)

    def _learning_rate(self, state: Any) -> mx.array:
        return self.optimizer._learning_rate(state)

    def _hyperparameters(self, state: Any) -> Collection[str]:
        return self.optimizer._hyperparameters(state)

    def _with_hyperparameters(self, state: Any, values: Mapping[str, Any]) -> Any:
        return self.optimizer._with_hyperparameters(state, values)

    def _not_elementwise(self) -> Iterator[Any]:
        return self.optimizer._not_elementwise()

    def _averaging(self) -> str | None:
        return self.optimizer._averaging()

    @classmethod
    def _instead_of_reading(cls, name: str) -> str | None:
        return OF_THE_INNER if name in ("gather", "scatter") else super()._instead_of_reading(name)

    def _require_averaged(self) -> None:
        self.optimizer._require_averaged()

    def _require_state(self, state: Any, method: str) -> None:
        self.optimizer._require_state(state, method)


class StatefulWrapper(Wrapper):
    """An optimizer around another, with a ``__state__`` of its own, which has the state of the other as ``inner``."""

    def _differences(self, parameters: Parameters, state: Any) -> Iterator[str]:
        return self.optimizer._differences(parameters, state.inner)

    def _averaged(self, parameters: Parameters, state: Any) -> Mapping[str, mx.array]:
        return self.optimizer._averaged(parameters, state.inner)

    def _learning_rate(self, state: Any) -> mx.array:
        return self.optimizer._learning_rate(state.inner)

    def _hyperparameters(self, state: Any) -> Collection[str]:
        return self.optimizer._hyperparameters(state.inner)

    def _with_hyperparameters(self, state: Any, values: Mapping[str, Any]) -> Any:
        return state.replace(inner=self.optimizer._with_hyperparameters(state.inner, values))

    def _require_state(self, state: Any, method: str) -> None:
        Optimizer._require_state(self, state, method)
        self.optimizer._require_state(state.inner, method)


def arrays_where(condition: mx.array, x: Mapping[str, mx.array], y: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """As :func:`tree_where`, of arrays by name."""
    return {name: mx.where(condition, array, y[name]) for name, array in x.items()}


def tree_where(condition: mx.array, x: T, y: T) -> T:
    """Return ``x`` if a boolean scalar is true, else ``y``: two trees of one structure.

    A compiled step computes the condition when it runs, so a branch would not do.
    """
    one, other = flat_of(x), flat_of(y)
    if one.structure != other.structure:
        return tree_map(lambda left, right: mx.where(condition, left, right), x, y)
    leaves = [mx.where(condition, left, right) for left, right in zip(one.leaves, other.leaves, strict=True)]
    signature = one.signature if one.signature == other.signature else None
    return unflatten_late(one.structure, leaves, signature)  # type: ignore[no-any-return]
