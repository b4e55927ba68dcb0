import re

import mlx.core as mx
import pytest

import frostleaf as fl


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "'kernel_size' must be > 0: 0"),
        ((2, (1, -1)), "'stride' must be > 0: -1"),
        ((2, 1, -1), "'padding' must be >= 0: -1"),
        (((2, 2, 2),), "kernel_size is an int or 2 of them in a tuple, and was given as (2, 2, 2)"),
        ((2, 1.5), "stride is an int or 2 of them in a tuple, and was given as 1.5"),
        ((2, 1, "1"), "padding is an int or 2 of them in a tuple, and was given as '1'"),
    ],
)
def test_sizes_that_are_not_sizes(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fl.nn.MaxPool2d(*arguments)


def test_stride_is_the_kernel_by_default():
    assert fl.nn.MaxPool2d((3, 2)).stride == (3, 2)
    with pytest.raises(ValueError, match="'stride' must be > 0"):
        fl.nn.MaxPool2d(2).replace(stride=(0, 1))


def test_padding_is_never_the_largest():
    assert fl.nn.MaxPool2d(2, padding=1)(-mx.ones((1, 2, 2, 1))).max() == -1
