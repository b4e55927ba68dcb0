"""Settings that a jitted function reads from outside, such as optimizers: jit changes speed, whatever a name is bound to."""

import functools
import gc
import types
import warnings
import weakref

import mlx.core as mx
import mlx.optimizers
import pytest

import frostleaf as fl
from frostleaf.transforms.jit.captured import CAPTURED

MODEL, GRADS = {"w": mx.array([1.0, 2.0])}, {"w": mx.array([3.0, -4.0])}
setting = None
holder = types.SimpleNamespace()
module = types.ModuleType("module")


def step(model, grads, state):
    return setting.update(model, grads, state)


def of_holder(model, grads, state):
    return holder.setting.update(model, grads, state)


def of_module(model, grads, state):
    return module.setting.update(model, grads, state)


def of_helper(model, grads, state):
    return step(model, grads, state)


@fl.jit
def compiled(model, grads, state):
    return setting.update(model, grads, state)


def of_jitted(model, grads, state):
    return compiled(model, grads, state)


READERS = (step, of_holder, of_module, of_helper, of_jitted)


def bind(value):
    """Give the names from outside to another value."""
    global setting
    setting = holder.setting = module.setting = value


def other_rate(rate):
    return fl.optim.SGD(lambda step: mx.array(rate))


OTHERS = {
    "weight_decay": (lambda: fl.optim.AdamW(0.1, weight_decay=0.0), lambda: fl.optim.AdamW(0.1, weight_decay=5.0)),
    "eps": (lambda: fl.optim.Adam(0.1, eps=1e-8), lambda: fl.optim.Adam(0.1, eps=1.0)),
    "nesterov": (lambda: fl.optim.SGD(0.1, momentum=0.5), lambda: fl.optim.SGD(0.1, momentum=0.5, nesterov=True)),
    "a threshold": tuple(
        functools.partial(lambda norm: fl.optim.chain(fl.optim.clip_by_global_norm(norm), fl.optim.SGD(0.1)), norm)
        for norm in (1.0, 2.0)
    ),
    "a schedule": (lambda: other_rate(0.1), lambda: other_rate(0.5)),
    "MLX's schedule": tuple(
        functools.partial(lambda rate: fl.optim.SGD(mlx.optimizers.cosine_decay(rate, 10)), rate) for rate in (0.1, 0.5)
    ),
}


CASES = {**{name: (step, make) for name, make in OTHERS.items()}, **{fn.__name__: (fn, OTHERS["eps"]) for fn in READERS[1:]}}


@pytest.mark.parametrize(("fn", "make"), CASES.values(), ids=CASES)
def test_a_name_that_is_bound_anew_is_seen(fn, make):
    jitted = fl.jit(fn)
    for each in (make[0], make[1], make[0]):
        bind(each())
        state = setting.init(MODEL)
        assert fl.tree.allclose(jitted(MODEL, GRADS, state), fn(MODEL, GRADS, state))


def test_a_closure_that_is_bound_anew_is_seen():
    optimizer = fl.optim.AdamW(0.1, weight_decay=0.0)

    def step(model, grads, state):
        return optimizer.update(model, grads, state)

    jitted = fl.jit(step)
    for decay in (0.0, 5.0):
        optimizer = fl.optim.AdamW(0.1, weight_decay=decay)
        state = optimizer.init(MODEL)
        assert fl.tree.allclose(jitted(MODEL, GRADS, state), step(MODEL, GRADS, state))


def test_a_policy_and_a_layer_are_seen():
    policy, layer = None, None

    def call(x):
        return policy.cast_to_compute(layer(x))

    jitted = fl.jit(call)
    leaky, relu = fl.nn.LeakyReLU(0.5), fl.nn.ReLU()
    for dtype, each in ((mx.float16, leaky), (mx.bfloat16, leaky), (mx.float16, relu)):
        policy, layer = fl.Policy(compute_dtype=dtype), each
        assert fl.tree.equal(jitted(mx.array([-1.0])), call(mx.array([-1.0])))
    assert jitted.trace_count == 3


