import mlx.core as mx
import pytest

import frostleaf as fl


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, float("nan")])
def test_p_that_is_not_a_probability(p):
    with pytest.raises(ValueError, match=f"'p' must be .*: {p}"):
        fl.nn.Dropout(p)


def test_statistics():
    out = fl.nn.Dropout(0.25)(mx.ones(20_000), key=mx.random.key(0))
    assert abs((out == 0).mean().item() - 0.25) < 0.02
    assert abs(out.mean().item() - 1) < 0.02
    assert set(out.tolist()) == {0, mx.array(1 / 0.75).item()}


@pytest.mark.parametrize("layer", [fl.nn.Dropout(0), fl.nn.Dropout(0.5).eval()])
def test_nothing_to_drop_is_the_same_array_and_draws_nothing(layer):
    x, before = mx.ones(3), mx.random.state[0].tolist()
    assert layer(x) is x
    assert mx.random.state[0].tolist() == before


def test_key_is_pure():
    layer, x, key = fl.nn.Dropout(), mx.ones(100), mx.random.key(1)
    before = mx.random.state[0].tolist()
    assert mx.array_equal(layer(x, key=key), layer(x, key=key))
    assert not mx.array_equal(layer(x, key=key), layer(x, key=mx.random.key(2)))
    assert mx.random.state[0].tolist() == before
    assert not mx.array_equal(layer(x), layer(x))
