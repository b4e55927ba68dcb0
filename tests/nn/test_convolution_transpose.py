"""Sizes and inputs that do not fit are tested beside those of the other convolutions."""

import mlx.core as mx
import pytest

import frostleaf as fl

SIZES = {1: ((2, 6, 3), (2, 11, 4)), 2: ((2, 6, 4, 3), (2, 11, 7, 4)), 3: ((1, 3, 2, 4, 3), (1, 5, 3, 7, 4))}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_it_is_the_gradient_of_a_convolution(rank):
    small, large = SIZES[rank]
    layer = getattr(fl.nn, f"ConvTranspose{rank}d")(3, 4, 3, stride=2, padding=1, bias=False)
    convolve = getattr(fl.nn, f"Conv{rank}d")(4, 3, 3, stride=2, padding=1, bias=False)
    convolve = convolve.replace(weight=layer.weight.moveaxis(0, -1).moveaxis(-2, 0))
    x = mx.random.normal(small)
    _, (gradient,) = mx.vjp(convolve, [mx.zeros(large)], [x])
    assert mx.allclose(layer(x), gradient, atol=1e-5)


@pytest.mark.parametrize("output_padding", [0, 1])
def test_output_padding_tells_input_sizes_apart(output_padding):
    smaller = fl.nn.Conv1d(1, 1, 3, stride=2, padding=1)(mx.zeros((1, 7 + output_padding, 1)))
    assert smaller.shape == (1, 4, 1)
    larger = fl.nn.ConvTranspose1d(1, 1, 3, stride=2, padding=1, output_padding=output_padding)(smaller)
    assert larger.shape == (1, 7 + output_padding, 1)
