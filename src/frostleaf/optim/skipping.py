"""An optimizer that skips steps whose gradients are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..core.fields import buffer
from ..nn.shards import groups_of
from ..transforms.collectives import all_min, exchanged_since, tokens
from ..transforms.group import Group
from ..tree.functions import leaves
from .contents import renewed
from .optimizer import Optimizer, State, require_optimizer
from .parameters import Parameters
from .wrapper import StatefulWrapper, arrays_where, tree_where


class SkipState(State):
    """What :func:`skip_nonfinite` remembers.

    Attributes:
        inner: The state of the optimizer.
        skipped: The number of steps that were skipped, uint32, shape ().

    >>> import frostleaf as fl
    >>> fl.optim.skip_nonfinite(fl.optim.SGD(0.1)).init(fl.nn.Linear(2, 1)).skipped
    array(0, dtype=uint32)
    """

    inner: Any = buffer()
    skipped: mx.array = buffer()


class SkipNonfinite(StatefulWrapper):
    """An optimizer that skips steps whose gradients are not finite, as made by :func:`skip_nonfinite`.

    >>> import frostleaf as fl
    >>> type(fl.optim.skip_nonfinite(fl.optim.SGD(0.1))).__name__
    'SkipNonfinite'
    """

    __state__ = SkipState

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def _init(self, parameters: Parameters) -> SkipState:
        return SkipState(self.optimizer._init(parameters), mx.array(0, mx.uint32))

    def _update(
        self, parameters: Parameters, gradients: Mapping[str, mx.array], state: SkipState
    ) -> tuple[dict[str, mx.array], SkipState]:
        finite, before = all_finite(gradients), tokens()
        new, inner = self.optimizer._update(parameters, gradients, state.inner)
        group = exchanged_since(before)
        if group is not None:  # each rank has seen its own gradients, and all take the same step
            finite = _on_all(finite, group)
        skipped = state.skipped + mx.where(finite, 0, 1).astype(mx.uint32)
        after = renewed(state, inner=tree_where(finite, inner, state.inner), skipped=skipped)
        return arrays_where(finite, new, parameters.arrays), after

    def _adapt(self, state: SkipState, parameters: Parameters) -> SkipState:
        return SkipState(self.optimizer._adapt(state.inner, parameters), state.skipped)


def skip_nonfinite(opt: Optimizer) -> SkipNonfinite:
    """Return an optimizer that skips a step, and counts it, if a gradient holds an infinity or a NaN.

    A skipped step changes nothing but the count, ``state.skipped``. This is for half precision, where gradients may overflow;
    see :class:`DynamicLossScale`. Around an optimizer that averages gradients over ranks, all skip a step if one does.

    Args:
        opt: Any optimizer.

    Raises:
        TypeError: If ``opt`` is something else.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt, w = fl.optim.skip_nonfinite(fl.optim.SGD(1.0)), mx.array(2.0)
    >>> w, state = opt.update(w, mx.array(float("nan")), opt.init(w))
    >>> w, state.skipped, state.inner.step
    (array(2, dtype=float32), array(1, dtype=uint32), array(0, dtype=uint64))
    """
    require_optimizer(opt, "skip_nonfinite")
    return SkipNonfinite(opt)


def all_finite(tree: Any) -> mx.array:
    """Return whether a tree is free of infinities and NaNs, as a boolean array of shape ().

    If modules in it hold shards of larger arrays, whether those of all ranks are, on all ranks.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.optim.all_finite({"a": mx.ones(2), "b": mx.array(1) / 0})
    array(False, dtype=bool)
    """
    found = [mx.isfinite(leaf).all() for leaf in leaves(tree)]
    finite = mx.stack(found).all() if found else mx.array(True)
    for group in dict.fromkeys([group for groups in groups_of(tree) for group in groups or ()]):
        finite = _on_all(finite, group)
    return finite


def _on_all(finite: mx.array, group: Group) -> mx.array:
    return all_min(finite.astype(mx.uint8), group).astype(mx.bool_)
