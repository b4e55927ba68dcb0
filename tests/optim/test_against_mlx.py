"""Every optimizer against mlx.optimizers: the same parameters, bit for bit, after twenty steps of the same training."""

import inspect
from typing import Any

import mlx.core as mx
import mlx.nn
import mlx.optimizers
import pytest
from mlx.utils import tree_flatten

import frostleaf as fl
from frostleaf import optim

STEPS = 20
INPUTS = [mx.random.normal((4, 3), key=key) for key in mx.random.split(mx.random.key(0), STEPS)]
CLASSES = [
    each
    for each in vars(mlx.optimizers).values()
    if isinstance(each, type) and issubclass(each, mlx.optimizers.Optimizer) and each is not mlx.optimizers.Optimizer
]
TARGETS = [mx.random.normal((4, 2), key=key) for key in mx.random.split(mx.random.key(1), STEPS)]


class Net(fl.Module):
    layers: Any
    norm: fl.nn.LayerNorm

    def __init__(self, nn):
        self.layers = [nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)]
        self.norm = nn.LayerNorm(4)

    def __call__(self, x):
        first, second, last = self.layers
        return last(self.norm(second(mx.tanh(first(x)))))


class Twin(mlx.nn.Module):
    def __init__(self, nn):
        super().__init__()
        self.layers = [nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)]
        self.norm = nn.LayerNorm(4)

    __call__ = Net.__call__


def mean_square(model, x, y):
    return ((model(x) - y) ** 2).mean()


def twins(dtype=mx.float32):
    mx.random.seed(5)
    ours = Net(fl.nn).astype(dtype)
    mx.random.seed(5)
    theirs = Twin(mlx.nn)
    theirs.set_dtype(dtype)
    return ours, theirs


def trained_by_mlx(model, rule, dtype=mx.float32):
    differentiated = mlx.nn.value_and_grad(model, lambda x, y: mean_square(model, x, y))
    for x, y in zip(INPUTS, TARGETS, strict=True):
        _, gradient = differentiated(x.astype(dtype), y.astype(dtype))
        rule.update(model, gradient)
        mx.eval(model.parameters(), rule.state)
    return model


def step_of(opt):
    def step(model, state, x, y):
        return opt.update(model, fl.grad(mean_square)(model, x, y), state)

    return step


def trained(model, opt, step, dtype=mx.float32):
    state = opt.init(model)
    for x, y in zip(INPUTS, TARGETS, strict=True):
        model, state = step(model, state, x.astype(dtype), y.astype(dtype))
        fl.eval(model, state)
    return model, state


def bit_for_bit(left, right):
    # The small epsilon of Adam is no number in half precision, and what MLX makes of it is nan.
    return left.dtype == right.dtype and mx.array_equal(left, right, equal_nan=True)


def assert_same(ours, state, theirs, rule, same=bit_for_bit):
    assert_same_model(ours, theirs, same)
    assert_same_state(state, rule, same)


def assert_same_model(ours, theirs, same=bit_for_bit):
    flat = dict(tree_flatten(theirs.parameters()))
    assert set(fl.tree.paths(ours)) == set(flat)
    for path, leaf in zip(fl.tree.paths(ours), fl.tree.leaves(ours), strict=True):
        assert leaf.dtype == flat[path].dtype, path
        assert same(leaf, flat[path]), path


def assert_same_state(state, rule, same=bit_for_bit):
    remembered = dict(tree_flatten(rule.state))
    assert state.step.item() == rule.step.item() == STEPS
    assert state.step.dtype == rule.step.dtype
    for name, value in state.hyperparameters.items():
        assert same(value, remembered.pop(name)), name
    for path, slots in state.slots.items():
        for name, value in slots.items():
            assert same(value, remembered.pop(f"{path}.{name}")), (path, name)
    assert set(remembered) == {"step"}


def close(left, right):
    return mx.allclose(left, right, rtol=1e-3, atol=1e-4)


def warming_up(module):
    return module.join_schedules([module.linear_schedule(0.001, 0.05, 6), module.cosine_decay(0.05, 10, 0.001)], [6])


