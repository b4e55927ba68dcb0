import re

import mlx.core as mx
import pytest

import frostleaf as fl

LAYERS = [fl.nn.MaxPool1d, fl.nn.MaxPool2d, fl.nn.MaxPool3d, fl.nn.AvgPool1d, fl.nn.AvgPool2d, fl.nn.AvgPool3d]
each_layer = pytest.mark.parametrize("layer", LAYERS)


def rank_of(layer):
    return int(layer.__name__[-2])


@each_layer
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "{cls} takes kernel_size > 0, and was given (0,"),
        ((2, -1), "{cls} takes stride > 0, and was given (-1,"),
        ((2, 1, -1), "{cls} takes padding >= 0, and was given (-1,"),
        (((2, 2, 2, 2),), "{cls} takes an int, or {rank} of them in a tuple, as kernel_size, and was given (2, 2, 2, 2)"),
        ((2, 1.5), "{cls} takes an int, or {rank} of them in a tuple, as stride, and was given 1.5"),
        ((2, 1, "1"), "{cls} takes an int, or {rank} of them in a tuple, as padding, and was given '1'"),
        ((2, 1, None), "{cls} takes an int, or {rank} of them in a tuple, as padding, and was given None"),
    ],
)
def test_sizes_that_are_not_sizes(layer, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message.format(cls=layer.__name__, rank=rank_of(layer)))):
        layer(*arguments)


def test_one_of_two_sizes_that_is_not_positive():
    with pytest.raises(ValueError, match=re.escape("MaxPool2d takes stride > 0, and was given (1, -1)")):
        fl.nn.MaxPool2d(2, (1, -1))


def test_stride_is_the_kernel_by_default():
    assert fl.nn.MaxPool2d((3, 2)).stride == (3, 2)
    with pytest.raises(ValueError, match=re.escape("MaxPool2d takes stride > 0, and was given (0, 1)")):
        fl.nn.MaxPool2d(2).replace(stride=(0, 1))


@each_layer
def test_sizes_that_are_replaced(layer):
    rank = rank_of(layer)
    replaced = layer(2).replace(kernel_size=3, stride=[1] * rank, padding=1)
    assert fl.tree.structure(replaced) == fl.tree.structure(layer(3, 1, 1))
    for name in "kernel_size", "stride", "padding":
        message = f"takes an int, or {rank} of them in a tuple, as {name}, and was given (2, 2, 2, 2)"
        with pytest.raises(ValueError, match=re.escape(message)):
            layer(2).replace(**{name: (2, 2, 2, 2)})


@each_layer
def test_input_with_other_axes(layer):
    axes = {1: "L", 2: "H, W", 3: "D, H, W"}[rank_of(layer)]
    for shape in (4,) * (rank_of(layer) + 1), (4,) * (rank_of(layer) + 3):
        given = f"f32[{','.join(map(str, shape))}]"
        message = f"{layer.__name__} takes an input of shape [N, {axes}, C], and was given {given}. The layer is {layer(2)!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            layer(2)(mx.zeros(shape))


def test_input_smaller_than_the_window():
    layer = fl.nn.AvgPool2d((9, 2), 1, (2, 1))
    message = "AvgPool2d takes an input of shape [N, H >= 5, W >= 0, C], and was given f32[1,3,5,1]. The layer is AvgPool2d("
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(mx.zeros((1, 3, 5, 1)))
    assert layer(mx.zeros((1, 5, 5, 1))).shape == (1, 1, 6, 1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_padding_is_never_the_largest_and_counts_towards_the_mean(rank):
    x = -mx.ones((1, *[2] * rank, 1))
    assert getattr(fl.nn, f"MaxPool{rank}d")(2, padding=1)(x).max() == -1
    assert (getattr(fl.nn, f"AvgPool{rank}d")(2, padding=1)(x) == -(0.5**rank)).all()
