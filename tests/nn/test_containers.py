import mlx.core as mx

import frostleaf as fl


def test_modules_and_functions_in_order():
    model = fl.nn.Sequential(lambda x: x + 1, fl.nn.Identity(), lambda x: x * 2)
    assert model(3) == 8
    assert isinstance(model.layers, tuple)


def test_empty_is_the_identity():
    x = mx.ones(2)
    assert fl.nn.Sequential()(x) is x


def test_functions_are_structure():
    layer = fl.nn.Linear(2, 2)
    relu, tanh = fl.nn.Sequential(layer, fl.nn.relu), fl.nn.Sequential(layer, fl.nn.tanh)
    assert fl.tree.structure(relu) == fl.tree.structure(fl.nn.Sequential(layer, fl.nn.relu))
    assert fl.tree.structure(relu) != fl.tree.structure(tanh)
    assert fl.tree.paths(relu) == ["layers.0.weight", "layers.0.bias"]
