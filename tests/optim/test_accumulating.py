"""A step for several batches is a step for one large batch."""

import mlx.core as mx
import pytest
from optim.stacks import gradients_of

import frostleaf as fl
from frostleaf import optim
from frostleaf.core.words import describe
from frostleaf.optim.accumulating import AccumulateState
from frostleaf.optim.optimizer import NOT_A_STATE, NOT_AN_OPTIMIZER, OTHER_STATE

INPUTS = mx.random.normal((24, 3), key=mx.random.key(0))
TARGETS = mx.random.normal((24, 2), key=mx.random.key(1))
LAYER = fl.nn.Linear(3, 2, key=mx.random.key(2))


def mean_square(model, x, y):
    return ((model(x) - y) ** 2).mean()


def trained(opt, model, batches, steps=3):
    """Return the model after going through the data several times, in so many batches."""
    state = opt.init(model)
    for _ in range(steps):
        for x, y in zip(mx.split(INPUTS, batches), mx.split(TARGETS, batches), strict=True):
            dtype = model.weight.dtype
            model, state = opt.update(model, fl.grad(mean_square)(model, x.astype(dtype), y.astype(dtype)), state)
    return model, state


OPTIMIZERS = {
    "SGD": optim.SGD(0.1, momentum=0.9),
    "AdamW": optim.AdamW(0.01, bias_correction=True),
    "Adam on a schedule": optim.Adam(optim.linear_schedule(0.1, 0.01, 3)),
    "Adafactor": optim.Adafactor(),
    "clipped": optim.chain(optim.clip_by_global_norm(0.1), optim.SGD(0.1)),
    "several": optim.multi({"bias": optim.SGD(0.1), "**": optim.Lion(0.01)}),
    "flattened": optim.flatten(optim.RMSprop(0.01)),
}


@pytest.mark.parametrize("n", [1, 2, 4, 12])
@pytest.mark.parametrize("opt", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_several_batches_are_one_large_batch(opt, n):
    model, state = trained(optim.accumulate(opt, n), LAYER, n)
    large, large_state = trained(opt, LAYER, 1)
    assert fl.tree.allclose(model, large, rtol=1e-3, atol=1e-5)
    assert fl.tree.allclose(state.inner, large_state, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_summed_in_float32(dtype):
    model, state = trained(optim.accumulate(optim.SGD(0.1), 12), LAYER.astype(dtype), 12)
    assert {array.dtype for array in state.gradients.values()} == {mx.float32}
    assert {leaf.dtype for leaf in fl.tree.leaves(model)} == {dtype}
    large, _ = trained(optim.SGD(0.1), LAYER.astype(dtype), 1)
    assert fl.tree.allclose(model, large, rtol=2e-2, atol=1e-2)


def test_small_gradients_are_not_lost_in_a_large_sum():
    w, opt = mx.array([0.0], mx.bfloat16), optim.accumulate(optim.SGD(1.0), 257)
    state = opt.init(w)
    for gradient in [256.0] + [1.0] * 256:
        w, state = opt.update(w, mx.array([gradient], mx.bfloat16), state)
    assert w.item() == mx.array(-512 / 257).astype(mx.bfloat16).item()


def test_in_between_nothing_changes_and_gradients_are_summed():
    opt = optim.accumulate(optim.Adam(0.1), 3)
    state = opt.init(LAYER)
    model, total = LAYER, fl.tree.map(mx.zeros_like, LAYER)
    for step in range(2):
        grads = gradients_of(LAYER, step)
        total = fl.tree.map(mx.add, total, grads)
        model, after = opt.update(model, grads, state)
        assert fl.tree.equal(model, LAYER)
        assert fl.tree.equal(after.inner, state.inner)
        assert fl.tree.equal(dict(after.gradients), {"weight": total.weight, "bias": total.bias})
        assert (after.count.item(), after.count.dtype) == (step + 1, mx.uint32)
        state = after
    model, state = opt.update(model, gradients_of(LAYER, 2), state)
    assert not mx.array_equal(model.weight, LAYER.weight)
    assert state.inner.step.item() == 1
    assert fl.tree.equal(state.replace(inner=opt.init(LAYER).inner), opt.init(LAYER))


def test_a_schedule_goes_by_steps():
    opt = optim.accumulate(optim.SGD(lambda step: step + 1.0), 2)
    w, state, rates = mx.array(0.0), opt.init(mx.array(0.0)), []
    for _ in range(6):
        w, state = opt.update(w, mx.array(1.0), state)
        rates.append(opt.learning_rate(state).item())
    assert rates == [1.0, 1.0, 1.0, 2.0, 2.0, 3.0]
    assert w.item() == -(1.0 + 2.0 + 3.0)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (4, 1), (3, 3)])
