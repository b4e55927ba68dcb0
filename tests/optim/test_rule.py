"""Update rules of MLX, and others, as optimizers: what can be one, the learning rate, and the state of another rule."""

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest
from optim.stacks import gradients_of

import frostleaf as fl
from frostleaf import optim
from frostleaf.optim.crossing import advice_on_rule
from frostleaf.optim.optimizer import NOT_A_STATE
from frostleaf.optim.rule import DIFFERENTIATED, NOT_A_RATE, NOT_A_SCHEDULE, TRACED
from frostleaf.optim.rules import NOT_A_PAIR

LAYER = fl.nn.Linear(2, 3)
GRADIENT = gradients_of(LAYER)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (3, "3"), (None, "None"), (int, "int"), (mlx.optimizers.SGD(0.1), None), (optim.SGD, "SGD"), ("SGD", "'SGD'"),
        (lambda *args: mlx.optimizers.SGD(*args), "<lambda>"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [optim.wrap, optim.Rule], ids=["wrap", "Rule"])
def test_what_is_no_rule_of_mlx_is_refused(make, given, shown):
    with pytest.raises(TypeError) as raised:
        make(given)
    message = "an optimizer is made from a subclass of mlx.optimizers.Optimizer, and was given "
    assert str(raised.value).startswith(message)
    assert shown is None or str(raised.value) == message + shown


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: optim.SGD(0.1, nesterov=True), ValueError),
        (lambda: optim.SGD(0.1, momentum=0.9, dampening=0.1, nesterov=True), ValueError),
        (lambda: optim.SGD(), TypeError),
        (lambda: optim.SGD(0.1, momentums=0.9), TypeError),
        (lambda: optim.wrap(mlx.optimizers.RMSprop)(0.1, alpha=-1.0), ValueError),
        (lambda: optim.wrap(mlx.optimizers.AdaDelta)(0.1, eps=-1.0), ValueError),
        (lambda: optim.wrap(mlx.optimizers.Adamax)(0.1, eps=-1.0), ValueError),
        (lambda: optim.wrap(mlx.optimizers.Lion)(), TypeError),
        (lambda: optim.wrap(mlx.optimizers.Lion)(0.1, nothing=1), TypeError),
        (lambda: optim.Adam("fast"), (TypeError, ValueError)),
        (lambda: optim.Adam(mx.array([0.1, 0.2])), TypeError),
    ],
)
def test_hyperparameters_are_refused_when_the_optimizer_is_made(make, error):
    with pytest.raises(error):
        make()


RATES = [
    ("fast", "'fast'"), (None, "None"), (True, "True"), ([0.1], "[0.1]"), ({"rate": 0.1}, "{'rate': 0.1}"), (1j, "1j"),
    (mx.array([0.1, 0.2]), "f32[2]"), (mx.array([0.1]), "f32[1]"), (mx.array(True), "bool[]"), (mx.array(1j), "c64[]"),
]  # fmt: skip
NAMED = [
    each for each in vars(optim).values() if isinstance(each, type) and issubclass(each, optim.Rule) and each is not optim.Rule
]


@pytest.mark.parametrize(("given", "shown"), RATES, ids=[shown for _, shown in RATES])
@pytest.mark.parametrize(
    "make", [*NAMED, optim.wrap(mlx.optimizers.SGD)], ids=[*(each.__name__ for each in NAMED), "wrap(SGD)"]
)
def test_what_is_no_learning_rate_is_refused(make, given, shown):
    if make is optim.Adafactor and given is None:
        assert make(given).learning_rate  # It has none.
        return
    for arguments, kwargs in (((given,), {}), ((), {"learning_rate": given})):
        with pytest.raises(TypeError) as raised:
            make(*arguments, **kwargs)
        assert str(raised.value) == NOT_A_RATE.format(
            rule=getattr(make, "__name__", "SGD").replace("<lambda>", "SGD"), given=shown
        )


class Warmup(fl.Module):
    """A schedule that is a module."""

    peak: float = fl.static(default=0.5)

    def __call__(self, step):
        return mx.array(self.peak)


@pytest.mark.parametrize("make", [optim.SGD, optim.RMSprop, optim.wrap(mlx.optimizers.Adam)])
@pytest.mark.parametrize("model", [LAYER, [LAYER.weight], {"w": LAYER.weight}, mlx.nn.Linear(1, 1), iter([LAYER.weight])])
def test_a_model_in_the_place_of_the_learning_rate_is_sent_to_init(make, model):
    with pytest.raises(TypeError, match=r"^the learning rate of .*; the model goes to init\(model\)$"):
        make(model)


