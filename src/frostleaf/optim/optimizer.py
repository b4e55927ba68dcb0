"""MLX's optimizers as values: the rule is MLX's, the state is a tree that is passed in and returned."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import mlx.core as mx
import mlx.optimizers

from ..display.text import text
from ..edits.freezing import trainable
from ..fields import buffer, static
from ..module import Module
from ..node import Node
from ..tree.compare import describe
from ..tree.structure import aligned, dotted, flatten, unflatten

T = TypeVar("T")

NOT_A_RULE = "an optimizer is made from a subclass of mlx.optimizers.Optimizer, and was given {given}"
NOTHING_TO_TRAIN = (
    "the {tree} given to {optimizer}.init has nothing to train: every parameter is frozen, or none is of a floating-point dtype"
)
OTHER_STATE = (
    "the state given to {optimizer}.update is for other parameters than the model has trainable: {differences}. If the model "
    "was frozen or changed since, make a new state with {optimizer}.init(model)"
)
NO_GRADIENT = "there is no gradient for {path!r}, which is trainable ({array}); the gradients have {given} there"
WRONG_SHAPE = "the gradient for {path!r} is {given}, and the parameter is {array}"


class OptimizerState(Module):
    """What an optimizer remembers: the number of steps, the hyperparameters that may change, and each parameter's own state.

    Attributes:
        step: Number of updates so far, uint64, shape ().
        hyperparameters: Scalars by MLX's names, such as ``"learning_rate"``.
        slots: For the dotted path of each trainable parameter, arrays by MLX's names, such as ``"m"`` and ``"v"``.
    """

    step: mx.array = buffer()
    hyperparameters: Mapping[str, mx.array] = buffer()
    slots: Mapping[str, Mapping[str, mx.array]] = buffer()


class Optimizer(Node):
    """An optimizer with one of MLX's update rules.

    It holds no arrays: the same value serves any number of models. The numbers are those that MLX computes, since each array is
    updated by the rule's own ``apply_single``.

    Args:
        rule: A subclass of ``mlx.optimizers.Optimizer``.
        *args, **kwargs: What its constructor takes.

    Raises:
        TypeError: If ``rule`` is something else, or doesn't take the arguments.

    >>> import frostleaf as fl, mlx.core as mx, mlx.optimizers
    >>> opt = fl.optim.Optimizer(mlx.optimizers.Lion, learning_rate=0.5)
    >>> params = {"w": mx.ones(2)}
    >>> opt.update(params, {"w": mx.array([1.0, -1.0])}, opt.init(params))[0]
    {'w': array([0.5, 1.5], dtype=float32)}
    """

    rule: type[mlx.optimizers.Optimizer] = static()
    options: Mapping[str, Any] = static()

    def __init__(self, rule: type[mlx.optimizers.Optimizer], *args: Any, **kwargs: Any) -> None:
        if not (isinstance(rule, type) and issubclass(rule, mlx.optimizers.Optimizer)):
            raise TypeError(NOT_A_RULE.format(given=describe(rule)))
        self.rule = rule
        self.options = dict(inspect.signature(rule).bind(*args, **kwargs).arguments)
        rule(**self.options)  # for what it raises, now rather than at the first update

    def __repr__(self) -> str:
        return text(self)

    def init(self, model: Any) -> OptimizerState:
        """Return the state with which to begin training a model.

        Args:
            model: A module, or any tree of arrays. State is made for the trainable floating-point leaves only.

        Raises:
            ValueError: If there are none.

        >>> import frostleaf as fl
        >>> sorted(fl.optim.AdamW(1e-3).init(fl.nn.Linear(2, 2)).slots["weight"])
        ['m', 'v']
        """
        rule = self._rule()
        slots: dict[str, dict[str, mx.array]] = {}
        for path, parameter in _trainable_leaves(model):
            rule.init_single(parameter, slots.setdefault(path, {}))
        if not slots:
            raise ValueError(NOTHING_TO_TRAIN.format(tree=type(model).__name__, optimizer=type(self).__name__))
        scalars = {name: value for name, value in rule.state.items() if name != "step"}
        return OptimizerState(step=rule.step, hyperparameters=scalars, slots=slots)

    def update(self, model: T, grads: Any, state: OptimizerState) -> tuple[T, OptimizerState]:
        """Return the model after one step, and the state after it.

        Args:
            model: The tree that ``state`` was made for.
            grads: Its gradients, as :func:`frostleaf.grad` returns them: an array for each trainable leaf, ``None`` elsewhere.
            state: As returned by :meth:`init`, or by the update before.

        Raises:
            ValueError: If the gradients or the state don't belong to the model; the message names paths.

        >>> import frostleaf as fl, mlx.core as mx
        >>> opt, params = fl.optim.SGD(0.5), {"w": mx.array(3.0)}
        >>> params, state = opt.update(params, {"w": mx.array(2.0)}, opt.init(params))
        >>> params, state.step
        ({'w': array(2, dtype=float32)}, array(1, dtype=uint64))
        """
        leaves, structure = flatten(model)
        names = [dotted(path) for path in structure.leaf_paths()]
        mask = trainable(model)
        gradients: dict[str, mx.array] = {}
        parameters: dict[str, mx.array] = {}
        for name, leaf, gradient, trains in zip(names, leaves, aligned(model, grads, "the gradient"), mask, strict=True):
            if trains:
                _check_gradient(name, leaf, gradient)
                gradients[name], parameters[name] = gradient, leaf
        if gradients.keys() != state.slots.keys():
            raise ValueError(
                OTHER_STATE.format(optimizer=type(self).__name__, differences=_differences(gradients, state.slots))
            )

        rule = self._rule()
        # Under a name of their own the parameters can be called anything, "step" and "learning_rate" included.
        slots = {name: dict(slot) for name, slot in state.slots.items()}
        rule.state = {"step": state.step, **state.hyperparameters, "slots": slots}
        updated = rule.apply_gradients({"slots": gradients}, {"slots": parameters})["slots"]
        scalars = {name: rule.state[name] for name in state.hyperparameters}
        after = OptimizerState(step=rule.step, hyperparameters=scalars, slots=rule.state["slots"])
        return unflatten(structure, [updated.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)]), after

    def _rule(self) -> mlx.optimizers.Optimizer:
        return self.rule(**self.options)


def wrap(rule: type[mlx.optimizers.Optimizer]) -> Callable[..., Optimizer]:
    """Return a constructor of optimizers with a rule of MLX's, or of your own.

    Args:
        rule: A subclass of ``mlx.optimizers.Optimizer`` that updates each array by itself, in ``apply_single``.

    Raises:
        TypeError: If ``rule`` is something else.

    >>> import frostleaf as fl, mlx.optimizers
    >>> Lion = fl.optim.wrap(mlx.optimizers.Lion)
    >>> Lion(1e-4)
    Optimizer(rule=Lion, options={'learning_rate': 0.0001})
    """
    if not (isinstance(rule, type) and issubclass(rule, mlx.optimizers.Optimizer)):
        raise TypeError(NOT_A_RULE.format(given=describe(rule)))
    return lambda *args, **kwargs: Optimizer(rule, *args, **kwargs)


def _trainable_leaves(tree: Any) -> list[tuple[str, mx.array]]:
    leaves, structure = flatten(tree)
    named = zip(structure.leaf_paths(), leaves, trainable(tree), strict=True)
    return [(dotted(path), leaf) for path, leaf, trains in named if trains]


def _check_gradient(name: str, leaf: mx.array, gradient: Any) -> None:
    if not isinstance(gradient, mx.array):
        raise ValueError(NO_GRADIENT.format(path=name, array=describe(leaf), given=describe(gradient)))
    if gradient.shape != leaf.shape:
        raise ValueError(WRONG_SHAPE.format(path=name, given=describe(gradient), array=describe(leaf)))


def _differences(trainable: Mapping[str, Any], remembered: Mapping[str, Any]) -> str:
    without = [f"{name!r} has no state" for name in trainable.keys() - remembered.keys()]
    stale = [f"{name!r} is not trainable" for name in remembered.keys() - trainable.keys()]
    found = sorted(without + stale)
    return ", ".join(found[:6]) + ", ..." * (len(found) > 6)
