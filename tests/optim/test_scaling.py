"""Loss scales, against the formula."""

import math
import pickle

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf import optim
from frostleaf.core.words import describe

SCALES = {"static": lambda: optim.StaticLossScale(8.0), "dynamic": lambda: optim.DynamicLossScale(8.0, period=2)}
each_scale = pytest.mark.parametrize("make", SCALES.values(), ids=SCALES)
LAYER = fl.nn.Linear(2, 3, key=mx.random.key(0))
FINITE = [True] * 5 + [False] + [True] * 2 + [False] * 3 + [True] * 7


def expected_values(value, period, factor, finite):
    """Return the scale after each gradient, by the formula."""
    values, row = [], 0
    for each in finite:
        row = row + 1 if each else 0
        if not each:
            value = max(1.0, value / factor)
        elif row == period:
            value, row = value * factor, 0
        values.append(value)
    return values


@pytest.mark.parametrize("value", [2.0**15, 4.0, 1.0, 3.0])
@pytest.mark.parametrize("period", [1, 2, 3, 2000])
@pytest.mark.parametrize("factor", [2.0, 1.5, 4])
def test_the_values_of_a_dynamic_scale_are_those_of_the_formula(value, period, factor):
    scale, values = optim.DynamicLossScale(value, period, factor), []
    for finite in FINITE:
        scale = scale.adjust(mx.array(finite))
        values.append(scale.value.item())
    assert values == pytest.approx(expected_values(value, period, factor, FINITE))
    assert (scale.value.dtype, scale.count.dtype) == (mx.float32, mx.uint32)


def test_a_dynamic_scale_never_grows_to_infinity():
    scale = optim.DynamicLossScale(2.0**126, period=1)
    for _ in range(3):
        scale = scale.adjust(mx.array(True))
    assert scale.value.item() == 2.0**127
    assert scale.adjust(mx.array(False)).value.item() == 2.0**126


def test_a_static_scale_stays():
    scale = optim.StaticLossScale(3)
    assert scale.adjust(mx.array(False)) is scale
    assert (scale.value.item(), scale.value.dtype) == (3.0, mx.float32)
    assert optim.StaticLossScale().value.item() == optim.DynamicLossScale().value.item() == 2.0**15


@each_scale
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_gradients_of_the_scaled_loss_are_unscaled(make, dtype):
    scale, layer = make(), LAYER.astype(dtype)

    def loss_fn(layer, x):
        return (layer(x) ** 2).mean()

    x = mx.ones((4, 2), dtype)
    loss, grads = fl.value_and_grad(lambda layer: scale.scale(loss_fn(layer, x)))(layer)
    plain_loss, plain = fl.value_and_grad(loss_fn)(layer, x)
    assert loss.dtype == dtype
    assert mx.allclose(loss, plain_loss * 8)
    grads = scale.unscale(grads)
    assert fl.tree.structure(grads) == fl.tree.structure(plain)
    assert [leaf.dtype for leaf in fl.tree.leaves(grads)] == [dtype, dtype]
    assert fl.tree.allclose(grads, plain, rtol=1e-5 if dtype == mx.float32 else 1e-2)


@each_scale
def test_a_scale_is_a_tree_that_is_not_cast(make):
    scale = make()
    assert fl.tree.paths(scale)[0] == "value"
    assert scale.astype(mx.float16) is scale
    assert fl.tree.equal(pickle.loads(pickle.dumps(scale)), scale)
    assert fl.tree.equal(fl.tree.unstack(fl.tree.stack([scale, scale]))[1], scale)
    with pytest.raises(ValueError, match="has nothing to differentiate"):
        fl.grad(lambda scale: scale.value)(scale)
    with pytest.raises(AttributeError):
        scale.value = mx.array(1.0)


@pytest.mark.parametrize("jitted", [False, pytest.param(True, marks=pytest.mark.long)])
def test_small_gradients_survive_float16_and_large_ones_lower_the_scale(jitted):
    """Half precision computes, float32 is kept: without a scale the gradient is zero, with one too large it overflows."""
    policy, opt = fl.Policy(compute_dtype=mx.float16), optim.skip_nonfinite(optim.SGD(1.0))

    def step(model, state, scale, x):
        loss_fn = policy.wrap(lambda model, x: (model["w"] * x * x).sum())
        grads = scale.unscale(fl.grad(lambda model: scale.scale(loss_fn(model, x)))(model))
        model, state = opt.update(model, grads, state)
        return model, state, scale.adjust(optim.all_finite(grads))

    model, x = {"w": mx.ones(1)}, mx.array([2.0**-13])
    unscaled, _, _ = step(model, opt.init(model), optim.StaticLossScale(1.0), x)
    assert unscaled["w"].item() == 1.0
    state, scale, values, run = opt.init(model), optim.DynamicLossScale(2.0**17, period=3), [], fl.jit(step) if jitted else step
    for _ in range(6):
        model, state, scale = run(model, state, scale, x)
        values.append(scale.value.item())
    assert values == [2.0**16, 2.0**15, 2.0**15, 2.0**15, 2.0**16, 2.0**15]
    assert state.skipped.item() == 3
    assert 1.0 - model["w"].item() == pytest.approx(3 * 2.0**-26, abs=2.0**-23)
    assert not jitted or run.trace_count == 1
    adjust = fl.jit(lambda scale, finite: scale.adjust(finite))
    for finite in mx.array(True), mx.array(False):
        assert fl.tree.equal(adjust(scale, finite), scale.adjust(finite))
    assert adjust.trace_count == 1


def test_a_scale_for_each_of_an_ensemble():
    scales = fl.tree.stack([optim.DynamicLossScale(value, period=1) for value in (2.0, 4.0, 1.0)])
    after = fl.vmap(lambda scale, finite: scale.adjust(finite))(scales, mx.array([True, False, False]))
    assert after.value.tolist() == [4.0, 2.0, 1.0]
    assert after.count.tolist() == [0, 0, 0]


@pytest.mark.parametrize("make", [optim.StaticLossScale, optim.DynamicLossScale])
@pytest.mark.parametrize("given", [0, -1.0, math.inf, math.nan, "8", None, True, mx.array(8.0)], ids=str)
def test_what_is_no_scale_is_refused(make, given):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        make(given)
    assert str(raised.value) == f"a loss scale is a number above 0, and was given as {describe(given)}"


NOT_A_PERIOD = "period is the number of finite gradients after which the scale grows, 1 or more, and was given as "
NOT_A_FACTOR = "factor is the number by which the scale changes, above 1, and was given as "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"period": given}, NOT_A_PERIOD + repr(given)) for given in (0, -1, 2.0, True, "2", None)]
    + [({"factor": given}, NOT_A_FACTOR + repr(given)) for given in (1, 0.5, math.inf, math.nan, True, "2", None)],
)
def test_what_is_no_period_or_factor_is_refused(arguments, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        optim.DynamicLossScale(**arguments)
    assert str(raised.value) == message
