"""eval_shape and ShapeDtypeStruct: shapes without arrays."""

import copy
import pickle

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf import ShapeDtypeStruct


def test_a_struct_is_a_value():
    struct = ShapeDtypeStruct([2, 3], mx.bfloat16)
    assert struct == ShapeDtypeStruct((2, 3), mx.bfloat16)
    assert hash(struct) == hash(ShapeDtypeStruct((2, 3), mx.bfloat16))
    assert struct not in (ShapeDtypeStruct((3, 2), mx.bfloat16), ShapeDtypeStruct((2, 3), mx.float16))
    assert (repr(struct), struct.shape, struct.ndim, struct.size, struct.nbytes) == ("bf16[2,3]", (2, 3), 2, 6, 12)
    assert (repr(ShapeDtypeStruct(())), repr(ShapeDtypeStruct((10**12,), mx.bool_))) == ("f32[]", "bool[1000000000000]")
    assert pickle.loads(pickle.dumps(struct)) == copy.deepcopy(struct) == struct
    with pytest.raises(AttributeError):
        struct.shape = (1,)


def test_a_constructor_of_any_size_takes_no_memory():
    mx.random.seed(0)
    before, active = mx.random.state[0], mx.get_active_memory()
    mx.reset_peak_memory()
    model = fl.eval_shape(fl.nn.Linear, 50_000, 50_000)
    out = fl.eval_shape(model, ShapeDtypeStruct((1000, 50_000)))
    assert max(mx.get_peak_memory(), mx.get_active_memory()) - active < 10_000
    assert type(model) is fl.nn.Linear
    assert (model.weight, model.bias) == (ShapeDtypeStruct((50_000, 50_000)), ShapeDtypeStruct((50_000,)))
    assert repr(model) == "Linear(weight=f32[50000,50000], bias=f32[50000])"
    assert out == ShapeDtypeStruct((1000, 50_000))
    assert fl.tree.equal(mx.random.state[0], before)
    drawn = mx.random.normal((2,))
    mx.random.seed(0)
    assert fl.tree.equal(drawn, mx.random.normal((2,)))


def test_the_result_is_the_tree_of_shapes_of_what_the_function_returns():
    def function(tree, x, *, by):
        return {"tree": tree, "y": [x @ tree["w"], (x > 0, by)], "n": tree["n"]}

    tree = {"w": mx.zeros((3, 4), mx.float16), "n": 3}
    expected = {
        "tree": {"w": ShapeDtypeStruct((3, 4), mx.float16), "n": 3},
        "y": [ShapeDtypeStruct((2, 4), mx.float16), (ShapeDtypeStruct((2, 3), mx.bool_), "by")],
        "n": 3,
    }
    abstract = {"w": ShapeDtypeStruct((3, 4), mx.float16), "n": 3}
    for tree_given, x in ((tree, mx.zeros((2, 3), mx.float16)), (abstract, ShapeDtypeStruct((2, 3), mx.float16))):
        assert fl.eval_shape(function, tree_given, x, by="by") == expected
    assert fl.eval_shape(lambda: None) is None


def test_it_goes_with_the_other_transformations():
    model, x = fl.eval_shape(fl.nn.Linear, 2, 3), ShapeDtypeStruct((5, 2))

    def loss(model, x):
        return (fl.nn.Dropout(0.5)(model(x)) ** 2).sum()

    scalar = ShapeDtypeStruct(())
    step = fl.jit(fl.value_and_grad(loss))
    value, grads = fl.eval_shape(step, model, x)
    assert (value, fl.tree.equal(grads, model)) == (scalar, True)
    assert type(grads) is fl.nn.Linear
    assert fl.eval_shape(fl.vmap(fl.nn.Linear(2, 3)), x) == ShapeDtypeStruct((5, 3))
    ensemble = fl.eval_shape(fl.vmap(lambda key: fl.nn.Linear(2, 3, key=key)), mx.random.split(mx.random.key(0), 4))
    assert ensemble.weight.shape == (4, 3, 2)
    assert fl.eval_shape(fl.checkpoint(loss), model, x) == scalar
    inside = fl.jit(lambda x: x * fl.eval_shape(lambda y: y.sum(0), x).shape[0])
    assert inside(mx.ones((5, 2))).tolist() == (mx.ones((5, 2)) * 2).tolist()
    step(fl.nn.Linear(2, 3), mx.ones((5, 2)))  # what was traced for shapes serves arrays as well
    assert mx.random.normal((2,)).shape == (2,)


def test_a_function_that_looks_at_values_is_an_error_and_the_random_state_is_whole():
    def looks(x):
        mx.random.normal((2,))
        return mx.zeros(int(x.sum().item()))

    before = mx.random.state[0]
    for given in (mx.ones(3), ShapeDtypeStruct((3,))):
        with pytest.raises(ValueError, match="eval"):
            fl.eval_shape(looks, given)
        assert fl.tree.equal(mx.random.state[0], before)
    assert mx.random.normal((2,)).shape == (2,)


def test_an_error_of_the_function_comes_through():
    with pytest.raises(ValueError, match="broadcast"):
        fl.eval_shape(lambda x, y: x + y, ShapeDtypeStruct((2,)), ShapeDtypeStruct((3,)))


def test_inside_stateful_nothing_is_recorded():
    class Model(fl.Module):
        norm: fl.nn.BatchNorm

        def __call__(self, x):
            assert fl.eval_shape(lambda x: self.norm(x), x) == ShapeDtypeStruct((3, 2))
            return x

    model = Model(fl.nn.BatchNorm(2))
    assert fl.stateful(model, mx.ones((3, 2)))[1].norm.running_mean is model.norm.running_mean
