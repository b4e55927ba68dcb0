"""MLX's optimizers as values: the rule is MLX's, the state is a tree that is passed in and returned."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import mlx.core as mx
import mlx.optimizers

from ..display.text import text
from ..edits.freezing import trainable
from ..fields import buffer, static
from ..module import Module
from ..node import Node
from ..tree.compare import describe
from ..tree.functions import aligned, dotted, flatten, unflatten
from ..tree.structure import parts_of
from .packing import Packed

T = TypeVar("T")

NOT_A_RULE = "an optimizer is made from a subclass of mlx.optimizers.Optimizer, and was given {given}"
NOTHING_TO_TRAIN = (
    "the {tree} given to {optimizer}.init has nothing to train: every parameter is frozen, or none is of a floating-point dtype"
)
NOT_A_STATE = "{optimizer}.update takes the state that {optimizer}.init(model) returns, and was given {given}"
OTHER_STATE = (
    "the state given to {optimizer}.update is not the state of this optimizer and model: {differences}. If the model was "
    "frozen or changed since, make a new state with {optimizer}.init(model)"
)
SAME_NAME = "two parameters have the name {name!r}, so that an optimizer can't tell them apart: rename a key of a dict"
PACKED = (
    "a packed model is trained by fl.optim.flatten(opt), which knows what may be done to packed arrays, and not by opt itself"
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
    args: tuple[Any, ...] = static()
    kwargs: Mapping[str, Any] = static()

    def __init__(self, rule: type[mlx.optimizers.Optimizer], /, *args: Any, **kwargs: Any) -> None:
        if not (isinstance(rule, type) and issubclass(rule, mlx.optimizers.Optimizer)):
            raise TypeError(NOT_A_RULE.format(given=describe(rule)))
        self.rule = rule
        bound = inspect.signature(rule).bind(*args, **kwargs)
        self.args = tuple(_number(value) for value in bound.args)
        self.kwargs = {name: _number(value) for name, value in bound.kwargs.items()}
        self._new_rule()  # for what it raises, now rather than at the first update

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
        rule = self._new_rule()
        slots = _slots(rule, _trainable_leaves(model))
        if not slots:
            raise ValueError(NOTHING_TO_TRAIN.format(tree=type(model).__name__, optimizer=type(self).__name__))
        return OptimizerState(step=rule.step, hyperparameters=_scalars(rule), slots=slots)

    def update(self, model: T, grads: Any, state: OptimizerState) -> tuple[T, OptimizerState]:
        """Return the model after one step, and the state after it.

        Args:
            model: The tree that ``state`` was made for.
            grads: Its gradients, as :func:`frostleaf.grad` returns them: an array for each trainable leaf, ``None`` elsewhere.
            state: As returned by :meth:`init`, or by the update before.

        Raises:
            TypeError: If ``state`` is not the state of an optimizer.
            ValueError: If the gradients or the state don't belong to the model, or the state is for another rule; the message
                names paths.

        >>> import frostleaf as fl, mlx.core as mx
        >>> opt, params = fl.optim.SGD(0.5), {"w": mx.array(3.0)}
        >>> params, state = opt.update(params, {"w": mx.array(2.0)}, opt.init(params))
        >>> params, state.step
        ({'w': array(2, dtype=float32)}, array(1, dtype=uint64))
        """
        if not isinstance(state, OptimizerState):
            raise TypeError(NOT_A_STATE.format(optimizer=type(self).__name__, given=describe(state)))
        rule = self._new_rule()
        parameters = dict(_trainable_leaves(model))
        expected = {"": _scalars(rule), **_slots(rule, parameters.items())}
        differences = _differences(expected, {"": state.hyperparameters, **state.slots})
        if differences:
            raise ValueError(OTHER_STATE.format(optimizer=type(self).__name__, differences=differences))
        leaves, structure = flatten(model)
        names = [dotted(path) for path in structure.leaf_paths()]
        named = zip(names, aligned(model, grads, "the gradient"), strict=True)
        gradients = {name: gradient for name, gradient in named if name in parameters}
        for name, parameter in parameters.items():
            check_gradient(name, parameter, gradients[name])

        # Under a name of their own the parameters can be called anything, "step" and "learning_rate" included.
        slots = {name: dict(slot) for name, slot in state.slots.items()}
        rule.state = {"step": state.step, **state.hyperparameters, "slots": slots}
        updated = rule.apply_gradients({"slots": gradients}, {"slots": parameters})["slots"]
        scalars = {name: rule.state[name] for name in state.hyperparameters}
        after = OptimizerState(step=rule.step, hyperparameters=scalars, slots=rule.state["slots"])
        return unflatten(structure, [updated.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)]), after

    def _new_rule(self) -> mlx.optimizers.Optimizer:
        return self.rule(*self.args, **self.kwargs)


def wrap(rule: type[mlx.optimizers.Optimizer]) -> Callable[..., Optimizer]:
    """Return a constructor of optimizers with a rule of MLX's, or of your own.

    Args:
        rule: A subclass of ``mlx.optimizers.Optimizer`` that updates each array by itself, in ``apply_single``.

    Raises:
        TypeError: If ``rule`` is something else.

    >>> import frostleaf as fl, mlx.optimizers
    >>> Lion = fl.optim.wrap(mlx.optimizers.Lion)
    >>> Lion(1e-4)
    Optimizer(rule=Lion, args=(0.0001,), kwargs={})
    """
    if not (isinstance(rule, type) and issubclass(rule, mlx.optimizers.Optimizer)):
        raise TypeError(NOT_A_RULE.format(given=describe(rule)))
    return lambda *args, **kwargs: Optimizer(rule, *args, **kwargs)


def _number(value: Any) -> Any:
    """Return a scalar array as the number that it is, since what an optimizer is made of is static."""
    return value.item() if isinstance(value, mx.array) and value.ndim == 0 else value


def _trainable_leaves(tree: Any) -> list[tuple[str, mx.array]]:
    leaves, structure = flatten(tree)
    if any(type(shape) is tuple and shape[0] is Packed for _, shape in parts_of(structure.shape, ())):
        raise ValueError(PACKED)
    names = [dotted(path) for path in structure.leaf_paths()]
    if len(set(names)) < len(names):
        raise ValueError(SAME_NAME.format(name=Counter(names).most_common(1)[0][0]))
    return [(name, leaf) for name, leaf, trains in zip(names, leaves, trainable(tree), strict=True) if trains]


def _slots(rule: mlx.optimizers.Optimizer, parameters: Iterable[tuple[str, mx.array]]) -> dict[str, dict[str, mx.array]]:
    """Return what the rule remembers of each parameter to begin with. Nothing is computed until it is used."""
    slots: dict[str, dict[str, mx.array]] = {}
    for name, parameter in parameters:
        rule.init_single(parameter, slots.setdefault(name, {}))
    return slots


def _scalars(rule: mlx.optimizers.Optimizer) -> dict[str, mx.array]:
    return {name: value for name, value in rule.state.items() if name != "step"}


def check_gradient(name: str, leaf: mx.array, gradient: Any) -> None:
    """Raise a ``ValueError`` if this is no gradient for the leaf of that name."""
    if not isinstance(gradient, mx.array):
        raise ValueError(NO_GRADIENT.format(path=name, array=describe(leaf), given=describe(gradient)))
    if gradient.shape != leaf.shape:
        raise ValueError(WRONG_SHAPE.format(path=name, given=describe(gradient), array=describe(leaf)))


def _differences(expected: Mapping[str, Mapping[str, mx.array]], given: Mapping[str, Mapping[str, mx.array]]) -> str:
    """Return in words how a state differs from the one that the model and the rule ask for; nothing if it doesn't."""
    found = [f"{name!r} is not trainable" for name in given.keys() - expected.keys()]
    for name, slots in expected.items():
        what = repr(name) if name else "the optimizer"
        if name not in given:
            found.append(f"{what} has no state")
        elif slots.keys() != given[name].keys():
            found.append(f"{what} remembers {_listed(slots)} and the state has {_listed(given[name])}")
        else:
            found += [
                f"{slot} of {what} is {describe(array)} and the state has {describe(given[name][slot])}"
                for slot, array in slots.items()
                if describe(array) != describe(given[name][slot]) and (name or array.shape != given[name][slot].shape)
            ]
    found.sort()
    return "; ".join(found[:6]) + "; ..." * (len(found) > 6)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
