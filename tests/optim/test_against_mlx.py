"""Every optimizer against mlx.optimizers: the same parameters, bit for bit, after twenty steps of the same training."""

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
    flat = dict(tree_flatten(theirs.parameters()))
    assert set(fl.tree.paths(ours)) == set(flat)
    for path, leaf in zip(fl.tree.paths(ours), fl.tree.leaves(ours), strict=True):
        assert leaf.dtype == flat[path].dtype, path
        assert same(leaf, flat[path]), path
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


RULES = {
    "SGD": (optim.SGD, (0.1,), {}),
    "SGD with momentum": (optim.SGD, (0.1, 0.9), {}),
    "SGD with dampening": (optim.SGD, (0.1,), {"momentum": 0.9, "dampening": 0.3}),
    "SGD of Nesterov": (optim.SGD, (), {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
    "SGD with weight decay": (optim.SGD, (0.1, 0.5, 0.01), {}),
    "Adam": (optim.Adam, (0.01,), {}),
    "Adam with its bias corrected": (optim.Adam, (0.01, [0.8, 0.99], 1e-6, True), {}),
    "AdamW": (optim.AdamW, (0.01,), {}),
    "AdamW with everything": (optim.AdamW, (0.01,), {"betas": (0.8, 0.99), "weight_decay": 0.1, "bias_correction": True}),
    "Lion": (optim.wrap(mlx.optimizers.Lion), (0.01,), {"weight_decay": 0.1}),
    "RMSprop": (optim.wrap(mlx.optimizers.RMSprop), (0.01,), {"alpha": 0.9}),
    "Adagrad": (optim.wrap(mlx.optimizers.Adagrad), (0.1,), {}),
    "AdaDelta": (optim.wrap(mlx.optimizers.AdaDelta), (1.0,), {"rho": 0.8}),
    "Adamax": (optim.wrap(mlx.optimizers.Adamax), (0.01,), {"betas": [0.8, 0.9]}),
    "Adafactor": (optim.wrap(mlx.optimizers.Adafactor), (), {}),
    "Adafactor with a learning rate": (
        optim.wrap(mlx.optimizers.Adafactor), (0.01,),
        {"relative_step": False, "beta_1": 0.9, "weight_decay": 0.1, "eps": (1e-30, 1e-3)},
    ),
    "Adafactor that warms up": (optim.wrap(mlx.optimizers.Adafactor), (), {"warmup_init": True, "scale_parameter": False}),
    "Muon": (optim.wrap(mlx.optimizers.Muon), (0.01,), {}),
}  # fmt: skip
each_rule = pytest.mark.parametrize(("make", "args", "kwargs"), RULES.values(), ids=RULES)


@each_rule
def test_twenty_steps_are_those_of_mlx_bit_for_bit(make, args, kwargs):
    opt = make(*args, **kwargs)
    ours, theirs = twins()
    rule = opt.rule(*args, **kwargs)
    trained_by_mlx(theirs, rule)
    ours, state = trained(ours, opt, step_of(opt))
    assert_same(ours, state, theirs, rule)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["SGD with momentum", "AdamW", "Lion", "Adafactor"])
def test_in_half_precision_as_well(name, dtype):
    make, args, kwargs = RULES[name]
    opt = make(*args, **kwargs)
    ours, theirs = twins(dtype)
    rule = opt.rule(*args, **kwargs)
    trained_by_mlx(theirs, rule, dtype)
    ours, state = trained(ours, opt, step_of(opt), dtype)
    assert_same(ours, state, theirs, rule)


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
    make = RULES[name][0]
    opt = make(ours_of())
    ours, theirs = twins()
    rule = opt.rule(theirs_of())
    trained_by_mlx(theirs, rule)
    ours, state = trained(ours, opt, step_of(opt))
    assert_same(ours, state, theirs, rule)
    assert bit_for_bit(state.hyperparameters["learning_rate"], rule.learning_rate)


@pytest.mark.parametrize("name", ["SGD with momentum", "AdamW"])
def test_jitted_steps_are_those_of_mlx_within_rounding_and_traced_once(name):
    make, args, kwargs = RULES[name]
    opt = make(*args, **kwargs)
    ours, theirs = twins()
    rule = opt.rule(*args, **kwargs)
    trained_by_mlx(theirs, rule)
    step = fl.jit(step_of(opt))
    ours, state = trained(ours, opt, step)
    assert_same(ours, state, theirs, rule, close)
    assert step.trace_count == 1


@each_schedule
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
