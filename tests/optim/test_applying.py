"""Updates added to a model, in the dtypes it has."""

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf import optim


def net():
    return fl.nn.Sequential(fl.nn.Linear(2, 3).freeze(keys="bias"), fl.nn.BatchNorm(3))


def loss(model):
    return fl.stateful(model, mx.ones((4, 2)))[0].square().sum() + model.layers[0].weight.sum()


@pytest.mark.parametrize("wrap", [lambda step: step, fl.jit], ids=["eager", "jit"])
def test_the_step_is_that_of_sgd(wrap):
    model = net()
    step = wrap(lambda model, grads: optim.apply_updates(model, fl.tree.map(lambda g: -0.1 * g, grads)))
    grads = fl.grad(loss)(model)
    after = step(model, grads)
    opt = optim.SGD(0.1)
    assert fl.tree.structure(after) == fl.tree.structure(model)
    assert fl.tree.allclose(after, opt.update(model, grads, opt.init(model))[0], rtol=1e-6, atol=1e-7)
    kept = set(fl.tree.paths(model)) - set(fl.tree.paths(grads))
    assert kept == {"layers.0.bias", "layers.1.running_mean", "layers.1.running_var"}
    before, now = (dict(zip(fl.tree.paths(tree), fl.tree.leaves(tree), strict=True)) for tree in (model, after))
    assert all(now[path] is before[path] for path in kept)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("other", [mx.float16, mx.bfloat16, mx.float32])
def test_the_dtype_of_the_parameter_is_kept_and_the_sum_is_rounded_once(dtype, other):
    w, update = mx.array([1.0, 2.0], dtype), mx.array([0.001, 0.3], other)
    after = optim.apply_updates({"w": w, "n": None}, {"w": update, "n": None})
    assert after["w"].dtype == dtype
    assert mx.array_equal(after["w"], (w + update).astype(dtype))


def test_integers_may_be_counted_and_no_update_shares_everything():
    count = {"n": mx.array(3)}
    assert optim.apply_updates(count, {"n": mx.array(1)})["n"].item() == 4
    model = net()
    none = fl.tree.map(lambda _: None, model)
    assert all(one is two for one, two in zip(*map(fl.tree.leaves, (optim.apply_updates(model, none), model)), strict=True))


@pytest.mark.parametrize(
    ("updates", "shown"),
    [
        ({"w": mx.ones(2), "n": None}, "the update for 'w', f32[3], is an array of its shape or None, not f32[2]"),
        ({"w": mx.array(1.0), "n": None}, "the update for 'w', f32[3], is an array of its shape or None, not f32[]"),
        ({"w": 0.5, "n": None}, "the update for 'w', f32[3], is an array of its shape or None, not 0.5"),
        ({"w": None, "n": mx.array(0.5)}, "the update for 'n', i32[], would be rounded to integers: it is f32[]"),
        ({"w": mx.ones(3)}, "the update does not have the structure of the tree it goes with"),
    ],
)
def test_what_does_not_fit_is_refused(updates, shown):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        optim.apply_updates({"w": mx.ones(3), "n": mx.array(1)}, updates)
    assert shown in str(raised.value)
