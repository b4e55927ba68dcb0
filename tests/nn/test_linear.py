import mlx.core as mx

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