# For each optimizer of MLX several settings: what it is called, and the arguments, which may need the module of the schedules.
RULES = {
    "SGD": ("SGD", lambda module: ((0.1,), {})),
    "SGD with momentum": ("SGD", lambda module: ((0.1, 0.9), {})),
    "SGD with dampening": ("SGD", lambda module: ((0.1,), {"momentum": 0.9, "dampening": 0.3})),
    "SGD of Nesterov": ("SGD", lambda module: ((), {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True})),
    "SGD with weight decay": ("SGD", lambda module: ((0.1, 0.5, 0.01), {})),
    "SGD on a schedule": ("SGD", lambda module: ((warming_up(module), 0.9), {})),
    "Adam": ("Adam", lambda module: ((0.01,), {})),
    "Adam with its bias corrected": ("Adam", lambda module: ((0.01, [0.8, 0.99], 1e-6, True), {})),
    "Adam on a schedule": ("Adam", lambda module: ((warming_up(module),), {"bias_correction": True})),
    "AdamW": ("AdamW", lambda module: ((0.01,), {})),
    "AdamW with everything": (
        "AdamW", lambda module: ((warming_up(module),), {"betas": (0.8, 0.99), "weight_decay": 0.1, "bias_correction": True}),
    ),
    "Lion": ("Lion", lambda module: ((0.01,), {})),
    "Lion with everything": ("Lion", lambda module: ((warming_up(module), [0.8, 0.9], 0.1), {})),
    "RMSprop": ("RMSprop", lambda module: ((0.01,), {})),
    "RMSprop with everything": ("RMSprop", lambda module: ((warming_up(module),), {"alpha": 0.9, "eps": 1e-6})),
    "Adagrad": ("Adagrad", lambda module: ((0.1,), {})),
    "Adagrad with everything": ("Adagrad", lambda module: ((warming_up(module), 1e-4), {})),
    "AdaDelta": ("AdaDelta", lambda module: ((1.0,), {})),
    "AdaDelta with everything": ("AdaDelta", lambda module: ((warming_up(module),), {"rho": 0.8, "eps": 1e-4})),
    "Adamax": ("Adamax", lambda module: ((0.01,), {})),
    "Adamax with everything": ("Adamax", lambda module: ((warming_up(module),), {"betas": [0.8, 0.9], "eps": 1e-6})),
    "Adafactor": ("Adafactor", lambda module: ((), {})),
    "Adafactor with a learning rate": (
        "Adafactor",
        lambda module: ((0.01,), {"relative_step": False, "beta_1": 0.9, "weight_decay": 0.1, "eps": (1e-20, 1e-2)}),
    ),
    "Adafactor on a schedule": (
        "Adafactor", lambda module: ((warming_up(module),), {"relative_step": False, "decay_rate": -0.5}),
    ),
    "Adafactor that warms up": (
        "Adafactor", lambda module: ((), {"warmup_init": True, "scale_parameter": False, "clip_threshold": 0.5}),
    ),
    "Muon": ("Muon", lambda module: ((0.01,), {})),
    "Muon with everything": (
        "Muon", lambda module: ((warming_up(module), 0.8), {"weight_decay": 0.0, "nesterov": False, "ns_steps": 3}),
    ),
}  # fmt: skip
each_rule = pytest.mark.parametrize("name", RULES)


def both(name):
    """Return our optimizer and MLX's."""
    cls, arguments = RULES[name]
    return [getattr(module, cls)(*args, **kwargs) for module in (optim, mlx.optimizers) for args, kwargs in [arguments(module)]]


def test_every_optimizer_of_mlx_is_compared():
    assert {getattr(mlx.optimizers, cls) for cls, _ in RULES.values()} | {mlx.optimizers.MultiOptimizer} == set(CLASSES)


@pytest.mark.parametrize("theirs", CLASSES)
def test_the_constructors_have_the_arguments_of_mlx(theirs):
    """Tuples may stand for MLX's lists, and an argument for both that MLX leaves out is none of ours."""
    ours = getattr(optim, theirs.__name__)
    assert issubclass(ours, optim.Optimizer)

    def arguments(cls):
        return [
            (each.name, each.kind, tuple(each.default) if isinstance(each.default, list) else each.default)
            for each in inspect.signature(cls).parameters.values()
        ]

    assert arguments(ours) == arguments(theirs)


@each_rule
def test_twenty_steps_are_those_of_mlx_bit_for_bit(name):
    opt, rule = both(name)
    ours, theirs = twins()
    trained_by_mlx(theirs, rule)
    ours, state = trained(ours, opt, step_of(opt))
    assert_same(ours, state, theirs, rule)


@pytest.mark.parametrize("name", {cls: name for name, (cls, _) in RULES.items()}.values())
def test_a_wrapped_class_is_the_same_optimizer(name):
    cls, arguments = RULES[name]
    args, kwargs = arguments(optim)
    rule = getattr(mlx.optimizers, cls)
    named, wrapped = getattr(optim, cls)(*args, **kwargs), optim.wrap(rule)(*args, **kwargs)
    assert (named.rule, wrapped.rule) == (rule, rule)
    model, _ = twins()
    gradient = fl.grad(mean_square)(model, INPUTS[0], TARGETS[0])
    assert fl.tree.equal(*(opt.update(model, gradient, opt.init(model)) for opt in (named, wrapped)))