@pytest.mark.parametrize("make", [optim.Adam, optim.AdamW, optim.Adamax, optim.Lion])
def test_a_learning_rate_in_the_place_of_two_numbers_is_refused(make):
    for model in (LAYER, LAYER.parameters()):
        with pytest.raises(TypeError) as raised:
            make(model, 1e-3)
        assert str(raised.value) == NOT_A_PAIR.format(name="betas", given="0.001")
    for betas, shown in ((0.9, "0.9"), ((0.9,), None), ("ab", "'ab'"), (None, "None")):
        with pytest.raises(TypeError) as raised:
            make(1e-3, betas)
        assert shown is None or str(raised.value) == NOT_A_PAIR.format(name="betas", given=shown)


def test_a_module_without_arrays_may_be_a_schedule():
    assert optim.SGD(Warmup()).learning_rate(optim.SGD(Warmup()).init(LAYER)).item() == 0.5
    assert dict(optim.Adam(0.1, [0.5, 0.75]).arguments)["betas"] == (0.5, 0.75)


@pytest.mark.parametrize(
    ("schedule", "shown"),
    [
        (lambda step: 0.1, "0.1"),
        (lambda step: None, "None"),
        (lambda step: step + mx.ones(2), "f32[2]"),
        (lambda step: "a", "'a'"),
    ],
)
def test_a_schedule_that_returns_no_scalar_array_is_refused(schedule, shown):
    with pytest.raises(TypeError) as raised:
        optim.Adam(schedule)
    assert str(raised.value) == NOT_A_SCHEDULE.format(rule="Adam", given=shown)


@pytest.mark.parametrize("transform", [fl.jit, fl.vmap], ids=["jit", "vmap"])
def test_an_optimizer_that_is_made_of_a_traced_learning_rate_says_what_to_do_instead(transform):
    with pytest.raises(TypeError) as raised:
        transform(lambda rate: optim.SGD(rate).init(mx.ones(2)))(mx.array([0.1, 0.2])[0] if transform is fl.jit else mx.ones(2))
    assert str(raised.value) == TRACED
    opt = optim.SGD(9.0)
    states = fl.vmap(lambda rate: opt.init(mx.ones(2)).at("hyperparameters.learning_rate").set(rate))(mx.array([0.1, 0.2]))
    assert fl.vmap(opt.learning_rate)(states).tolist() == mx.array([0.1, 0.2]).tolist()


def after_a_step(opt, rate=None):
    """Return the sum of a weight of 2 after a step with a gradient of 3."""
    state = opt.init(mx.array(2.0))
    state = state if rate is None else opt.with_learning_rate(state, rate)
    return opt.update(mx.array(2.0), mx.array(3.0), state)[0]


DIFFERENTIATE = {
    "grad": lambda fn, at: fl.grad(fn)(at),
    "value_and_grad": lambda fn, at: fl.value_and_grad(fn)(at)[1],
    "grad of grad": lambda fn, at: fl.grad(lambda at: fl.grad(lambda at: fn(at))(at) * at)(at),
    "vjp": lambda fn, at: fl.vjp(fn, (at,), mx.array(1.0))[1][0],
    "jvp": lambda fn, at: fl.jvp(fn, (at,), (mx.array(1.0),))[1],
    "of MLX": lambda fn, at: mx.grad(fn)(at),
}
each_derivative = pytest.mark.parametrize("derivative", DIFFERENTIATE.values(), ids=DIFFERENTIATE)


@each_derivative
@pytest.mark.parametrize(
    "make",
    [
        optim.SGD, optim.wrap(mlx.optimizers.Adam), lambda rate: optim.SGD(rate * 2), lambda rate: optim.Adam(0.1, eps=rate),
        lambda rate: optim.chain(optim.clip_by_global_norm(1.0), optim.SGD(learning_rate=rate)),
    ],
)  # fmt: skip
def test_an_optimizer_that_is_made_of_what_is_differentiated_says_what_to_do_instead(derivative, make):
    with pytest.raises(TypeError) as raised:
        derivative(lambda rate: after_a_step(make(rate)), mx.array(0.5))
    assert str(raised.value) == DIFFERENTIATED


@each_derivative
def test_the_gradient_of_a_rate_in_the_state_is_there(derivative):
    opt = optim.SGD(0.1)
    assert derivative(lambda rate: after_a_step(opt, rate) * rate, mx.array(0.5)).item() in (
        -1.0,
        -4.0,
    )  # the second: of the gradient times the rate


@each_derivative
def test_an_optimizer_is_made_of_constants_while_something_is_differentiated(derivative):
    outside, late = mx.array(0.5), mx.array(0.25) * 2

    def fn(x):
        rates = outside, late, mx.array(0.5), mx.array(0.25) * 2, late + 0, x.item(), mx.stop_gradient(x) * 1
        return sum(after_a_step(optim.SGD(rate)) * x for rate in rates)

    assert derivative(fn, mx.array(0.5)).item() == 3.5


