import re

import mlx.core as mx
import pytest

import frostleaf as fl


def test_key_gives_the_same_weight_with_and_without_bias():
    key = mx.random.key(0)
    with_bias, without = fl.nn.Linear(3, 4, key=key), fl.nn.Linear(3, 4, bias=False, key=key)
    assert mx.array_equal(with_bias.weight, without.weight)
    assert without.bias is None
    assert fl.tree.paths(without) == ["weight"]


def test_weight_and_bias_are_drawn_apart():
    layer = fl.nn.Linear(1, 4, key=mx.random.key(0))
    assert not mx.array_equal(layer.weight[:, 0], layer.bias)


def test_ensemble_under_vmap():
    layers = fl.tree.stack([fl.nn.Linear(3, 4) for _ in range(2)])
    x = mx.ones((5, 3))
    leaves, structure = fl.tree.flatten(layers)
    out = mx.vmap(lambda *leaves: fl.tree.unflatten(structure, leaves)(x))(*leaves)
    assert mx.allclose(out[1], fl.tree.unstack(layers)[1](x))


def test_identity_holds_nothing():
    x = mx.ones(3)
    assert fl.nn.Identity(1, 2, a=3)(x) is x
    assert fl.tree.leaves(fl.nn.Identity(mx.ones(2))) == []


@pytest.mark.parametrize(
    ("first", "second", "takes"),
    [
        ((2, 4), (2, 4), "[..., 3] as its first, and was given f32[2,4]"),
        ((), (2, 4), "[..., 3] as its first, and was given f32[]"),
        ((2, 3), (2, 3), "[2, 4] as its second, and was given f32[2,3]"),
        ((5, 2, 3), (5, 4), "[5, 2, 4] as its second, and was given f32[5,4]"),
        ((3,), (2, 4), "[4] as its second, and was given f32[2,4]"),
        ((2, 3), (), "[2, 4] as its second, and was given f32[]"),
    ],
)
def test_bilinear_inputs_that_do_not_fit(first, second, takes):
    layer = fl.nn.Bilinear(3, 4, 5)
    with pytest.raises(ValueError, match=re.escape(f"Bilinear takes an input of shape {takes}. The layer is {layer!r}")):
        layer(mx.zeros(first), mx.zeros(second))


def test_bilinear_is_linear_in_each_input():
    layer = fl.nn.Bilinear(3, 4, 5, bias=False)
    x1, x2 = mx.random.normal((2, 3)), mx.random.normal((2, 4))
    expected = mx.einsum("ni,oji,nj->no", x1, layer.weight, x2)
    assert mx.allclose(layer(x1, x2), expected, atol=1e-5)
    assert layer(x1[:0], x2[:0]).shape == (0, 5)
