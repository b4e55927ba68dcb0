"""MLX's update rules as optimizers: the rule is MLX's, the state is a tree that is passed in and returned."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers

from ..fields import buffer, static
from ..module import Module
from ..tree.compare import describe
from .optimizer import NOT_A_STATE, Optimizer
from .parameters import Parameters

NOT_A_RULE = "an optimizer is made from a subclass of mlx.optimizers.Optimizer, and was given {given}"
NO_RULE = "{rule} has no apply_single, the rule for one array. Several optimizers are put together by fl.optim.multi"
OTHER_RULE = "the state of {given}, where the rule is {expected}"
NOT_A_RATE = "the learning rate of {rule} is a number or a schedule (a function of the step), and was given as {given}"
NOT_A_SCHEDULE = (
    "the schedule of the learning rate of {rule} must return an mx.array of shape () for the step, which is one as well, and "
    "returned {given} for step 0"
)
TRACED = (
    "an optimizer is made of numbers, and was given an array that is still to be computed, as in fl.jit and fl.vmap. Make the "
    'optimizer outside, and put the learning rate in its state: state.at("hyperparameters.learning_rate").set(rate)'
)
NO_RATE = "{rule}({arguments}) has no learning rate: it computes its own"
PACKED = (
    "a packed model is trained by fl.optim.flatten(opt), which refuses rules that look at whole arrays, and not by opt itself"
)


class OptimizerState(Module):
    """What a rule remembers: the number of steps, the hyperparameters that may change, and each parameter's own state.

    Attributes:
        step: Number of updates so far, uint64, shape ().
        hyperparameters: Scalars by MLX's names, such as ``"learning_rate"``.
        slots: For the dotted path of each trainable parameter, arrays by MLX's names, such as ``"m"`` and ``"v"``.
        rule: The name of the rule that remembers this.
    """

    step: mx.array = buffer()
    hyperparameters: Mapping[str, mx.array] = buffer(cast=False)
    slots: Mapping[str, Mapping[str, mx.array]] = buffer()
    rule: str = static()


class Rule(Optimizer):
    """An optimizer with an update rule of MLX's, or of yours. :func:`wrap` makes the constructor of one.

    The numbers are those that MLX computes, since each array is updated by the rule's own ``apply_single``.

    Args:
        rule: A subclass of ``mlx.optimizers.Optimizer``.
        *args, **kwargs: What its constructor takes.

    Raises:
        TypeError: If ``rule`` is something else, or has no ``apply_single``, or doesn't take the arguments, or the learning
            rate is neither a number nor a schedule.
    """

    rule: type[mlx.optimizers.Optimizer] = static()
    args: tuple[Any, ...] = static()
    kwargs: Mapping[str, Any] = static()

    __state__ = OptimizerState

    def __init__(self, rule: type[mlx.optimizers.Optimizer], /, *args: Any, **kwargs: Any) -> None:
        _require_rule(rule)
        self.rule = rule
        signature = inspect.signature(rule)
        bound = signature.bind(*args, **kwargs)
        self.args = tuple(_number(value) for value in bound.args)
        self.kwargs = {name: _number(value) for name, value in bound.kwargs.items()}
        given = {**bound.arguments, **kwargs}
        if "learning_rate" in given:
            rate, parameter = given["learning_rate"], signature.parameters.get("learning_rate")
            if not callable(rate) and not _is_number(rate) and not (rate is None and parameter and parameter.default is None):
                raise TypeError(NOT_A_RATE.format(rule=rule.__name__, given=describe(rate)))
        first = _scalars(self._new_rule()).get("learning_rate", mx.array(0.0))
        if not isinstance(first, mx.array) or first.shape:
            raise TypeError(NOT_A_SCHEDULE.format(rule=rule.__name__, given=describe(first)))

    def _init(self, parameters: Parameters) -> OptimizerState:
        if parameters.packed:
            raise ValueError(PACKED)
        rule = self._new_rule()
        return OptimizerState(rule.step, _scalars(rule), _slots(rule, parameters.arrays), self.rule.__name__)

    def _update(
        self, parameters: Parameters, gradients: Mapping[str, mx.array], state: OptimizerState
    ) -> tuple[dict[str, mx.array], OptimizerState]:
        rule = self._new_rule()
        # Under a name of their own the parameters can be called anything, "step" and "learning_rate" included.
        slots = {name: dict(slot) for name, slot in state.slots.items()}
        rule.state = {"step": state.step, **state.hyperparameters, "slots": slots}
        arrays = {"slots": dict(parameters.arrays)}
        updated = rule.apply_gradients({"slots": dict(gradients)}, arrays).get("slots", {})
        scalars = {name: rule.state[name] for name in state.hyperparameters}
        return updated, OptimizerState(rule.step, scalars, rule.state["slots"], state.rule)

    def _differences(self, parameters: Parameters, state: OptimizerState) -> Iterator[str]:
        if parameters.packed:
            raise ValueError(PACKED)
        rule = self._new_rule()
        yield from _unlike("the optimizer", _scalars(rule), state.hyperparameters, any_dtype=True)
        expected = _slots(rule, parameters.arrays)
        yield from (f"{name!r} is not trainable" for name in state.slots.keys() - expected.keys())
        for name, slots in expected.items():
            if name in state.slots:
                yield from _unlike(repr(name), slots, state.slots[name])
            else:
                yield f"{name!r} has no state"

    def _adapt(self, state: OptimizerState, parameters: Parameters) -> OptimizerState:
        fresh = self._init(parameters)
        slots = {name: state.slots[name] if _alike(slot, state.slots.get(name)) else slot for name, slot in fresh.slots.items()}
        return OptimizerState(state.step, carried_scalars(fresh, state), slots, fresh.rule)

    def _learning_rate(self, state: OptimizerState) -> mx.array:
        try:
            return state.hyperparameters["learning_rate"]
        except KeyError:
            arguments = ", ".join([*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())])
            raise ValueError(NO_RATE.format(rule=self.rule.__name__, arguments=arguments)) from None

    def _require_state(self, state: Any, method: str) -> None:
        super()._require_state(state, method)
        require_rule_of(state, self, type(self).__name__, method)

    def _new_rule(self) -> mlx.optimizers.Optimizer:
        return self.rule(*self.args, **self.kwargs)


def wrap(rule: type[mlx.optimizers.Optimizer]) -> Callable[..., Rule]:
    """Return a constructor of optimizers with a rule of MLX's, or of your own.

    Args:
        rule: A subclass of ``mlx.optimizers.Optimizer`` that updates each array by itself, in ``apply_single``.

    Raises:
        TypeError: If ``rule`` is something else.

    >>> import frostleaf as fl, mlx.optimizers
    >>> Lion = fl.optim.wrap(mlx.optimizers.Lion)
    >>> Lion(1e-4)
    Rule(rule=Lion, args=(0.0001,), kwargs={})
    """
    _require_rule(rule)
    return lambda *args, **kwargs: Rule(rule, *args, **kwargs)


def carried_scalars(fresh: OptimizerState, state: OptimizerState) -> dict[str, mx.array]:
    """Return the hyperparameters of a fresh state, with the values that they have in another."""
    return {name: state.hyperparameters.get(name, value) for name, value in fresh.hyperparameters.items()}


def require_rule_of(state: OptimizerState, opt: Rule, name: str, method: str) -> None:
    """Raise a ``TypeError`` if the state is that of another rule. ``name`` is that of the optimizer in the message."""
    if state.rule != opt.rule.__name__:
        given = OTHER_RULE.format(given=state.rule, expected=opt.rule.__name__)
        raise TypeError(NOT_A_STATE.format(optimizer=name, method=method, given=given))


def _require_rule(rule: Any) -> None:
    if not (isinstance(rule, type) and issubclass(rule, mlx.optimizers.Optimizer)):
        raise TypeError(NOT_A_RULE.format(given=describe(rule)))
    if rule.apply_single is mlx.optimizers.Optimizer.apply_single:
        raise TypeError(NO_RULE.format(rule=rule.__name__))


def _is_number(value: Any) -> bool:
    number = _number(value)
    return isinstance(number, numbers.Real) and not isinstance(number, bool)


def _number(value: Any) -> Any:
    """Return a scalar array as the number that it is, since what an optimizer is made of is static."""
    if not isinstance(value, mx.array) or value.ndim:
        return value
    try:
        return value.item()
    except ValueError:
        raise TypeError(TRACED) from None


def _alike(fresh: Mapping[str, mx.array], old: Mapping[str, Any] | None) -> bool:
    return old is not None and {key: describe(each) for key, each in fresh.items()} == {
        key: describe(each) for key, each in old.items()
    }


def _slots(rule: mlx.optimizers.Optimizer, arrays: Mapping[str, mx.array]) -> dict[str, dict[str, mx.array]]:
    """Return what the rule remembers of each parameter to begin with. Nothing is computed until it is used."""
    slots: dict[str, dict[str, mx.array]] = {}
    for name, array in arrays.items():
        rule.init_single(array, slots.setdefault(name, {}))
    return slots


def _scalars(rule: mlx.optimizers.Optimizer) -> dict[str, mx.array]:
    return {name: value for name, value in rule.state.items() if name != "step"}


def _unlike(what: str, expected: Mapping[str, mx.array], given: Mapping[str, Any], any_dtype: bool = False) -> Iterator[str]:
    """Yield in words how what is remembered differs from what is expected."""
    if expected.keys() != given.keys():
        yield f"{what} remembers {_listed(expected)} and the state has {_listed(given)}"
        return
    for name, array in expected.items():
        value = given[name]
        fits = any_dtype and isinstance(value, mx.array) and value.shape == array.shape
        if not fits and describe(array) != describe(value):
            yield f"{name} of {what} is {describe(array)} and the state has {describe(value)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