class Halved(mlx.optimizers.AdamW):
    """A rule of one's own, with a hyperparameter of its own on a schedule, and something of its own to remember."""

    def __init__(self, learning_rate, factor=0.5, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self._maybe_schedule("factor", factor)

    def init_single(self, parameter, state):
        super().init_single(parameter, state)
        state["largest"] = mx.zeros(())

    def apply_single(self, gradient, parameter, state):
        state["largest"] = mx.maximum(state["largest"], mx.abs(gradient).max())
        return super().apply_single(gradient * self.state["factor"], parameter, state)


@pytest.mark.parametrize("factor", [0.25, mlx.optimizers.exponential_decay(0.5, 0.9)], ids=["a number", "a schedule"])
def test_twenty_steps_of_a_rule_of_ones_own_are_those_of_mlx_bit_for_bit(factor):
    opt, rule = optim.wrap(Halved)(0.01, factor, bias_correction=True), Halved(0.01, factor, bias_correction=True)
    ours, theirs = twins()
    trained_by_mlx(theirs, rule)
    ours, state = trained(ours, opt, step_of(opt))
    assert_same(ours, state, theirs, rule)
    assert set(state.hyperparameters) == {"learning_rate", "factor"}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["SGD with momentum", "AdamW", "Lion", "Adafactor"])
def test_in_half_precision_as_well(name, dtype):
    opt, rule = both(name)
    ours, theirs = twins(dtype)
    trained_by_mlx(theirs, rule, dtype)
    ours, state = trained(ours, opt, step_of(opt), dtype)
    assert_same(ours, state, theirs, rule)


# Several optimizers in one


def is_matrix(path, array):
    return array.ndim == 2


def is_last(path, array):
    return path.startswith("layers.2")


def is_nothing(path, array):
    return False


PARTS = {
    "matrices": (["Muon", "AdamW"], [is_matrix]),
    "three": (["Adam on a schedule", "SGD with momentum", "Lion"], [is_last, is_matrix]),
    "one for nothing": (["Adam", "SGD"], [is_nothing]),
    "one for all": (["Adam"], []),
}


@pytest.mark.parametrize(("names", "filters"), PARTS.values(), ids=PARTS)
def test_twenty_steps_of_several_are_those_of_mlx_bit_for_bit(names, filters):
    rules = [both(name)[1] for name in names]
    made = mlx.optimizers.MultiOptimizer(rules, filters)
    plain = [both(name)[0] for name in names]
    ours, theirs = twins()
    trained_by_mlx(theirs, made)
    for opt in (optim.MultiOptimizer(plain, filters), optim.multi(dict(zip([*filters, "**"], plain, strict=True)))):
        after, state = trained(ours, opt, step_of(opt))
        assert_same_model(after, theirs)
        for each, rule in zip(state.inner, rules, strict=True):
            assert_same_state(each, rule)
        assert bit_for_bit(opt.learning_rate(state), made.learning_rate)


@pytest.mark.parametrize(("count", "filters"), [(2, 0), (1, 2), (0, 0), (3, 1)])
def test_a_number_of_filters_that_mlx_refuses_is_refused(count, filters):
    with pytest.raises(ValueError, match=r"Given \d filters but -?\d needed"):
        mlx.optimizers.MultiOptimizer([mlx.optimizers.SGD(0.1)] * count, [is_matrix] * filters)
    with pytest.raises(ValueError, match=f"{filters} filters go with {filters} optimizers, .*; there are {count}"):
        optim.MultiOptimizer([optim.SGD(0.1)] * count, [is_matrix] * filters)


SCHEDULES = {
    "exponential_decay": (lambda: optim.exponential_decay(0.1, 0.9), lambda: mlx.optimizers.exponential_decay(0.1, 0.9)),
    "step_decay": (lambda: optim.step_decay(0.1, 0.5, 4), lambda: mlx.optimizers.step_decay(0.1, 0.5, 4)),
    "cosine_decay": (lambda: optim.cosine_decay(0.1, 12, 0.01), lambda: mlx.optimizers.cosine_decay(0.1, 12, 0.01)),
    "linear_schedule": (lambda: optim.linear_schedule(0.0, 0.1, 10), lambda: mlx.optimizers.linear_schedule(0.0, 0.1, 10)),
    "join_schedules": (
        lambda: optim.join_schedules([optim.linear_schedule(0.01, 0.1, 5), optim.cosine_decay(0.1, 10)], [5]),
        lambda: mlx.optimizers.join_schedules(
            [mlx.optimizers.linear_schedule(0.01, 0.1, 5), mlx.optimizers.cosine_decay(0.1, 10)], [5]
        ),
    ),
    "a function of one's own": (lambda: lambda step: 0.1 / (step + 1), lambda: lambda step: 0.1 / (step + 1)),
}
each_schedule = pytest.mark.parametrize(("ours_of", "theirs_of"), SCHEDULES.values(), ids=SCHEDULES)


