from typing import Any, NamedTuple

import mlx.core as mx
import pytest

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


LAYERS = [fl.nn.Linear(2, 2), fl.nn.relu]


@pytest.mark.parametrize(
    "given", [[LAYERS], [tuple(LAYERS)], [LAYERS[0], LAYERS], [{"a": LAYERS[0]}], [iter(LAYERS)], [[]]], ids=range(6)
)
def test_modules_in_a_container_are_refused(given):
    with pytest.raises(
        TypeError, match=r"Sequential takes its modules one by one, and was given .*: write Sequential\(\*layers\)"
    ):
        fl.nn.Sequential(*given)
    assert fl.nn.Sequential(*LAYERS)(mx.ones(2)).shape == (2,)


def test_a_number_is_no_key_and_the_message_says_where_the_layers_are():
    model = fl.nn.Sequential(*LAYERS)
    for number in (0, 1, -1):
        with pytest.raises(KeyError, match=rf"has no array or module {number}: write \.layers\[{number}\]"):
            model[number]
    for each in (model, fl.nn.Linear(2, 2)):
        with pytest.raises(KeyError, match="no array or module 2: its parts go by name"):
            each[2]


def test_a_tuple_that_can_be_called_is_a_layer():
    class Scale(NamedTuple):
        by: Any

        def __call__(self, x):
            return x * self.by

    model = fl.nn.Sequential(Scale(mx.array(2.0)), fl.nn.relu)
    assert model(mx.ones(2)).tolist() == [2, 2]