@pytest.mark.parametrize(
    "rate", [0.5, 1, 0, mx.array(0.5), mx.array(1), mx.array(0.5, mx.bfloat16), np.float32(0.5), np.float64(0.5)]
)
def test_a_learning_rate_is_any_real_number(rate):
    opt = optim.SGD(rate)
    model, state = opt.update(mx.array(2.0), mx.array(1.0), opt.init(mx.array(2.0)))
    assert model.item() == 2.0 - float(rate)
    assert opt.learning_rate(state).item() == float(rate)


def test_a_rule_without_a_learning_rate_says_so():
    opt = optim.wrap(mlx.optimizers.Adafactor)(decay_rate=-0.5)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        opt.learning_rate(opt.init(LAYER))
    assert str(raised.value) == "Rule(Adafactor, decay_rate=-0.5) has no learning rate: it computes its own"


@pytest.mark.parametrize("make", [optim.wrap, optim.Rule], ids=["wrap", "Rule"])
@pytest.mark.parametrize("given", [mlx.optimizers.MultiOptimizer, mlx.optimizers.Optimizer], ids=lambda given: given.__name__)
def test_a_class_without_a_rule_is_refused(make, given):
    with pytest.raises(TypeError) as raised:
        make(given)
    assert str(raised.value) == (
        f"{given.__name__} has no apply_single, the rule for one array. Several optimizers are put together by fl.optim.multi"
    )


@pytest.mark.parametrize("theirs", [each for each in NAMED if each is not optim.SGD], ids=lambda each: each.__name__)
def test_the_state_of_another_rule_is_refused_though_it_looks_alike(theirs):
    opt = optim.SGD(0.1)
    state = (theirs() if theirs is optim.Adafactor else theirs(0.1)).init(LAYER)
    given = f"the state of {theirs.__name__}, where the rule is SGD"
    for method, call in {
        "update": lambda: opt.update(LAYER, GRADIENT, state),
        "adapt": lambda: opt.adapt(state, LAYER),
        "learning_rate": lambda: opt.learning_rate(state),
    }.items():
        with pytest.raises(TypeError) as raised:
            call()
        advice = advice_on_rule(theirs.__name__, "SGD") if method == "adapt" else ""
        assert str(raised.value) == NOT_A_STATE.format(optimizer="SGD", method=method, given=given) + advice


class Halving(mlx.optimizers.Optimizer):
    """A rule of one's own: what it remembers is how often it was applied."""

    def __init__(self, factor=0.5):
        super().__init__()
        self.factor = factor

    def init_single(self, parameter, state):
        state["applied"] = mx.zeros(())

    def apply_single(self, gradient, parameter, state):
        state["applied"] = state["applied"] + 1
        return parameter * self.factor


class Stateless(Halving):
    def init_single(self, parameter, state):
        pass

    def apply_single(self, gradient, parameter, state):
        return parameter * self.factor


class PassingOn(mlx.optimizers.SGD):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class OnlyByPosition(mlx.optimizers.SGD):
    def __init__(self, rate, /, *, more=None, **kwargs):
        super().__init__(rate, **kwargs)


class Named(mlx.optimizers.SGD):
    def __init__(self, rule, self_=None):
        super().__init__(rule)


@pytest.mark.parametrize(
    ("opt", "expected"),
    [
        (lambda: optim.wrap(Halving)(), 0.125),
        (lambda: optim.wrap(Halving)(factor=0.0), 0.0),
        (lambda: optim.wrap(Stateless)(0.5), 0.125),
        (lambda: optim.wrap(PassingOn)(0.25), 0.25),
        (lambda: optim.wrap(PassingOn)(0.25, momentum=0.0), 0.25),
        (lambda: optim.wrap(PassingOn)(learning_rate=0.25), 0.25),
        (lambda: optim.wrap(OnlyByPosition)(0.25, more=[1, 2], momentum=0.0), 0.25),
        (lambda: optim.wrap(Named)(rule=0.25), 0.25),
    ],
)
def test_a_rule_of_ones_own_can_be_wrapped(opt, expected):
    opt = opt()
    model = {"w": mx.ones(2), "step": mx.ones(2)}
    state = opt.init(model)
    for _ in range(3):
        model, state = opt.update(model, {"w": mx.ones(2), "step": mx.ones(2)}, state)
    assert {name: leaf.tolist() for name, leaf in model.items()} == {"w": [expected] * 2, "step": [expected] * 2}
    assert state.step.item() == 3


def test_a_learning_rate_may_be_a_scalar_array():
    assert fl.tree.structure(optim.Adam(mx.array(0.5))) == fl.tree.structure(optim.Adam(0.5))
