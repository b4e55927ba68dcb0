"""MLX's update rules as optimizers: the rule is MLX's, the state is a tree that is passed in and returned."""

from __future__ import annotations

import functools
import inspect
import numbers
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import mlx.optimizers

from ..core.fields import MEANING, buffer, static
from ..core.hidden import find_hidden
from ..core.instance import Instance
from ..core.structure import Structure, flat_of
from ..core.words import describe, level_of_caller
from ..nn.shards import told
from ..transforms.jit.passing import graph_of
from ..transforms.jit.standing import given_for
from .adapting import old_or_fresh
from .contents import Contents, Known, Slots, renewed, slots_of, static_in, take_apart
from .crossing import advice_on_rule
from .optimizer import NOT_A_STATE, Optimizer, State
from .parameters import Parameters

S = TypeVar("S", bound="OptimizerState")


class OtherHyperparametersWarning(UserWarning):
    """A state was used by an optimizer with other numbers than those that the state was made with, which it keeps.

    >>> import frostleaf as fl, mlx.core as mx, warnings
    >>> w = mx.array(1.0)
    >>> state = fl.optim.SGD(0.1).init(w)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = fl.optim.SGD(0.9).update(w, w, state)
    >>> print(caught[0].message)
    the state has learning_rate=0.1, which is used, and this SGD was made with learning_rate=0.9. Write state =
    optimizer.adapt(state, model) for the optimizer's, or state = optimizer.with_learning_rate(state, rate) for another.
    """


# The rules that update every number by itself, whatever array it is in.
ELEMENTWISE = {
    mlx.optimizers.SGD,
    mlx.optimizers.RMSprop,
    mlx.optimizers.Adagrad,
    mlx.optimizers.AdaDelta,
    mlx.optimizers.Adam,
    mlx.optimizers.AdamW,
    mlx.optimizers.Adamax,
    mlx.optimizers.Lion,
}

# Reading a signature takes longer than making a rule, and a rule is made twice in each update.
_signature: Any = functools.cache(inspect.signature)


class OptimizerState(State):
    """What an optimizer with a rule remembers: the number of steps, the hyperparameters, and arrays for each parameter.

    Attributes:
        step: Number of updates so far, uint64, shape ().
        hyperparameters: The scalars that may change, by MLX's names, such as ``"learning_rate"``.
        configured: In the order of their sorted names, what the optimizer or its schedule set them to. A scalar that is another
            by now was changed in the state.
        slots: For the dotted path of each trainable parameter, arrays by MLX's names, such as ``"m"`` and ``"v"``. MLX's rules
            have them in the dtype of the parameter, whatever that of the gradients.
        rule: The name of the rule.

    >>> import frostleaf as fl
    >>> state = fl.optim.SGD(0.1).init(fl.nn.Linear(2, 1))
    >>> state.step, list(state.hyperparameters), list(state.slots)
    (array(0, dtype=uint64), ['learning_rate'], ['weight', 'bias'])
    """

    step: mx.array = buffer()
    hyperparameters: Mapping[str, mx.array] = buffer(cast=False)
    configured: tuple[mx.array, ...] = buffer(cast=False)
    slots: Mapping[str, Mapping[str, mx.array]] = buffer(cast=True)  # as the parameters are
    rule: str = static(metadata={MEANING: True})


NOT_A_RATE = (
    "the learning rate of {rule} is a number or a schedule (a function of the step), and was given as {given}. The first "
    "argument is the learning rate; the model goes to init(model)"
)
NOT_A_SCHEDULE = (
    "the schedule of the learning rate of {rule} must return an mx.array of shape () for the step, which is one as well, and "
    "returned {given} for step 0. Write mx.array(rate), and mx.where(step < n, a, b) for an if"
)
SCHEDULED = (
    "the {name} of {optimizer} is on a schedule, which sets it in each step. Make another optimizer, with a number or another "
    "schedule, and go on from this state: state = other.adapt(state, model)"
)
NOT_A_VALUE = "{name} of {optimizer} is a number or an mx.array of shape (), and was given as {given}{advice}"
OTHER_VALUE = (
    "the state has {name}={value:.6g}, which is used, and this {rule} was made with {name}={own:.6g}. Write state = "
    "optimizer.adapt(state, model) for the optimizer's, or state = {change} for another."
)
A_SCHEDULE = ". For a schedule make another optimizer, and go on from this state: state = other.adapt(state, model)"
DIVIDED = (
    "{rule} looks at whole arrays, and {name} is a shard of one, of which each rank would have another. Train shards with a "
    "rule that updates every number by itself, as fl.optim.AdamW does; fl.optim.multi has a rule for each kind of parameter"
)
PACKED = (
    "a packed model is trained by fl.optim.flatten(opt), which refuses rules that look at whole arrays, and not by opt itself"
)


