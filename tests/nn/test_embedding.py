import mlx.core as mx
import mlx.nn

import frostleaf as fl


def test_as_linear():
    ours, theirs = fl.nn.Embedding(5, 3), mlx.nn.Embedding(5, 3)
    theirs.weight = ours.weight
    x = mx.random.normal((2, 3))
    assert mx.array_equal(ours.as_linear(x), theirs.as_linear(x))


def test_one_index_is_one_row():
    layer = fl.nn.Embedding(5, 3)
    assert layer(mx.array(4)).shape == layer(4).shape == (3,)
