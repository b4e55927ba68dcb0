import re

import mlx.core as mx
import pytest

import frostleaf as fl


@pytest.mark.parametrize("approx", ["fastest", "", None, True])
def test_approximation_that_there_is_not(approx):
    message = "approx is 'none', 'precise', 'tanh' (the same as 'precise') or 'fast', and was given as "
    with pytest.raises(ValueError, match=re.escape(message + repr(approx))):
        fl.nn.GELU(approx)
    with pytest.raises(ValueError, match=re.escape(message + repr(approx))):
        fl.nn.GELU().replace(approx=approx)


@pytest.mark.parametrize(
    ("layer", "shape", "takes"),
    [
        (fl.nn.GLU(), (4, 3), "GLU takes an input of shape [...] of an even length along axis -1"),
        (fl.nn.GLU(0), (3, 4), "along axis 0"),
        (fl.nn.GLU(2), (4, 4), "along axis 2"),
        (fl.nn.GLU(-3), (4, 4), "along axis -3"),
        (fl.nn.PReLU(4), (4, 1), "PReLU takes an input of shape [..., 4]"),
        (fl.nn.PReLU(4), (), "[..., 4]"),
        (fl.nn.Softmax(), (), "Softmax takes an input of shape [..., D]"),
        (fl.nn.Softmin(), (), "Softmin takes an input of shape [..., D]"),
        (fl.nn.LogSoftmax(), (), "LogSoftmax takes an input of shape [..., D]"),
    ],
)
def test_input_that_does_not_fit(layer, shape, takes):
    with pytest.raises(ValueError, match="takes an input") as error:
        layer(mx.zeros(shape))
    assert f"{takes}, and was given f32[{','.join(map(str, shape))}]" in str(error.value)


def test_options_are_structure():
    jitted = fl.jit(lambda layer, x: layer(x))
    x = mx.array([-2.0, 2.0])
    assert jitted(fl.nn.HardShrink(), x).tolist() == [-2, 2]
    assert jitted(fl.nn.HardShrink(3.0), x).tolist() == [0, 0]
    assert jitted(fl.nn.HardShrink(), -x).tolist() == [2, -2]
    assert jitted.trace_count == 2


def test_the_slope_of_prelu_is_the_only_array():
    listed = [getattr(fl.nn, name) for name in dir(fl.nn)]
    layers = [value for value in listed if getattr(value, "__module__", "") == fl.nn.PReLU.__module__]
    assert len(layers) == 25
    assert [layer for layer in layers if fl.tree.leaves(layer())] == [fl.nn.PReLU]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_one_slope_takes_any_shape(shape):
    assert fl.nn.PReLU()(mx.full(shape, -4.0)).reshape(-1)[0].item() == -1


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (2, 3, 1), (0, 4), (4, 0), (0,)])  # MLX's own ends the process, or raises
def test_log_softmax_of_one_value_or_none(shape, dtype):
    layer, x = fl.nn.LogSoftmax(), mx.full(shape, 3.0, dtype)
    for out in layer(x), fl.jit(layer)(x):
        assert out.dtype == dtype
        assert mx.array_equal(out, mx.zeros(shape, dtype))
    assert mx.array_equal(fl.grad(lambda x: layer(x).sum())(x), mx.zeros(shape, dtype))
