"""What the recurrent layers refuse, and how their sequences go on. That they compute what MLX does is in test_mlx."""

import re

import mlx.core as mx
import pytest

import frostleaf as fl

LAYERS = {"rnn": fl.nn.RNN(3, 4), "gru": fl.nn.GRU(3, 4), "lstm": fl.nn.LSTM(3, 4)}
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


@each_layer
@pytest.mark.parametrize("shape", [(2, 5, 4), (3,), (), (2, 0, 3)])
def test_input_that_does_not_fit(layer, shape):
    with pytest.raises(ValueError, match="takes an input") as error:
        layer(mx.zeros(shape))
    shown = f"f32[{','.join(map(str, shape))}]"
    takes = f"{type(layer).__name__} takes an input of shape [..., L, 3] with L > 0"
    assert str(error.value) == f"{takes}, and was given {shown}. The layer is {layer!r}"


@each_layer
@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (2, 1), (), (4, 2, 3)])
def test_state_that_does_not_fit(layer, shape):
    state, count = mx.zeros(shape), len(outputs(layer(mx.zeros((1, 3)))))
    for position, name in enumerate(["hidden", "cell"][:count]):
        with pytest.raises(ValueError, match="state of shape") as error:
            layer(mx.zeros((2, 5, 3)), *[None] * position, state)
        given = f"f32[{','.join(map(str, shape))}]"
        takes = f"{type(layer).__name__} takes a {name} state of shape [2,4] with an input f32[2,5,3]"
        assert str(error.value) == f"{takes}, and was given {given}. The layer is {layer!r}"


@pytest.mark.parametrize("layer", [LAYERS["rnn"], LAYERS["lstm"]])
def test_one_state_for_a_batch_is_refused_where_mlx_does_not_broadcast_it(layer):
    with pytest.raises(
        ValueError, match=re.escape("a hidden state of shape [2,4] with an input f32[2,5,3], and was given f32[4]")
    ):
        layer(mx.zeros((2, 5, 3)), mx.zeros(4))


@pytest.mark.parametrize("value", [3, "relu", False])
def test_nonlinearity_that_is_no_function(value):
    with pytest.raises(ValueError, match="nonlinearity is a function") as error:
        fl.nn.RNN(3, 4, nonlinearity=value)
    assert str(error.value) == f"nonlinearity is a function or a module, or None for tanh, and was given as {value!r}"


def test_nonlinearity_is_never_passed_over():
    # To MLX a module without parameters is an empty dict, in whose place it puts tanh.
    layer = fl.nn.RNN(3, 4, nonlinearity=fl.nn.Identity())
    x = mx.ones((1, 3))
    assert mx.array_equal(layer(x), mx.addmm(layer.bias, x, layer.Wxh.T))


@each_layer
def test_a_sequence_can_be_read_in_parts(layer):
    x = mx.random.normal((2, 6, 3), key=mx.random.key(0))
    whole, first = outputs(layer(x)), outputs(layer(x[:, :4]))
    second = outputs(layer(x[:, 4:], *[each[:, -1] for each in first]))
    for all_of_it, start, end in zip(whole, first, second, strict=True):
        assert mx.allclose(all_of_it, mx.concatenate([start, end], 1), atol=1e-6)


@each_layer
def test_no_state_is_a_state_of_zeros(layer):
    x = mx.random.normal((2, 3, 3), key=mx.random.key(0))
    zeros = [mx.zeros((2, 4))] * len(outputs(layer(x)))
    for one, other in zip(outputs(layer(x)), outputs(layer(x, *zeros)), strict=True):
        assert mx.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("cls", [fl.nn.RNN, fl.nn.GRU, fl.nn.LSTM])
def test_a_key_gives_the_same_weights_with_and_without_bias(cls):
    key = mx.random.key(0)
    with_bias, without = cls(3, 4, key=key), cls(3, 4, False, key=key)
    for path in fl.tree.paths(without):
        assert mx.array_equal(getattr(with_bias, path), getattr(without, path))
    assert len(fl.tree.paths(without)) == 2


@each_layer
def test_ensemble_under_vmap(layer):
    layers = [layer, layer.apply(lambda array: array * 2)]
    x = mx.random.normal((2, 3, 3), key=mx.random.key(0))
    together = fl.vmap(lambda layer, x: layer(x), in_axes=(0, None))(fl.tree.stack(layers), x)
    for index, each in enumerate(layers):
        assert fl.tree.allclose([out[index] for out in outputs(together)], list(outputs(each(x))), atol=1e-6)
