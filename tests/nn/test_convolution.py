import inspect
import re

import mlx.core as mx
import pytest

import frostleaf as fl

LAYERS = [fl.nn.Conv1d, fl.nn.Conv2d, fl.nn.Conv3d, fl.nn.ConvTranspose1d, fl.nn.ConvTranspose2d, fl.nn.ConvTranspose3d]
each_layer = pytest.mark.parametrize("layer", LAYERS)


def each_layer_and(*names):
    """Parametrise a test with those of the named arguments that each layer has."""
    pairs = [(layer, name) for layer in LAYERS for name in names if name in inspect.signature(layer).parameters]
    return pytest.mark.parametrize(("layer", "name"), pairs)


def built(layer, **arguments):
    return layer(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **arguments})


def generator():
    return mx.random.state[0].tolist()


@pytest.mark.parametrize("layer", [fl.nn.Conv1d, fl.nn.Conv2d])
@pytest.mark.parametrize(("side", "arguments"), [("in", {"in_channels": 5}), ("out", {"out_channels": 5})])
def test_channels_that_do_not_divide(layer, side, arguments):
    message = f"5 {side}put channels can't be divided into 2 groups: {side}_channels must be a multiple of groups"
    with pytest.raises(ValueError, match=message):
        built(layer, groups=2, **arguments)


@each_layer_and("kernel_size", "stride", "padding", "dilation", "output_padding")
@pytest.mark.parametrize("value", [(1, 2, 3, 4), "3", 1.5, (1, 2.5), None])
def test_sizes_that_are_not_sizes(layer, name, value):
    before, rank = generator(), int(layer.__name__[-2])
    with pytest.raises(
        ValueError, match=f"{layer.__name__} takes an int, or {rank} of them in a tuple, as {name}, and was given "
    ) as error:
        built(layer, **{name: value})
    assert str(error.value).endswith(repr(value))
    assert generator() == before


@each_layer_and("stride", "dilation")
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_that_are_not_positive(layer, name, value):
    with pytest.raises(ValueError, match=f"{layer.__name__} takes {name} > 0, and was given .*{value}"):
        built(layer, **{name: value})


@each_layer_and("in_channels", "out_channels", "kernel_size", "groups")
@pytest.mark.parametrize("value", [0, -1])
def test_channels_that_are_not_positive(layer, name, value):
    with pytest.raises(ValueError, match=f"{layer.__name__} takes a positive int as {name}, and was given {value}"):
        built(layer, **{name: value})


@each_layer_and("in_channels", "out_channels", "groups")
@pytest.mark.parametrize("value", [None, "4", 4.0, float("nan"), (4,)])
def test_channels_that_are_no_ints(layer, name, value):
    message = f"{layer.__name__} takes a positive int as {name}, and was given {value!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        built(layer, **{name: value})


def test_one_of_two_sizes_that_is_not_positive():
    with pytest.raises(ValueError, match=re.escape("Conv2d takes dilation > 0, and was given (1, -3)")):
        fl.nn.Conv2d(4, 4, 3, dilation=(1, -3))
    with pytest.raises(ValueError, match=re.escape("ConvTranspose3d takes stride > 0, and was given (1, 0, 1)")):
        fl.nn.ConvTranspose3d(4, 4, 3).replace(stride=(1, 0, 1))
    with pytest.raises(ValueError, match="Conv2d takes a positive int as kernel_size, and was given 0"):
        fl.nn.Conv2d(4, 4, (3, 0))


@each_layer
def test_lists_become_tuples(layer):
    rank = int(layer.__name__[-2])
    options = built(layer, kernel_size=[2] * rank, stride=[2] * rank, padding=[1] * rank, dilation=[3] * rank)
    expected = (2, 1, 3) if rank == 1 else ((2,) * rank, (1,) * rank, (3,) * rank)
    assert (options.stride, options.padding, options.dilation) == expected


@each_layer
@pytest.mark.parametrize("change", ["another number of channels", "no batch", "one axis more"])
def test_input_that_does_not_fit(layer, change):
    layer = built(layer)
    axes = {1: "L", 2: "H, W", 3: "D, H, W"}[layer.weight.ndim - 2]
    good = (2, *[5] * (layer.weight.ndim - 2), 4)
    bad = {"another number of channels": (*good[:-1], 3), "no batch": good[1:], "one axis more": (1, *good)}[change]
    given = f"f32[{','.join(map(str, bad))}]"
    message = f"{type(layer).__name__} takes an input of shape [N, {axes}, 4], and was given {given}. The layer is {layer!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(mx.zeros(bad))
    assert layer(mx.zeros(good)).shape[-1] == 4


def test_groups_count_all_channels():
    with pytest.raises(ValueError, match=re.escape("Conv1d takes an input of shape [N, L, 4], and was given f32[1,8,2]")):
        fl.nn.Conv1d(4, 6, 3, groups=2)(mx.zeros((1, 8, 2)))


@pytest.mark.parametrize(("cls", "shape"), [(fl.nn.Conv1d, (2, 5, 4)), (fl.nn.Conv2d, (2, 5, 5, 4))])
def test_an_ensemble_with_groups_maps_its_input_too(cls, shape):
    layers = [cls(4, 6, 3, groups=2, key=key) for key in mx.random.split(mx.random.key(0), 3)]
    x = mx.random.normal(shape, key=mx.random.key(1))
    mapped = fl.vmap(lambda layer, x: layer(x))(fl.tree.stack(layers), mx.broadcast_to(x, (3, *shape)))
    assert mx.allclose(mapped, mx.stack([layer(x) for layer in layers]), atol=1e-5)
