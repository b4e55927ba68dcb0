"""The average of a model, against the formula."""

import mlx.core as mx
import pytest
from optim.stacks import gradients_of, named

import frostleaf as fl
from frostleaf import optim
from frostleaf.core.words import describe
from frostleaf.optim.optimizer import NOT_A_STATE, NOT_AN_OPTIMIZER, OTHER_STATE

LAYER = fl.nn.Linear(3, 2, key=mx.random.key(0))


@pytest.mark.parametrize("decay", [0, 0.5, 0.99, 1])
@pytest.mark.parametrize(
    "opt", [optim.SGD(0.1), optim.AdamW(0.1), optim.flatten(optim.Adam(0.1))], ids=["SGD", "AdamW", "flattened"]
)
def test_the_average_is_that_of_the_formula(opt, decay):
    averaging = optim.ema(opt, decay)
    model, state = LAYER, averaging.init(LAYER)
    plain, plain_state, average = LAYER, opt.init(LAYER), LAYER
    assert fl.tree.equal(averaging.averaged(model, state), LAYER)
    for step in range(5):
        model, state = averaging.update(model, gradients_of(model, step), state)
        plain, plain_state = opt.update(plain, gradients_of(plain, step), plain_state)
        average = fl.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, plain)
        assert fl.tree.equal((model, state.inner), (plain, plain_state))
        assert fl.tree.allclose(averaging.averaged(model, state), average, rtol=1e-6, atol=1e-7)


def test_the_averaged_model_is_one_like_the_model_and_shares_what_is_not_trained():
    model = fl.nn.Sequential(fl.nn.Linear(2, 2).freeze(keys="bias"), fl.nn.BatchNorm(2), fl.nn.Dropout(0.5))
    opt = optim.ema(optim.SGD(0.1), 0.5)
    after, state = opt.update(model, gradients_of(model), opt.init(model))
    average = opt.averaged(after, state)
    assert fl.tree.structure(average) == fl.tree.structure(after)
    now, averages = named(after), named(average)
    assert {path for path in now if averages[path] is now[path]} == now.keys() - state.average.keys()
    assert sorted(state.average) == ["layers.0.weight", "layers.1.bias", "layers.1.weight"]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
def test_the_average_of_a_model_in_half_precision_does_not_stand_still(dtype):
    opt = optim.ema(optim.SGD(1.0), 0.999)
    w = mx.zeros(1, dtype) + 1
    state, average = opt.init(w), 1.0
    assert state.average[""].dtype == mx.float32
    for _ in range(20):
        w, state = opt.update(w, mx.array([-0.0625], dtype), state)
        average = 0.999 * average + 0.001 * w.item()
    assert state.average[""].item() == pytest.approx(average, rel=1e-5)
    assert opt.averaged(w, state).dtype == dtype


def test_an_average_of_steps_or_of_updates():
    """Around accumulate the average moves with every update, inside with every step."""
    w, grads = mx.array(0.0), mx.array(-1.0)
    outside, inside = (
        optim.ema(optim.accumulate(optim.SGD(1.0), 2), 0.5), optim.accumulate(optim.ema(optim.SGD(1.0), 0.5), 2),
    )  # fmt: skip
    states = outside.init(w), inside.init(w)
    one, other = w, w
    for _ in range(4):
        one, outer = outside.update(one, grads, states[0])
        other, inner = inside.update(other, grads, states[1])
        states = outer, inner
    assert (one.item(), other.item()) == (2.0, 2.0)
    assert outer.average[""].item() == ((0.0 * 0.5 + 1.0 * 0.5) * 0.5 + 1.0 * 0.5) * 0.5 + 2.0 * 0.5
    assert inner.inner.average[""].item() == (1.0 * 0.5) * 0.5 + 2.0 * 0.5


def test_averages_are_carried_over_and_begin_at_the_model():
    opt = optim.ema(optim.SGD(0.1), 0.5)
    frozen, state = LAYER.freeze(keys="bias"), None
    frozen, state = opt.update(frozen, gradients_of(frozen), opt.init(frozen))
    model = frozen.unfreeze()
    adapted = opt.adapt(state, model)
    assert adapted.average["weight"] is state.average["weight"]
    assert mx.array_equal(adapted.average["bias"], model.bias)
    assert list(opt.adapt(adapted, frozen).average) == ["weight"]
    assert fl.tree.equal(opt.averaged(frozen, state), opt.averaged(frozen, opt.adapt(adapted, frozen)))