@pytest.mark.parametrize("fn", READERS, ids=lambda fn: fn.__name__)
def test_an_equal_one_and_one_that_comes_again_are_not_traced_again(fn):
    jitted = fl.jit(fn)
    for decay in (0.0, 0.0, 5.0, 0.0, 5.0):
        bind(fl.optim.AdamW(0.1, weight_decay=decay))
        jitted(MODEL, GRADS, setting.init(MODEL))
    assert jitted.trace_count == 2


def test_what_was_new_is_explained():
    jitted = fl.jit(of_helper)
    for decay in (0.0, 5.0):
        bind(fl.optim.AdamW(0.1, weight_decay=decay))
        jitted(MODEL, GRADS, state=setting.init(MODEL))
    change = "setting in step.arguments.weight_decay: static 0.0 -> 5.0"
    assert jitted.explain() == f"of_helper was traced again (trace 2) for {change}."


def test_in_one_trace_for_all_shapes():
    half, quarter = fl.nn.LeakyReLU(0.5), fl.nn.LeakyReLU(0.25)
    layer = half
    jitted = fl.jit(lambda x: layer(x) * 2, shapeless=True)
    found = []
    for each, size in ((half, 2), (half, 3), (quarter, 3), (half, 2)):
        layer = each
        found.append(jitted(-mx.ones(size)).tolist())
    assert found == [[-1.0] * 2, [-1.0] * 3, [-0.5] * 3, [-1.0] * 2]
    assert jitted.trace_count == 2


def test_a_default_and_what_is_no_setting_are_looked_at_by_no_call():
    optimizer, number, others = fl.optim.SGD(0.1), 2, {"a": 1}

    def step(model, grads, state, optimizer=optimizer):
        others.get("a")
        return fl.tree.map(lambda leaf: leaf * number, optimizer.update(model, grads, state))

    jitted = fl.jit(step)
    jitted(MODEL, GRADS, optimizer.init(MODEL))
    assert jitted.options.settings == {}


def test_each_setting_is_looked_at_once():
    bind(fl.optim.chain(fl.optim.clip_by_value(1.0), fl.optim.SGD(0.1)))

    def twice(model, grads, state):
        assert len(setting.transforms) == 1
        return step(*step(model, grads, state)[:1], grads, setting.init(model))

    jitted = fl.jit(twice)
    jitted(MODEL, GRADS, setting.init(MODEL))
    assert list(jitted.options.settings) == ["setting"]


def test_a_name_that_is_given_to_a_model_is_warned_of():
    layer = fl.nn.ReLU()
    jitted = fl.jit(lambda x: layer(x))
    x = mx.ones((1, 2))
    jitted(x)
    layer = fl.nn.Linear(2, 3)
    with pytest.warns(fl.CapturedArrayWarning) as caught:
        assert mx.allclose(jitted(x), layer(x))
    assert [str(each.message) for each in caught] == [
        CAPTURED.format(fn="<lambda>", variables="layer (a Linear with 2 arrays)")
    ]


def test_nothing_that_was_dropped_is_kept_alive():
    rates = [other_rate(0.1)]
    schedule = weakref.ref(rates[0].arguments["learning_rate"])

    def helper():
        setting = rates[0]
        return lambda model, grads, state: setting.update(model, grads, state)

    updates = [helper()]
    jitted = fl.jit(lambda update, *args: update(*args))
    jitted(updates[0], MODEL, GRADS, rates[0].init(MODEL))
    assert list(jitted.options.settings) == ["setting in <lambda>"]
    del updates[:], rates[:]
    gc.collect()
    assert schedule() is None


def test_a_trace_that_returns_a_setting_returns_the_one_of_the_call():
    jitted = fl.jit(lambda x: (x + 1, setting))
    for rate in (0.1, 0.5, 0.1):
        bind(other_rate(rate))
        _, found = jitted(mx.array(1))
        assert fl.tree.equal(found, setting)


def test_no_warning_is_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test_an_equal_one_and_one_that_comes_again_are_not_traced_again(of_holder)