def test_the_number_may_change_on_the_way(before, after):
    """The batch size may grow as training goes on: what was summed so far counts."""
    w, state = mx.array(0.0), optim.accumulate(optim.SGD(1.0), before).init(mx.array(0.0))
    summed = []
    for number in range(before - 1):
        w, state = optim.accumulate(optim.SGD(1.0), before).update(w, mx.array(float(number)), state)
        summed.append(float(number))
    opt = optim.accumulate(optim.SGD(1.0), after)
    for _ in range(max(before, after) - len(summed)):
        assert w.item() == 0.0
        w, state = opt.update(w, mx.array(7.0), state)
        summed.append(7.0)
    assert w.item() == pytest.approx(-sum(summed) / len(summed))
    assert state.count.item() == 0


def test_what_was_summed_is_carried_over_for_what_is_still_trained():
    opt = optim.accumulate(optim.SGD(1.0), 2)
    _, state = opt.update(LAYER, gradients_of(LAYER), opt.init(LAYER))
    adapted = opt.adapt(state, LAYER.freeze(keys="bias"))
    assert adapted.gradients["weight"] is state.gradients["weight"]
    assert list(adapted.gradients) == ["weight"]
    assert adapted.count is state.count
    back = opt.adapt(adapted, LAYER)
    assert back.gradients["weight"] is state.gradients["weight"]
    assert back.gradients["bias"].tolist() == [0.0, 0.0]
    wider = LAYER.replace(weight=mx.zeros((5, 3)))
    assert opt.adapt(state, wider).gradients["weight"].shape == (5, 3)


@pytest.mark.parametrize("given", [0, -1, 2.0, True, "2", None, mx.array(2)], ids=str)
def test_what_is_no_number_of_batches_is_refused(given):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        optim.accumulate(optim.SGD(0.1), given)
    assert (
        str(raised.value) == f"accumulate takes the number of batches for each step, 1 or more, and was given {describe(given)}"
    )


@pytest.mark.parametrize(("given", "shown"), [(None, "None"), (optim.Adam, "Adam"), (2, "2")])
def test_what_is_no_optimizer_is_refused(given, shown):
    with pytest.raises(TypeError) as raised:
        optim.accumulate(given, 2)
    assert str(raised.value) == NOT_AN_OPTIMIZER.format(function="accumulate", given=shown)


def test_states_that_do_not_belong_to_it_are_refused():
    opt, grads = optim.accumulate(optim.SGD(0.1), 2), gradients_of(LAYER)
    state = opt.init(LAYER)
    assert type(state) is AccumulateState
    with pytest.raises(TypeError) as raised:
        opt.update(LAYER, grads, state.inner)
    assert str(raised.value) == NOT_A_STATE.format(optimizer="Accumulate", method="update", given="OptimizerState(...)")
    missing = state.replace(gradients={"weight": state.gradients["weight"]})
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        opt.update(LAYER, grads, missing)
    differences = "'bias' has no sum of gradients"
    assert str(raised.value) == OTHER_STATE.format(optimizer="Accumulate", method="update", differences=differences)
    wide = state.replace(gradients={**state.gradients, "bias": mx.zeros(3)})
    with pytest.raises(ValueError, match=r"sum of gradients of 'bias' is f32\[2\] and the state has f32\[3\]"):
        opt.update(LAYER, grads, wide)
