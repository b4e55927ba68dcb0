"""``"bias" in layer`` and ``layer["weight"]``, as in MLX; and what arithmetic with a module says."""

import operator

import mlx.core as mx
import mlx.nn as nn
import mlx.utils
import pytest

import frostleaf as fl


class Model(fl.Module):
    layers: tuple[fl.nn.Linear, ...]
    table: dict[str, mx.array]
    _private: mx.array
    running: mx.array = fl.buffer()
    size: int = fl.static(default=3)
    absent: mx.array | None = None


def model():
    return Model([fl.nn.Linear(2, 2)], {"a": mx.ones(1)}, mx.ones(1), mx.zeros(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [lambda n: n.Linear, lambda n: n.Conv1d, lambda n: n.LayerNorm])
def test_what_is_in_a_layer_is_what_is_in_that_of_mlx(make, bias):
    options = {"bias": bias} if "LayerNorm" not in make(nn).__name__ else {"affine": bias}
    size = (4,) if "affine" in options else (4, 4, 1)[: 2 if make(nn) is nn.Linear else 3]
    ours, theirs = make(fl.nn)(*size, **options), make(nn)(*size, **options)
    for name in ("weight", "bias", "scales", "training", "freeze", ""):
        assert (name in ours) == (name in theirs)
        if name in ours:
            assert ours[name] is getattr(ours, name)
            assert ours[name].shape == theirs[name].shape


def test_arrays_modules_containers_and_buffers_are_in_it():
    each = model()
    assert [name for name in each.__frostleaf__.fields if name in each] == ["layers", "table", "_private", "running"]
    assert each["layers"][0]["weight"] is each.layers[0].weight
    assert each["table"]["a"] is each.table["a"]
    assert list(each.state) == ["layers", "table", "_private", "running"]


@pytest.mark.parametrize("key", [0, None, ("weight",), ["weight"], mx.array(1), "parameters", "layers.0"])
def test_what_is_no_name_of_a_field_is_not_in_it(key):
    assert key not in model()
    with pytest.raises(KeyError, match="Model has no array or module"):
        model()[key]


def test_an_error_names_the_nearest_or_says_what_the_field_is():
    with pytest.raises(KeyError, match="has no array or module 'layer'; the nearest is 'layers'"):
        model()["layer"]
    with pytest.raises(KeyError, match=r"'size': it is 3, which Model\.size returns"):
        model()["size"]
    with pytest.raises(KeyError, match="'absent': it is None"):
        model()["absent"]


def test_a_tied_array_is_at_both_places():
    tied = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)).tie({"layers.1.bias": "layers.0.bias"})
    assert "bias" in tied.layers[1]
    assert tied.layers[1]["bias"] is tied["layers"][0]["bias"]


def test_under_jit_it_is_as_without():
    def call(layer, x):
        return x @ layer["weight"].T + layer["bias"] if "bias" in layer else x @ layer["weight"].T

    for bias in (True, False):
        layer, x = fl.nn.Linear(2, 3, bias=bias), mx.ones((4, 2))
        assert mx.allclose(fl.jit(call)(layer, x), layer(x))


def test_a_finished_module_can_not_be_written_to_by_key():
    layer = fl.nn.Linear(2, 2)
    with pytest.raises(fl.FrozenModuleError, match=r"\.replace\(bias=\.\.\.\)"):
        layer["bias"] = mx.ones(2)
    with pytest.raises(fl.FrozenModuleError, match="delete"):
        del layer["bias"]


def test_in_init_a_key_is_set_and_found_as_an_attribute_is():
    class ByKey(fl.Module):
        weight: mx.array
        bias: mx.array | None = None

        def __init__(self):
            assert "weight" not in self
            self["weight"] = mx.ones(2)
            assert "weight" in self
            assert "bias" not in self

    assert ByKey()["weight"].tolist() == [1, 1]


def test_iteration_and_assignment_to_several_names_are_refused_in_words():
    with pytest.raises(TypeError, match=r"iterating over this Linear .* \.parameters\(\)"):
        list(fl.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="assigning it to several names"):
        _loss, _grads = fl.grad(lambda layer: layer(mx.ones(2)).sum())(fl.nn.Linear(2, 2))


def test_a_module_without_arrays_is_still_true():
    assert fl.nn.ReLU()


# Arithmetic

LAYER = fl.nn.Linear(2, 2)
BINARY = [
    (operator.add, "+"), (operator.sub, "-"), (operator.mul, "*"), (operator.truediv, "/"), (operator.floordiv, "//"),
    (operator.mod, "%"), (operator.pow, "**"), (operator.matmul, "@"),
]  # fmt: skip


def said(call):
    with pytest.raises(TypeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(("compute", "symbol"), BINARY, ids=str)
@pytest.mark.parametrize("other", [LAYER, 2.0, mx.zeros(2)], ids=["module", "number", "array"])
def test_two_operands(compute, symbol, other):
    message = f"a Linear is a tree, and {symbol} is for arrays: fl.tree.map(function, tree, ...) computes with those in it"
    assert said(lambda: compute(LAYER, other)).startswith(message)
    if not isinstance(other, mx.array):  # which raises an error of its own before a module is asked
        assert said(lambda: compute(other, LAYER)).startswith(message)


@pytest.mark.parametrize(("compute", "symbol"), [(operator.neg, "-"), (abs, "abs")])
def test_one_operand(compute, symbol):
    assert f"{symbol} is for arrays" in said(lambda: compute(LAYER))


def test_what_an_assignment_says():
    grads = LAYER
    with pytest.raises(TypeError, match=r"fl\.tree\.map"):
        grads += LAYER


def test_gradients_in_a_function_of_mlx_for_trees():
    grads = fl.grad(lambda model, x: model(x).sum())(LAYER, mx.ones((1, 2)))
    assert "To mlx.utils.tree_map it is no tree" in said(lambda: mlx.utils.tree_map(lambda a, b: a + b, grads, grads))
    assert mx.array_equal(fl.tree.map(lambda a, b: a + b, grads, grads).weight, grads.weight * 2)


def test_a_class_may_have_operators_of_its_own():
    class Scaled(fl.Module):
        factor: mx.array

        def __mul__(self, other):
            return self.replace(factor=self.factor * other)

    assert (Scaled(mx.array(2)) * 3).factor.item() == 6
