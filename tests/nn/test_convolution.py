import mlx.core as mx
import pytest

import frostleaf as fl


def test_channels_that_do_not_divide():
    with pytest.raises(ValueError, match="5 input channels can't be divided into 2 groups: in_channels must be a multiple"):
        fl.nn.Conv2d(5, 4, 3, groups=2)


@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding"])
@pytest.mark.parametrize("value", [(1, 2, 3), "3", 1.5, (1, 2.5), None])
def test_sizes_that_are_not_sizes(name, value):
    with pytest.raises(ValueError, match=f"{name} is an int or 2 of them in a tuple, and was given as") as error:
        fl.nn.Conv2d(**{"in_channels": 1, "out_channels": 1, "kernel_size": 3, name: value})
    assert str(error.value).endswith(repr(value))


def test_lists_become_tuples():
    layer = fl.nn.Conv2d(1, 1, [3, 2], [1, 2], [0, 1], [2, 1])
    assert (layer.stride, layer.padding, layer.dilation) == ((1, 2), (0, 1), (2, 1))
    assert layer(mx.ones((1, 8, 8, 1))).shape == (1, 4, 5, 1)