@each_schedule
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lion"])
def test_schedules_are_those_of_mlx_bit_for_bit(ours_of, theirs_of, name):
    opt, rule = getattr(optim, name)(ours_of()), getattr(mlx.optimizers, name)(theirs_of())
    ours, theirs = twins()
    trained_by_mlx(theirs, rule)
    ours, state = trained(ours, opt, step_of(opt))
    assert_same(ours, state, theirs, rule)
    assert bit_for_bit(opt.learning_rate(state), rule.learning_rate)


# Jitted


@pytest.mark.long  # The steps of tests/edits/test_tying.py are jitted and those of MLX every day.
@pytest.mark.parametrize("name", ["SGD with momentum", "AdamW"])
def test_jitted_steps_are_those_of_mlx_within_rounding_and_traced_once(name):
    opt, rule = both(name)
    ours, theirs = twins()
    trained_by_mlx(theirs, rule)
    step = fl.jit(step_of(opt))
    ours, state = trained(ours, opt, step)
    assert_same(ours, state, theirs, rule, close)
    assert step.trace_count == 1


START = {"w": mx.random.normal((4, 3), key=mx.random.key(2))}
GRADIENTS = [fl.tree.map(lambda leaf: mx.random.normal(leaf.shape, key=mx.random.key(n)), START) for n in range(STEPS)]  # noqa: B023


def compiled_by_mlx(rule, compiled):
    """Return the parameters after twenty steps of MLX's optimizer, compiled with its state captured, or not compiled."""
    rule.init(START)
    apply = rule.apply_gradients
    if compiled:
        apply = mx.compile(apply, inputs=rule.state, outputs=rule.state)
    parameters = dict(START)
    for gradients in GRADIENTS:
        parameters = apply(gradients, parameters)
        mx.eval(parameters, rule.state)
    return parameters


# Two of the rules take MLX's compiler a dozen kernels that nothing else shares.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(cls, marks=pytest.mark.long if cls in ("Adafactor", "Muon") else ())
        for cls in sorted({cls for cls, _ in RULES.values()})
    ],
)
def test_jitted_updates_are_as_near_to_mlx_as_its_own_compiled_ones(name):
    opt, rule = both(name)
    eager, compiled = compiled_by_mlx(rule, False), compiled_by_mlx(both(name)[1], True)
    update = fl.jit(opt.update)
    ours, state = START, opt.init(START)
    for gradients in GRADIENTS:
        ours, state = update(ours, gradients, state)
        fl.eval(ours, state)
    for path, array in ours.items():
        rounding = mx.abs(compiled[path] - eager[path]).max() + 1e-6 * mx.abs(eager[path]).max()
        assert (mx.abs(array - eager[path]) <= 2 * rounding).all(), path
    assert update.trace_count == 1
    assert state.step.item() == STEPS


@pytest.mark.parametrize(
    ("ours_of", "theirs_of"),
    [
        pytest.param(
            *both, id=name, marks=pytest.mark.long if name in ("step_decay", "linear_schedule", "cosine_decay") else ()
        )
        for name, both in SCHEDULES.items()
    ],
)
def test_a_schedule_does_not_trace_again(ours_of, theirs_of):
    opt = optim.SGD(ours_of())
    update = fl.jit(opt.update)
    passed = fl.jit(lambda opt, model, gradient, state: opt.update(model, gradient, state))
    model = {"w": mx.ones(2)}
    gradient, state, rule = {"w": mx.ones(2)}, opt.init(model), mlx.optimizers.SGD(theirs_of())
    twin, same, other = {"w": mx.ones(2)}, model, state
    for _ in range(8):
        model, state = update(model, gradient, state)
        same, other = passed(opt, same, gradient, other)
        twin = rule.apply_gradients(gradient, twin)
        assert close(model["w"], twin["w"])
        assert close(same["w"], twin["w"])
        assert close(state.hyperparameters["learning_rate"], rule.learning_rate)
    assert (update.trace_count, passed.trace_count) == (1, 1)