# The rules of MLX that do not update every number by itself.
_OF_WHOLE_ARRAYS = mlx.optimizers.Adafactor, mlx.optimizers.Muon


class Rule(Optimizer):
    """An optimizer with an update rule of MLX's or your own. :func:`wrap` returns its constructor for one rule.

    The numbers are those that MLX computes, since each array is updated by the rule's own ``apply_single``.

    Args:
        rule: A subclass of ``mlx.optimizers.Optimizer``.
        *args, **kwargs: The arguments of its constructor.

    Attributes:
        rule: The subclass.
        arguments: The arguments by name. Those that are in the state, such as the learning rate, are floats.

    Raises:
        TypeError: If ``rule`` is something else, or has no ``apply_single``, or doesn't take the arguments, or the learning
            rate is neither a number nor a schedule.

    >>> import frostleaf as fl, mlx.optimizers
    >>> fl.optim.Rule(mlx.optimizers.SGD, 0.1)
    Rule(SGD, learning_rate=0.1)
    """

    rule: type[mlx.optimizers.Optimizer] = static()
    arguments: Mapping[str, Any] = static()

    __state__ = OptimizerState

    def __init__(self, rule: type[mlx.optimizers.Optimizer], /, *args: Any, **kwargs: Any) -> None:
        _require_rule(rule)
        signature = _signature(rule)
        given = {**signature.bind(*args, **kwargs).arguments, **kwargs}
        if "learning_rate" in given:
            rate, parameter = given["learning_rate"], signature.parameters.get("learning_rate")
            is_default = rate is None and parameter and parameter.default is None
            if not is_default and not _is_number(rate) and not _is_schedule(rate):
                raise TypeError(NOT_A_RATE.format(rule=rule.__name__, given=describe(rate)))
        kwargs = {name: _number(value) for name, value in kwargs.items()}
        bound = signature.bind(*map(_number, args), **kwargs)
        scalars = _scalars(rule(*bound.args, **bound.kwargs))
        first = scalars.get("learning_rate", mx.array(0.0))
        if not isinstance(first, mx.array) or first.shape:
            raise TypeError(NOT_A_SCHEDULE.format(rule=rule.__name__, given=describe(first)))
        self.rule, self.arguments = rule, {name: _with_floats(name, each, scalars) for name, each in bound.arguments.items()}

    def _init(self, parameters: Parameters) -> OptimizerState:
        if parameters.is_packed:
            raise ValueError(PACKED)
        rule = self._new_rule()
        scalars = _scalars(rule)
        configured = tuple([scalars[name] for name in sorted(scalars)])
        empty = OptimizerState(rule.step, scalars, configured, {}, self.rule.__name__)
        return renewed(empty, slots=self._new_slots(rule, parameters))

    def _update(
        self, parameters: Parameters, gradients: Mapping[str, mx.array], state: OptimizerState
    ) -> tuple[dict[str, mx.array], OptimizerState]:
        rule, arrays, before = self._new_rule(), parameters.arrays, take_apart(state)
        if issubclass(self.rule, _OF_WHOLE_ARRAYS):
            _require_whole(self.rule, arrays)
        if arrays:
            _warn_of_other_values(rule, before)
        other_dtypes = gradients is not parameters.alike and any(
            gradients[name].dtype != dtype for name, (_, dtype) in zip(arrays, parameters.kinds, strict=True)
        )
        rule.state = {"step": before.step, **before.hyperparameters}
        updated, slots = _apply(rule, gradients, arrays, before.slots)
        if other_dtypes:  # the step was computed in the wider of the two
            updated, then = _in_dtypes_of(arrays, updated), dict(before.slots.items())
            slots = slots_of({name: _in_dtypes_of(then[name], slot) for name, slot in slots.items()})
        scalars = {name: rule.state[name] for name in before.hyperparameters}
        own = zip(sorted(scalars), before.configured, strict=True)
        configured = tuple([scalars[name] if name in rule._schedulers else value for name, value in own])
        after = Contents(rule.step, scalars, configured, slots)
        made = self._known().put_together(state, after, parameters.kinds, other_dtypes)
        if made is None:
            made = OptimizerState(*after[:-1], dict(slots.items()), self.rule.__name__)
        return updated, made

    def _differences(self, parameters: Parameters, state: OptimizerState) -> Iterator[str]:
        if parameters.is_packed:
            raise ValueError(PACKED)
        if self._known().fits(state, parameters.names, parameters.kinds, lambda: _scalars(self._new_rule())):
            return
        rule = self._new_rule()
        yield from _slot_differences("the optimizer", _scalars(rule), state.hyperparameters, any_dtype=True)
        expected = self._new_slots(rule, parameters)
        yield from (f"{name!r} is not trainable" for name in state.slots.keys() - expected.keys())
        for name, slots in expected.items():
            if name in state.slots:
                yield from _slot_differences(repr(name), slots, state.slots[name])
            else:
                yield f"{name!r} has no state"

    def _new_slots(self, rule: mlx.optimizers.Optimizer, parameters: Parameters) -> dict[str, dict[str, mx.array]]:
        """Return what the rule remembers of each parameter at first. Nothing is computed until it is used."""
        slots: dict[str, dict[str, mx.array]] = {}
        for name, array in parameters.arrays.items():
            rule.init_single(array, slots.setdefault(name, {}))
        self._known().learn(parameters.kinds, slots.values())
        return slots

    def _known(self) -> Known:
        return flat_of(self).structure.remember(Known)

    def _adapt(self, state: OptimizerState, parameters: Parameters) -> OptimizerState:
        fresh = self._carried(self._init(parameters), state)
        slots = dict(fresh.slots)
        for name in slots.keys() & state.slots.keys():
            if not any(_slot_differences(name, slots[name], state.slots[name], any_dtype=True)):
                slots[name] = {key: old_or_fresh(state.slots[name][key], array) for key, array in slots[name].items()}
        return fresh.replace(slots=slots)

    def _carried(self, fresh: S, state: OptimizerState) -> S:
        """Return a fresh state with the step of another, and its hyperparameters unless this optimizer's are new."""
        scheduled = self._new_rule()._schedulers
        values, configured = dict(fresh.hyperparameters), []
        then = dict(zip(sorted(state.hyperparameters), state.configured, strict=True))
        for name, own in sorted(values.items()):
            value = state.hyperparameters.get(name)
            if name in scheduled and value is not None:
                values[name] = own = value  # that of the last step; the schedule sets the next
            elif isinstance(value, mx.array):  # anything else is refused by the next update
                same = own == then[name]
                values[name], own = _either(same, value, own), _either(same, then[name], own)
            configured.append(own)
        return fresh.replace(step=state.step, hyperparameters=values, configured=tuple(configured))

    def _hyperparameters(self, state: OptimizerState) -> Collection[str]:
        return state.hyperparameters.keys()

    def _with_hyperparameters(self, state: S, values: Mapping[str, Any]) -> S:
        rule = self._new_rule()
        new, then = dict(state.hyperparameters), dict(zip(sorted(state.hyperparameters), state.configured, strict=True))
        for name, value in values.items():
            if name in rule._schedulers:
                raise ValueError(SCHEDULED.format(name=name, optimizer=describe(self)))
            new[name] = _like(new[name], value, name, self)
            # From here on the state is this optimizer's, with another value.
            then[name] = _either(then[name] == rule.state[name], then[name], rule.state[name])
        return state.replace(hyperparameters=new, configured=tuple(then.values()))

    def _learning_rate(self, state: OptimizerState) -> mx.array:
        try:
            return state.hyperparameters["learning_rate"]
        except KeyError:
            raise ValueError(f"{self!r} has no learning rate: it computes its own") from None

    def _not_elementwise(self) -> Iterator[Any]:
        if self.rule not in ELEMENTWISE:
            yield self

    def _require_state(self, state: Any, method: str) -> None:
        super()._require_state(state, method)
        require_rule_of(state, self, type(self).__name__, method)

    def _new_rule(self) -> mlx.optimizers.Optimizer:
        args, kwargs = flat_of(self).structure.remember(_arguments)
        return self.rule(*args, **kwargs)

    def _shown_fields(self) -> Iterator[tuple[str, Any]]:
        if type(self) is Rule:
            yield "", self.rule
        for name, value in self.arguments.items():
            kind = _signature(self.rule).parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                yield from value.items()
            else:
                yield "*" if kind is inspect.Parameter.VAR_POSITIONAL else name, value