def test_the_average_of_a_packed_model_is_a_packed_model():
    opt, packed = optim.ema(optim.flatten(optim.SGD(0.1)), 0.5), optim.pack(LAYER)
    packed, state = opt.update(packed, gradients_of(LAYER), opt.init(packed))
    plain = optim.ema(optim.SGD(0.1), 0.5)
    model, plain_state = plain.update(LAYER, gradients_of(LAYER), plain.init(LAYER))
    assert fl.tree.equal(opt.averaged(packed, state).unpack(), plain.averaged(model, plain_state))


@pytest.mark.parametrize("given", [-0.1, 1.1, "0.9", None, True, float("nan"), mx.array(0.9)], ids=str)
def test_what_is_no_decay_is_refused(given):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        optim.ema(optim.SGD(0.1), given)
    assert str(raised.value) == f"ema takes a decay from 0 to 1, and was given {describe(given)}"


@pytest.mark.parametrize(("given", "shown"), [(None, "None"), (optim.Adam, "Adam"), (0.9, "0.9")])
def test_what_is_no_optimizer_is_refused(given, shown):
    with pytest.raises(TypeError) as raised:
        optim.ema(given, 0.9)
    assert str(raised.value) == NOT_AN_OPTIMIZER.format(function="ema", given=shown)


def test_the_average_of_another_model_is_refused():
    opt = optim.ema(optim.SGD(0.1), 0.9)
    state = opt.init(LAYER)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        opt.averaged(LAYER.freeze(keys="bias"), state)
    differences = "'bias' is not trainable"
    assert str(raised.value) == OTHER_STATE.format(optimizer="EMA", method="averaged", differences=differences)
    with pytest.raises(TypeError) as raised:
        opt.averaged(LAYER, state.inner)
    assert str(raised.value) == NOT_A_STATE.format(optimizer="EMA", method="averaged", given="OptimizerState(...)")
    with pytest.raises(ValueError, match=r"average of 'bias' is f32\[2\] and the state has f32\[3\]"):
        opt.averaged(LAYER, state.replace(average={**state.average, "bias": mx.zeros(3)}))


def of_parts(opt):
    return optim.multi({"bias": optim.SGD(0.1), "**": opt})


@pytest.mark.parametrize(
    ("around", "averages"),
    [
        (lambda opt: optim.accumulate(opt, 1), {"weight", "bias"}),
        (optim.skip_nonfinite, {"weight", "bias"}),
        (lambda opt: optim.chain(optim.clip_by_value(100.0), opt), {"weight", "bias"}),
        (lambda opt: optim.ema(optim.chain(optim.clip_by_value(100.0), opt.optimizer), opt.decay), {"weight", "bias"}),
        (lambda opt: optim.masked(opt, "weight"), {"weight"}),
        (of_parts, {"weight"}),
        (lambda opt: optim.skip_nonfinite(optim.accumulate(of_parts(opt), 1)), {"weight"}),
    ],
)
def test_what_is_around_it_hands_on_the_average(around, averages):
    alone = optim.ema(optim.SGD(0.1), 0.75)
    grads = fl.tree.map(mx.ones_like, LAYER)
    expected = alone.averaged(*alone.update(LAYER, grads, alone.init(LAYER)))
    opt = around(alone)
    after, state = opt.update(LAYER, grads, opt.init(LAYER))
    averaged = opt.averaged(after, state)
    for name in ("weight", "bias"):
        other = expected if name in averages else after
        assert fl.tree.equal(getattr(averaged, name), getattr(other, name)), name


@pytest.mark.parametrize("opt", [optim.SGD(0.1), optim.accumulate(optim.SGD(0.1), 2), of_parts(optim.SGD(0.1))])
def test_an_optimizer_without_an_average_names_ema(opt):
    with pytest.raises(ValueError, match=r"keeps no average of the model: fl\.optim\.ema\(opt, decay\) makes"):
        opt.averaged(LAYER, opt.init(LAYER))


def test_the_average_of_a_sharded_state_is_asked_of_the_whole():
    opt = optim.chain(optim.clip_by_value(1.0), optim.shard(optim.ema(optim.SGD(0.1), 0.75)))
    state = opt.init(LAYER)
    with pytest.raises(ValueError, match=r"opt\.optimizer\.averaged\(model, opt\.gather\(state\)\)"):
        opt.averaged(LAYER, state)
    sharded = opt.optimizer
    assert fl.tree.equal(sharded.optimizer.averaged(LAYER, sharded.gather(state)), LAYER)
