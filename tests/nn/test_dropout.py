import re

import mlx.core as mx
import pytest

import frostleaf as fl

LAYERS = {fl.nn.Dropout: (100,), fl.nn.Dropout2d: (1, 1, 100), fl.nn.Dropout3d: (1, 1, 1, 100)}
each_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS.items(), ids=[layer.__name__ for layer in LAYERS])


@each_layer
@pytest.mark.parametrize("p", [-0.1, 1, 1.5, float("nan")])
def test_p_that_is_not_a_probability(layer, shape, p):
    message = f"'p' must be >= 0 and < 1, and {layer.__name__} was given: {p}"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(p)
    with pytest.raises(ValueError, match=re.escape(message)):
        layer().replace(p=p)


def test_statistics():
    out = fl.nn.Dropout(0.25)(mx.ones(20_000), key=mx.random.key(0))
    assert abs((out == 0).mean().item() - 0.25) < 0.02
    assert abs(out.mean().item() - 1) < 0.02
    assert set(out.tolist()) == {0, mx.array(1 / 0.75).item()}


@each_layer
@pytest.mark.parametrize("still", [lambda layer: layer(0), lambda layer: layer().eval()], ids=["p=0", "eval"])
def test_nothing_to_drop_is_the_same_array_and_draws_nothing(layer, shape, still):
    x, before = mx.ones(shape), mx.random.state[0].tolist()
    assert still(layer)(x) is x
    assert mx.random.state[0].tolist() == before


@each_layer
def test_key_is_pure(layer, shape):
    layer, x, key = layer(), mx.ones(shape), mx.random.key(1)
    before = mx.random.state[0].tolist()
    assert mx.array_equal(layer(x, key=key), layer(x, key=key))
    assert not mx.array_equal(layer(x, key=key), layer(x, key=mx.random.key(2)))
    assert mx.random.state[0].tolist() == before
    assert not mx.array_equal(layer(x), layer(x))


@pytest.mark.parametrize(("layer", "shape"), [(fl.nn.Dropout2d(), (8, 3, 4, 5)), (fl.nn.Dropout3d(), (8, 2, 3, 4, 5))])
def test_channels_are_dropped_whole_and_each_input_by_itself(layer, shape):
    axes = tuple(range(1, len(shape) - 1))
    out = layer(mx.ones(shape), key=mx.random.key(0))
    assert set(out.reshape(-1).tolist()) == {0, 2}
    assert mx.array_equal(out.min(axes), out.max(axes))
    assert not mx.array_equal(out[0], out[1])
    one = layer(mx.ones(shape[1:]), key=mx.random.key(0))
    spatial = tuple(range(one.ndim - 1))
    assert mx.array_equal(one.min(spatial), one.max(spatial))


@pytest.mark.parametrize(
    ("layer", "ranks", "takes"),
    [
        (fl.nn.Dropout2d(), (2, 5), "Dropout2d takes an input of shape [N, H, W, C] or [H, W, C], and was given"),
        (fl.nn.Dropout3d().eval(), (3, 6), "Dropout3d takes an input of shape [N, D, H, W, C] or [D, H, W, C], and was given"),
    ],
)
def test_input_that_does_not_fit(layer, ranks, takes):
    for rank in ranks:
        with pytest.raises(ValueError, match=re.escape(takes)):
            layer(mx.ones((1,) * rank))