def _require_whole(rule: type, names: Iterable[str]) -> None:
    """Raise a ``ValueError`` if one of the parameters of an update is a shard of a larger array."""
    groups = told.get()
    for name in names:
        if any(group.size() > 1 for group in groups.get(name, ())):
            raise ValueError(DIVIDED.format(rule=rule.__name__, name=name))


def _arguments(structure: Structure) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return with which arguments an optimizer calls the constructor of its rule."""
    static = structure.spec[1].static
    bound = inspect.BoundArguments(_signature(static["rule"]), dict(static["arguments"]))
    return bound.args, bound.kwargs


def wrap(rule: type[mlx.optimizers.Optimizer]) -> Callable[..., Rule]:
    """Return a constructor of optimizers with a rule of MLX's or your own.

    Args:
        rule: A subclass of ``mlx.optimizers.Optimizer`` that updates each array by itself, in ``apply_single``.

    Raises:
        TypeError: If ``rule`` is something else.

    >>> import frostleaf as fl, mlx.optimizers
    >>> Lion = fl.optim.wrap(mlx.optimizers.Lion)
    >>> Lion(1e-4)
    Rule(Lion, learning_rate=0.0001)
    """
    _require_rule(rule)
    return functools.partial(Rule, rule)


def require_rule_of(state: OptimizerState, opt: Rule, name: str, method: str) -> None:
    """Raise a ``TypeError`` if the state is that of another rule. The message calls the optimizer ``name``."""
    rule = static_in(state, "rule")
    if rule != opt.rule.__name__:
        given = f"the state of {rule}, where the rule is {opt.rule.__name__}"
        given += advice_on_rule(rule, opt.rule.__name__) if method == "adapt" else ""
        raise TypeError(NOT_A_STATE.format(optimizer=name, method=method, given=given))


def _require_rule(rule: Any) -> None:
    if not (isinstance(rule, type) and issubclass(rule, mlx.optimizers.Optimizer)):
        is_instance = isinstance(rule, mlx.optimizers.Optimizer)
        advice = f". Give its class, then hyperparameters: fl.optim.wrap({type(rule).__name__})(...)" if is_instance else ""
        given = f"and was given {describe(rule)}{advice}"
        raise TypeError(f"an optimizer is made from a subclass of mlx.optimizers.Optimizer, {given}")
    if rule.apply_single is mlx.optimizers.Optimizer.apply_single:
        shown = f"{rule.__name__} has no apply_single, the rule for one array"
        raise TypeError(f"{shown}. Several optimizers are put together by fl.optim.multi")


def _is_number(value: Any) -> bool:
    number = _number(value)
    return isinstance(number, numbers.Real) and not isinstance(number, bool)


def _is_schedule(value: Any) -> bool:
    """Return whether a value can be called, and is no model."""
    return callable(value) and not (isinstance(value, Instance | Mapping) and find_hidden(value))


TRACED = (
    "an optimizer is made of numbers, and was given an array that is still to be computed, as in fl.jit and fl.vmap. Make the "
    "optimizer outside, and put the learning rate in its state: state = opt.with_learning_rate(state, rate)"
)
DIFFERENTIATED = (
    "an optimizer is made of numbers, and was given an array with respect to which fl.grad differentiates: its gradient would "
    "be 0. Make the optimizer outside, and put the learning rate in its state: state = opt.with_learning_rate(state, rate). If "
    "no gradient is wanted, give rate.item()"
)


def _number(value: Any) -> Any:
    """Return the number in a scalar array, and anything else as it is: the arguments of an optimizer are static."""
    if not isinstance(value, mx.array) or value.ndim:
        return value
    try:
        number = value.item()
    except ValueError:
        raise TypeError(TRACED) from None
    if _is_differentiated(value):
        raise TypeError(DIFFERENTIATED)
    return number


def _is_differentiated(array: mx.array) -> bool:
    """Return whether an array is computed from what a running ``fl.grad`` differentiates with respect to.

    MLX forgets from what an array with a value was computed, unless a gradient may yet flow through it.
    """
    probe = mx.contiguous(array)
    mx.eval(probe)
    graph = graph_of([probe])
    return "->" in graph and "StopGradient" not in graph


def _with_floats(name: str, value: Any, scalars: Mapping[str, Any]) -> Any:
    """Return an argument, or those in a dict of them, with a float for each number that a rule keeps in its state.

    MLX would keep an integer as an int32, which becomes 0 where it is set to a half.
    """
    if isinstance(value, dict):
        return {each: _with_floats(each, given, scalars) for each, given in value.items()}
    return float(value) if name in scalars and _is_number(value) else value


def _like(old: mx.array, value: Any, name: str, opt: Rule) -> mx.array:
    """Return a new value for a hyperparameter in the shape and dtype that it has, unless that is one of integers."""
    if not (isinstance(value, mx.array) and value.shape in ((), old.shape)) and not _is_number(value):
        advice = A_SCHEDULE if callable(value) else ""
        raise TypeError(NOT_A_VALUE.format(name=name, optimizer=describe(opt), given=describe(value), advice=advice))
    dtype = old.dtype if mx.issubdtype(old.dtype, mx.floating) else mx.result_type(old, mx.array(value))
    return mx.broadcast_to(mx.array(value, dtype), old.shape)


def _warn_of_other_values(rule: mlx.optimizers.Optimizer, state: Contents) -> None:
    """Warn if the state was made with other numbers than a rule that is new. A schedule sets its own in each step."""
    for name, configured in zip(sorted(state.hyperparameters), state.configured, strict=True):
        if name in rule._schedulers:
            continue
        own, then = rule.state[name], given_for(configured)
        try:
            differs = own.item() != then.item() and own.astype(then.dtype).item() != then.item()
            value = given_for(state.hyperparameters[name]).item() if differs else None
        except ValueError:  # of several members, or still to be computed
            continue
        if differs and value != own.item():
            call = "with_learning_rate(state, rate)" if name == "learning_rate" else f"with_hyperparameters(state, {name}=...)"
            shown = {"name": name, "value": value, "own": own.item(), "rule": type(rule).__name__}
            message = OTHER_VALUE.format(**shown, change=f"optimizer.{call}")
            warnings.warn(message, OtherHyperparametersWarning, stacklevel=level_of_caller())


def _either(condition: mx.array, x: mx.array, y: mx.array) -> mx.array:
    """Return ``x`` itself or ``y`` itself, or their mixture while the condition is still to be computed."""
    try:
        return x if condition.item() else y
    except ValueError:
        return mx.where(condition, x, y)


def _in_dtypes_of(old: Mapping[str, mx.array], new: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return new arrays cast to the dtypes of the old ones of the same names."""
    return {name: array.astype(old[name].dtype) for name, array in new.items()}


