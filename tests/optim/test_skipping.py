"""Steps whose gradients are not finite."""

import mlx.core as mx
import pytest
from optim.stacks import gradients_of

import frostleaf as fl
from frostleaf import optim
from frostleaf.optim.optimizer import NOT_A_STATE, NOT_AN_OPTIMIZER

MODEL = [fl.nn.Linear(2, 3, key=mx.random.key(0)), {"a": mx.array([0.0, -0.0, 1.0]), "half": mx.ones(2, mx.float16)}]
OPTIMIZERS = {
    "SGD": optim.SGD(0.1, momentum=0.9),
    "AdamW on a schedule": optim.AdamW(optim.linear_schedule(0.1, 0.2, 3)),
    "Adafactor": optim.Adafactor(),
    "ema": optim.ema(optim.SGD(0.1), 0.9),
    "accumulate": optim.accumulate(optim.SGD(0.1), 3),
    "several": optim.multi({"1.a": optim.SGD(0.1), "**": optim.Lion(0.1)}),
    "clipped": optim.chain(optim.clip_by_global_norm(0.1), optim.SGD(0.1)),
    "flattened": optim.flatten(optim.RMSprop(0.1)),
    "a part": optim.masked(optim.SGD(0.1), "0"),
}
each_optimizer = pytest.mark.parametrize("inner", OPTIMIZERS.values(), ids=OPTIMIZERS)
NOT_FINITE = [mx.nan, mx.inf, -mx.inf]


def bits(tree):
    return [bytes(memoryview(leaf)) for leaf in fl.tree.leaves(tree)]


def spoilt(grads, value):
    return fl.tree.map_with_path(lambda path, leaf: leaf * mx.array([1.0, value, 1.0]) if path == "0.bias" else leaf, grads)


@each_optimizer
@pytest.mark.parametrize("value", NOT_FINITE)
def test_such_a_step_changes_nothing_and_is_counted(inner, value):
    opt = optim.skip_nonfinite(inner)
    model, state = opt.update(MODEL, gradients_of(MODEL), opt.init(MODEL))
    assert (state.skipped.item(), state.skipped.dtype) == (0, mx.uint32)
    after, skipped = opt.update(model, spoilt(gradients_of(MODEL), value), state)
    assert bits(after) == bits(model)
    assert bits(skipped.inner) == bits(state.inner)
    assert fl.tree.structure(skipped) == fl.tree.structure(state)
    assert skipped.skipped.item() == 1


@each_optimizer
def test_training_goes_on_as_if_nothing_had_been(inner):
    opt = optim.skip_nonfinite(inner)
    model, state = MODEL, opt.init(MODEL)
    plain, plain_state = MODEL, inner.init(MODEL)
    for step in range(4):
        model, state = opt.update(model, gradients_of(MODEL, step), state)
        model, state = opt.update(model, spoilt(gradients_of(MODEL, step), mx.nan), state)
        plain, plain_state = inner.update(plain, gradients_of(MODEL, step), plain_state)
    assert fl.tree.equal((model, state.inner), (plain, plain_state))
    assert state.skipped.item() == 4


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_packed_model_is_skipped_alike(value):
    layer = MODEL[0]
    opt, packed = optim.skip_nonfinite(optim.flatten(optim.Adam(0.1))), optim.pack(layer)
    state, grads = opt.init(packed), gradients_of(layer)
    after, state = opt.update(packed, grads.at("bias").apply(lambda bias: bias * value), state)
    assert bits(after) == bits(packed)
    assert (state.skipped.item(), state.inner.step.item()) == (1, 0)


def test_gradients_of_what_is_frozen_are_not_looked_at():
    layer = MODEL[0].freeze(keys="bias")
    opt = optim.skip_nonfinite(optim.SGD(0.1))
    after, state = opt.update(layer, layer.replace(bias=mx.full(3, mx.nan)), opt.init(layer))
    assert state.skipped.item() == 0
    assert not mx.array_equal(after.weight, layer.weight)


def test_in_an_ensemble_each_is_skipped_by_itself():
    opt = optim.skip_nonfinite(optim.SGD(1.0))
    models = mx.zeros((3, 2))
    grads = mx.array([[1.0, 1.0], [mx.nan, 1.0], [1.0, mx.inf]])
    after, state = fl.vmap(opt.update)(models, grads, fl.vmap(opt.init)(models))
    assert after.tolist() == [[-1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]
    assert state.skipped.tolist() == [0, 1, 1]
    assert state.inner.step.tolist() == [1, 0, 0]


def test_accumulate_around_it_skips_the_step_and_inside_it_the_batch():
    w, grads = mx.array(0.0), [1.0, mx.nan, 3.0]
    for opt, expected in (
        (optim.skip_nonfinite(optim.accumulate(optim.SGD(1.0), 2)), -2.0),
        (optim.accumulate(optim.skip_nonfinite(optim.SGD(1.0)), 2), 0.0),
    ):
        model, state = w, opt.init(w)
        for gradient in grads:
            model, state = opt.update(model, mx.array(gradient), state)
        assert model.item() == expected


def test_in_a_jitted_step():
    opt, model = optim.skip_nonfinite(optim.SGD(1.0)), {"w": mx.ones(2)}
    update, state = fl.jit(opt.update), opt.init({"w": mx.ones(2)})
    for value in (1.0, mx.nan, 1.0):
        model, state = update(model, {"w": mx.array([1.0, value])}, state)
    assert model["w"].tolist() == [-1.0, -1.0]
    assert (state.skipped.item(), state.inner.step.item(), update.trace_count) == (1, 2, 1)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ([], True),
        (None, True),
        (mx.array(1), True),
        ({"a": mx.ones(2), "b": [mx.array(mx.inf)]}, False),
        ((mx.array([1.0, mx.nan], mx.bfloat16), 3), False),
        (mx.array(-mx.inf), False),
        (mx.zeros((0,)), True),
        (mx.array(65504.0, mx.float16), True),
        (fl.nn.Linear(2, 2), True),
        ([float("nan"), mx.ones(1)], True),
    ],
)
def test_whether_all_is_finite(tree, expected):
    found = optim.all_finite(tree)
    assert (found.item(), found.dtype, found.shape) == (expected, mx.bool_, ())


@pytest.mark.parametrize(("given", "shown"), [(None, "None"), (optim.SGD, "SGD"), (MODEL[0], "Linear(...)")])
def test_what_is_no_optimizer_is_refused(given, shown):
    with pytest.raises(TypeError) as raised:
        optim.skip_nonfinite(given)
    assert str(raised.value) == NOT_AN_OPTIMIZER.format(function="skip_nonfinite", given=shown)


def test_what_is_no_state_of_it_is_refused():
    opt = optim.skip_nonfinite(optim.SGD(0.1))
    with pytest.raises(TypeError) as raised:
        opt.update(MODEL, gradients_of(MODEL), opt.init(MODEL).inner)
    assert str(raised.value) == NOT_A_STATE.format(optimizer="SkipNonfinite", method="update", given="OptimizerState(...)")
