"""What every optimizer does: it takes a model, its gradients and a state, and returns a model and a state."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Collection, Iterator, Mapping
from itertools import compress
from typing import Any, ClassVar, Protocol, TypeVar

import attrs
import mlx.core as mx

from ..core.definition import Node
from ..core.dropped import returns_copy
from ..core.fields import is_bare
from ..core.leaves import leaf_flags
from ..core.shapes import ShapeDtypeStruct
from ..core.structure import Signature, flat_of
from ..core.words import describe, listed
from ..display.text import text
from ..edits.freezing import unfrozen
from ..module import Module
from .agreeing import Given, agreed_update, settling
from .crossing import advice_on_state
from .last import Last
from .parameters import Parameters, parameters_of, telling, with_gradients, with_parameters

T = TypeVar("T")
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


class _Beginning(Protocol[S_co]):
    """What :meth:`Optimizer.init` needs of an optimizer, whose ``_init`` says of which class its states are."""

    def _init(self, parameters: Parameters) -> S_co: ...

    def _parameters(self, model: Any, method: str) -> Parameters: ...

    def _require_averaged(self) -> None: ...


class SharedArrayWarning(UserWarning):
    """A model given to an optimizer has one array at several places that are not tied.

    >>> import frostleaf as fl, mlx.core as mx, warnings
    >>> w = mx.array(1.0)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = fl.optim.SGD(0.1).init({"a": w, "b": w})
    >>> caught[0].category.__name__
    'SharedArrayWarning'
    """


class UntrainedParameterWarning(UserWarning):
    """A model given to an optimizer has an array of integers where a parameter is expected, or of complex numbers.

    Optimizers train floating-point arrays only.

    >>> import frostleaf as fl, mlx.core as mx, warnings
    >>> layer = fl.nn.Linear(2, 2).at("bias").set(mx.array([0, 1]))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = fl.optim.SGD(0.1).init(layer)
    >>> caught[0].category.__name__
    'UntrainedParameterWarning'
    """


NOTHING_TO_TRAIN = (
    "the {tree} given to {optimizer}.{method} has nothing to train: every parameter is frozen, or none is of a floating-point "
    "dtype"
)
NO_NUMBERS = (
    "the {tree} given to {optimizer}.{method} has no numbers: {name!r} is a ShapeDtypeStruct. Give a model of arrays, or for "
    "the shapes alone write fl.eval_shape(optimizer.init, model)"
)
NOT_A_STATE = "{optimizer}.{method} takes the state that {optimizer}.init(model) returns, and was given {given}"
OTHER_STATE = (
    "the state given to {optimizer}.{method} is not the state of this optimizer and model: {differences}. If the model was "
    "frozen or changed since, carry over what still applies with {optimizer}.adapt(state, model)"
)
NOT_IN_STATE = (
    "{name} is not in the state of {optimizer}, which has {names}. Make another optimizer with it, and go on from this state: "
    "state = other.adapt(state, model)"
)


NO_AVERAGE = "{optimizer} keeps no average of the model: fl.optim.ema(opt, decay) makes an optimizer that does"
NEVER_CHANGES = (
    "an optimizer never changes, and what it remembers is in the state. Write state = optimizer.with_learning_rate(state, rate)"
    ", or make another optimizer and go on with state = other.adapt(state, model)."
)
INSTEAD = {
    "state": "what it remembers is a value of its own. Write state = opt.init(model)",
    "apply_gradients": "write model, state = opt.update(model, grads, state), with state = opt.init(model) at first",
    "step": "write model, state = opt.update(model, grads, state). The state counts the steps",
    "zero_grad": "gradients are values, so there are none to set to zero",
}
NO_STATE = (
    "{optimizer}.update takes the model, its gradients and the state, and returns the model and the state: an optimizer "
    "remembers nothing. Write state = opt.init(model) once, and model, state = opt.update(model, grads, state) in each step"
)
RATE_OF_STATE = "write opt.learning_rate(state), with the optimizer of this state"
IN_THE_STATE = (
    "a state never changes. Write state = optimizer.with_learning_rate(state, rate), with the optimizer of this state."
)


# The default of an argument that must be given, so that its message can say what to write.
_MISSING: Any = attrs.NOTHING


class State(Module):
    """The base of what optimizers remember."""

    @classmethod
    def _instead_of_setting(cls, name: str) -> str:
        return IN_THE_STATE if name == "learning_rate" else super()._instead_of_setting(name)

    @classmethod
    def _instead_of_reading(cls, name: str) -> str | None:
        return RATE_OF_STATE if name == "learning_rate" else super()._instead_of_reading(name)


class Optimizer(Node):
    """The base of all optimizers.

    An optimizer holds no arrays and never changes, so one value serves any number of models. What it remembers is a tree that
    is passed in and returned. A new kind of optimizer is a subclass that defines the methods below whose names begin with an
    underscore, which are given arrays by name instead of a model.

    >>> import frostleaf as fl
    >>> isinstance(fl.optim.SGD(0.1), fl.optim.Optimizer)
    True
    """

    # The class of its states.
    __state__: ClassVar[type[State]]

    def init(self: _Beginning[S], model: Any) -> S:
        """Return the initial state for a model.

        Args:
            model: A module, or any tree of arrays. State is made for the trainable floating-point leaves only.

        Raises:
            TypeError: If the model has only shapes, as :func:`frostleaf.eval_shape` returns it.
            ValueError: If there are none, or :func:`shard` is not told whether gradients are averaged over the ranks.

        Warns:
            SharedArrayWarning: If one array is several of these leaves. :meth:`Module.tie` makes them one.
            UntrainedParameterWarning: If a complex parameter is not frozen, or a field of a module with a bare annotation has
                an array of integers that is not.

        >>> import frostleaf as fl
        >>> sorted(fl.optim.AdamW(1e-3).init(fl.nn.Linear(2, 2)).slots["weight"])
        ['m', 'v']
        """
        self._require_averaged()
        parameters = self._parameters(model, "init")
        _warn_of_shared_arrays(parameters)
        _warn_of_untrained(parameters)
        return self._init(parameters)

    @returns_copy("model, state = opt.update(model, grads, state)")
    def update(self, model: T, grads: Any, state: S = _MISSING) -> tuple[T, S]:
        """Take one step: return the model and the state after it.

        MLX computes them when they are needed. ``fl.eval(model, state)`` computes them now; ``mx.eval`` can't look into them.

        Args:
            model: The tree that ``state`` was made for. It comes first: gradients have the class of their model, so that the
                two in the order of Optax go unnoticed unless something is frozen, and the gradients are what is updated.
            grads: Its gradients, as :func:`frostleaf.grad` returns them: an array for each trainable leaf, ``None`` elsewhere.
                For a packed model, the gradients of the unpacked model. A dict of them, by the names of
                ``model.parameters()`` as in MLX, is given as ``model.update(grads)``.
            state: As returned by :meth:`init` or by the last update. Its learning rate is used, which may not be this
                optimizer's own: see :meth:`adapt`.

        Returns:
            The model, with the dtypes it had, and the state.

        Raises:
            TypeError: If ``state`` is not the state of such an optimizer, or is for another rule.
            ValueError: If the gradients or the state don't belong to the model; the message names paths. If :func:`shard` is
                not told whether gradients are averaged over the ranks.

        Warns:
            OtherHyperparametersWarning: If the state was made with another learning rate than this optimizer. A compiled step
                compares that of the state with which it is first called. A schedule replaces the rate in any state, and other
                arguments, such as the weight decay, are not in the state: neither is warned of.

        >>> import frostleaf as fl, mlx.core as mx
        >>> opt, params = fl.optim.SGD(0.5), {"w": mx.array(3.0)}
        >>> params, state = opt.update(params, {"w": mx.array(2.0)}, opt.init(params))
        >>> params, state.step
        ({'w': array(2, dtype=float32)}, array(1, dtype=uint64))
        """
        if state is _MISSING:
            raise TypeError(NO_STATE.format(optimizer=type(self).__name__))
        last = flat_of(self).structure.remember(Last)
        if not last.is_averaged:
            self._require_averaged()
            last.is_averaged = True

        def prepare() -> Given:
            self._require_state(state, "update")
            parameters = parameters_of(model, last)
            self._require_match(parameters, state, "update")
            return with_gradients(parameters, grads)

        parameters, gradients = agreed_update(self, "update", prepare)
        with telling(parameters), settling(self, parameters, gradients):
            new, after = self._update(parameters, gradients, state)
        return with_parameters(parameters, new, last, state), after

    @returns_copy("state = opt.{name}(state, model)")
    def adapt(self, state: S, model: Any) -> S:
        """Return the state for this optimizer and a model that was frozen, unfrozen or changed, with what applies carried over.

        What is remembered of a parameter applies if its name and shape are the same, cast where its dtype is another; for other
        parameters it is that of a new state. Step counts are carried over. So are hyperparameters such as the learning rate, as
        changed in the state, but for those that this optimizer was given another value of than the one that the state is from.

        A state keeps its learning rate wherever it is passed, through a file as well, and :meth:`update` uses that one. To
        resume with another, adapt what was restored, or change it with :meth:`with_learning_rate`. A schedule is not in the
        state but in the optimizer, as are all other arguments (``weight_decay``, ``betas``): that of the optimizer holds, for
        the step that the state has reached, whatever the rate in the state.

        Args:
            state: A state of this optimizer, or of one of its kind with other arguments.
            model: The model to go on with.

        Raises:
            TypeError: If ``state`` is not the state of such an optimizer.
            ValueError: If the model has nothing to train.

        >>> import frostleaf as fl
        >>> opt, layer = fl.optim.Adam(1e-3), fl.nn.Linear(2, 2)
        >>> state = opt.init(layer.freeze(keys="bias"))
        >>> after = opt.adapt(state, layer)
        >>> list(after.slots), after.slots["weight"]["m"] is state.slots["weight"]["m"]
        (['weight', 'bias'], True)
        >>> slower = fl.optim.Adam(1e-4)
        >>> slower.learning_rate(state), slower.learning_rate(slower.adapt(state, layer))
        (array(0.001, dtype=float32), array(0.0001, dtype=float32))
        """

        def prepare() -> Given:
            self._require_state(state, "adapt")
            parameters = self._parameters(model, "adapt")
            return parameters, parameters.arrays

        return self._adapt(state, agreed_update(self, "adapt", prepare)[0])  # type: ignore[no-any-return]

    def learning_rate(self, state: Any) -> mx.array:
        """Return the learning rate in a state, float32, shape (): that of the last step, if there is a schedule.

        Raises:
            TypeError: If ``state`` is not the state of such an optimizer.
            ValueError: If the rule has no learning rate.

        >>> import frostleaf as fl, mlx.core as mx
        >>> opt = fl.optim.SGD(0.5)
        >>> opt.learning_rate(opt.init(mx.array(1.0)))
        array(0.5, dtype=float32)
        """
        self._require_state(state, "learning_rate")
        return self._learning_rate(state)

    @returns_copy("state = opt.{name}(state, ...)")
    def with_learning_rate(self, state: S, learning_rate: float | mx.array) -> S:
        """Return the state with another learning rate, which holds from the next update on.

        Args:
            state: A state of this optimizer.
            learning_rate: A number, or an array of shape (), which may be one that :func:`frostleaf.jit` traces.

        Raises:
            TypeError, ValueError: As :meth:`with_hyperparameters` does: one on a schedule is refused.

        >>> import frostleaf as fl, mlx.core as mx
        >>> opt = fl.optim.ema(fl.optim.SGD(0.5), 0.9)
        >>> state = opt.with_learning_rate(opt.init(mx.array(1.0)), 0.25)
        >>> opt.learning_rate(state)
        array(0.25, dtype=float32)
        """
        return self.with_hyperparameters(state, learning_rate=learning_rate)

    @returns_copy("state = opt.{name}(state, ...)")
    def with_hyperparameters(self, state: S, **values: float | mx.array) -> S:
        """Return the state with other values of the hyperparameters that are in it.

        MLX's rules have the learning rate there, rules of your own what they say. All others are arguments of the optimizer:
        make another one. In :func:`multi` the values are for each optimizer that has them.

        Args:
            state: A state of this optimizer.
            **values: By name, numbers or arrays of shape (). They are cast to the dtype of those in the state.

        Raises:
            TypeError: If ``state`` is not the state of such an optimizer, or a value is no number.
            ValueError: If there is no such hyperparameter in the state, or it is on a schedule, which sets it in each step.

        >>> import frostleaf as fl, mlx.core as mx
        >>> opt = fl.optim.SGD(0.5, momentum=0.9)
        >>> state = opt.with_hyperparameters(opt.init(mx.array(1.0)), learning_rate=0.25)
        >>> state.hyperparameters["learning_rate"]
        array(0.25, dtype=float32)
        """
        self._require_state(state, "with_hyperparameters")
        names = self._hyperparameters(state)
        for name in values:
            if name not in names:
                shown = ", ".join(sorted(names)) or "none"
                raise ValueError(NOT_IN_STATE.format(name=name, optimizer=describe(self), names=shown))
        return self._with_hyperparameters(state, values)  # type: ignore[no-any-return]

    def averaged(self, model: T, state: Any) -> T:
        """Return the model with the averages that :func:`ema` keeps in a state, and everything else as it is.

        They are this optimizer's, or of one in it, as in ``accumulate(ema(opt, decay), n)``, ``chain``, ``masked``, ``multi``.

        Args:
            model: The model that ``state`` is for.
            state: The state from the last update.

        Raises:
            TypeError: If ``state`` is not the state of such an optimizer.
            ValueError: If it is not for this model, with paths; if no optimizer is of :func:`ema`, or it is in :func:`shard`.

        >>> import frostleaf as fl, mlx.core as mx
        >>> opt = fl.optim.accumulate(fl.optim.ema(fl.optim.SGD(1.0), 0.75), 1)
        >>> w = mx.array(0.0)
        >>> w, state = opt.update(w, mx.array(-4.0), opt.init(w))
        >>> w, opt.averaged(w, state)
        (array(4, dtype=float32), array(1, dtype=float32))
        """
        self._require_state(state, "averaged")
        parameters = parameters_of(model)
        self._require_match(parameters, state, "averaged")
        averages = self._averaged(parameters, state)
        if not averages:
            raise ValueError(NO_AVERAGE.format(optimizer=type(self).__name__))
        return with_parameters(parameters, averages)  # type: ignore[no-any-return]

    def _init(self, parameters: Parameters) -> Any:
        """Return the initial state for the parameters, which may be none."""
        raise NotImplementedError

    def _update(self, parameters: Parameters, gradients: Mapping[str, mx.array], state: Any) -> tuple[dict[str, mx.array], Any]:
        """Return the new arrays by name, and the new state."""
        raise NotImplementedError

    def _differences(self, parameters: Parameters, state: Any) -> Iterator[str]:
        """Yield in words why a state of the right class is not one for the parameters."""
        raise NotImplementedError

    def _adapt(self, state: Any, parameters: Parameters) -> Any:
        """Return a state for the parameters, with what still applies of another state."""
        raise NotImplementedError

    def _averaged(self, parameters: Parameters, state: Any) -> Mapping[str, mx.array]:
        """Return the averages in a state by name, in the dtypes of the parameters; none of what none is kept."""
        return {}

    def _learning_rate(self, state: Any) -> mx.array:
        """Return the learning rate in a state."""
        raise NotImplementedError

    def _hyperparameters(self, state: Any) -> Collection[str]:
        """Return the names of the hyperparameters in a state."""
        raise NotImplementedError

    def _with_hyperparameters(self, state: Any, values: Mapping[str, Any]) -> Any:
        """Return the state with other hyperparameters, each of which is somewhere in it."""
        raise NotImplementedError

    def _not_elementwise(self) -> Iterator[Any]:
        """Yield what is not known to update every number by itself: optimizers in this one, and functions of the gradients."""
        yield self

    def _averaging(self) -> str | None:
        """Return how the average of gradients over ranks that is inside is written around an optimizer, or ``None``."""
        return None

    def _require_averaged(self) -> None:
        """Raise a ``ValueError`` if something in this must know whether gradients are averaged over the ranks, and does not."""

    def _require_state(self, state: Any, method: str) -> None:
        """Raise a ``TypeError`` unless this is a state of such an optimizer, for any model."""
        if type(state) is not self.__state__:
            given = describe(state) + (advice_on_state(self, state) if method == "adapt" else "")
            raise TypeError(NOT_A_STATE.format(optimizer=type(self).__name__, method=method, given=given))

    @classmethod
    def _instead_of_setting(cls, name: str) -> str:
        return NEVER_CHANGES

    @classmethod
    def _instead_of_reading(cls, name: str) -> str | None:
        return INSTEAD.get(name)

    def _require_match(self, parameters: Parameters, state: Any, method: str) -> None:
        found = sorted(set(self._differences(parameters, state)))
        if found:
            differences = "; ".join(found[:6]) + "; ..." * (len(found) > 6)
            raise ValueError(OTHER_STATE.format(optimizer=type(self).__name__, method=method, differences=differences))

    def _parameters(self, model: Any, method: str) -> Parameters:
        parameters = parameters_of(model)
        where = {"tree": type(model).__name__, "optimizer": type(self).__name__, "method": method}
        if not parameters.arrays:
            raise ValueError(NOTHING_TO_TRAIN.format(**where))
        for name, array in parameters.arrays.items():
            if isinstance(array, ShapeDtypeStruct):
                raise TypeError(NO_NUMBERS.format(**where, name=name))
        return parameters

    def __repr__(self) -> str:
        return text(self)


NOT_AN_OPTIMIZER = (
    "{function} takes an optimizer such as fl.optim.Adam(1e-3), or fl.optim.wrap(cls)(1e-3) for a class of MLX's kind, and was "
    "given {given}"
)


def require_optimizer(given: Any, function: str) -> None:
    """Raise a ``TypeError`` if this is not an optimizer."""
    if not isinstance(given, Optimizer):
        raise TypeError(NOT_AN_OPTIMIZER.format(function=function, given=describe(given)))


def array_differences(expected: Mapping[str, mx.array], given: Mapping[str, mx.array], what: str) -> Iterator[str]:
    """Yield in words how the given arrays differ from the expected ones in name, shape or dtype."""
    yield from (f"{name!r} is not trainable" for name in given.keys() - expected.keys())
    yield from (f"{name!r} has no {what}" for name in expected.keys() - given.keys())
    for name in expected.keys() & given.keys():
        if describe(expected[name]) != describe(given[name]):
            yield f"{what} of {name!r} is {describe(expected[name])} and the state has {describe(given[name])}"


_FIRST = 8  # of the ties in a message

SHARED = (
    "one array stands at {paths}, which are trained apart: from the first step on each has its own. To train them as one, "
    "{advice}"
)
OTHERS = " (and so {do} {count:,} other{s} at other places)"
TIE = "tie them: model = model.tie({ties})"
NO_MODULE = "hold them in a module, in place of the {tree}, and tie them: see fl.Module.tie"


def _warn_of_shared_arrays(parameters: Parameters) -> None:
    model = parameters.model
    paths: dict[int, list[str]] = {}
    for path, array in parameters.arrays.items():
        paths.setdefault(id(array), []).append(path)
    shared = [each for each in paths.values() if len(each) > 1]
    if shared:
        advice = NO_MODULE.format(tree=type(model).__name__)
        if isinstance(model, Module):
            ties = [f"{place!r}: {source!r}" for source, *places in shared for place in places]
            advice = TIE.format(ties=f"{{{', '.join([*ties[:_FIRST], *['...'] * (len(ties) > _FIRST)])}}}")
        first = listed(map(repr, shared[0]), separator=" and ")
        more = len(shared) - 1
        others = OTHERS.format(do="do" if more > 1 else "does", count=more, s="s" * (more > 1)) if more else ""
        warnings.warn(SHARED.format(paths=first + others, advice=advice), SharedArrayWarning, stacklevel=3)


INTEGERS = (
    "no optimizer trains {names}, of an integer dtype. To train what is there, write mx.array(1.0) for mx.array(1), or cast it "
    "to mx.float32; else declare its field with fl.buffer() or fl.parameter(), or freeze it"
)
COMPLEX = (
    "no optimizer trains {names}, of a complex dtype. Hold the real and the imaginary part in arrays of their own and write "
    "self.real + 1j * self.imag where both are used; or, if it is not to be trained, freeze it or declare it with fl.buffer()"
)


def _warn_of_untrained(parameters: Parameters) -> None:
    """Warn of complex parameters, and of integers where one is expected, unless the field is declared to be what it is."""
    signature = parameters.flat.signature if parameters.flat else None
    for message in signature.remember(_untrained) if signature and not parameters.is_packed else []:
        warnings.warn(message, UntrainedParameterWarning, stacklevel=3)


def _untrained(signature: Signature) -> list[str]:
    """Return what is to be said of arrays that are not frozen."""
    structure = signature.structure
    unfrozen_leaves = structure.remember(unfrozen)
    in_bare, outside = leaf_flags(structure, is_bare), leaf_flags(structure, lambda field: False)
    expected = map(operator.and_, unfrozen_leaves, map(operator.gt, in_bare, outside))
    integers = [mx.issubdtype(dtype, mx.signedinteger) for _, dtype in signature.leaves]
    complexes = [mx.issubdtype(dtype, mx.complexfloating) for _, dtype in signature.leaves]
    kinds = ((INTEGERS, map(operator.and_, expected, integers)), (COMPLEX, map(operator.and_, unfrozen_leaves, complexes)))
    found = [(message, [*compress(structure.leaf_names(), chosen)]) for message, chosen in kinds]
    return [message.format(names=listed(map(repr, names))) for message, names in found if names]