def _apply(
    rule: mlx.optimizers.Optimizer, gradients: Mapping[str, mx.array], arrays: Mapping[str, mx.array], slots: Slots
) -> tuple[dict[str, mx.array], Slots]:
    """Return the arrays and what is remembered of them after a step with the rule, which has the rest of its state."""
    if type(rule).apply_gradients is not mlx.optimizers.Optimizer.apply_gradients:
        # Inside "slots" a parameter can have any name, "step" and "learning_rate" included.
        rule.state["slots"] = dict(slots.items())
        new = rule.apply_gradients({"slots": dict(gradients)}, {"slots": dict(arrays)}).get("slots", {})
        return new, slots_of(rule.state["slots"])
    # MLX walks through nested dicts to call apply_single. Without any it counts the step and follows the schedules.
    rule.apply_gradients({}, {})
    updated: dict[str, mx.array] = {}
    keys: list[tuple[str, ...]] = []
    leaves: list[mx.array] = []
    beside = (_in_order(each, slots.names) for each in (gradients, arrays))
    for (name, slot), gradient, array in zip(slots.items(), *beside, strict=True):
        updated[name] = rule.apply_single(gradient, array, slot)
        keys.append((*slot,))
        leaves += slot.values()
    return updated, Slots(slots.names, keys, leaves)


def _in_order(arrays: Mapping[str, mx.array], names: Sequence[str]) -> Collection[mx.array]:
    """Return arrays in the order of the names, which most often is their own: then no name is looked up."""
    return arrays.values() if [*arrays] == [*names] else [arrays[name] for name in names]


def _scalars(rule: mlx.optimizers.Optimizer) -> dict[str, mx.array]:
    return {name: value for name, value in rule.state.items() if name != "step"}


def _slot_differences(
    what: str, expected: Mapping[str, mx.array], given: Mapping[str, Any], any_dtype: bool = False
) -> Iterator[str]:
    """Yield in words how the arrays that are remembered differ from those expected."""
    if expected.keys() != given.keys():
        yield f"{what} remembers {_listed(expected)} and the state has {_listed(given)}"
        return
    for name, array in expected.items():
        value = given[name]
        if not isinstance(value, mx.array) or value.shape != array.shape or not (any_dtype or value.dtype == array.dtype):
            yield f"{name} of {what} is {describe(array)} and the state has {describe(value)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
