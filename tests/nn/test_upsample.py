import re

import mlx.core as mx
import pytest

import frostleaf as fl

MODES = ["nearest", "linear", "cubic"]
each_mode = pytest.mark.parametrize("mode", MODES)


@pytest.mark.parametrize("value", [0, -1.5, (2, 0), (), float("nan"), float("inf"), None, "wide", (2, None)])
def test_factors_that_are_not_positive(value):
    message = "scale_factor is a positive number, or a tuple of one for each axis but the first and last, and was given as "
    with pytest.raises(ValueError, match=re.escape(message + repr(value))):
        fl.nn.Upsample(value)
    with pytest.raises(ValueError, match=re.escape(message + repr(value))):
        fl.nn.Upsample(2).replace(scale_factor=value)


def test_factors_are_floats():
    layer = fl.nn.Upsample([2, 3])
    assert layer.scale_factor == (2.0, 3.0)
    assert {type(each) for each in layer.scale_factor} == {float}
    assert repr(layer.replace(scale_factor=2).scale_factor) == "2.0"


def test_mode_that_there_is_not():
    for build in (lambda: fl.nn.Upsample(2, "bilinear")), (lambda: fl.nn.Upsample(2).replace(mode="bilinear")):
        with pytest.raises(ValueError, match=r"^mode is 'nearest', 'linear' or 'cubic', and was given as 'bilinear'$"):
            build()


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({}, "mode='nearest'"),
        ({"align_corners": True}, "mode='nearest'"),
        ({"mode": "linear", "align_corners": True}, "align_corners=True"),
        ({"mode": "cubic", "align_corners": True}, "align_corners=True"),
    ],
)
def test_antialias_where_there_is_none(options, other):
    message = f"antialias=True was given with {other}. It is for mode='linear' or mode='cubic', with align_corners=False"
    with pytest.raises(ValueError, match=re.escape(message)):
        fl.nn.Upsample(0.5, antialias=True, **options)


@pytest.mark.parametrize(
    ("layer", "changes", "other"),
    [
        (fl.nn.Upsample(0.5), {"antialias": True}, "mode='nearest'"),
        (fl.nn.Upsample(0.5, "linear", antialias=True), {"mode": "nearest"}, "mode='nearest'"),
        (fl.nn.Upsample(0.5, "cubic", antialias=True), {"align_corners": True}, "align_corners=True"),
    ],
)
def test_antialias_in_a_copy_where_there_is_none(layer, changes, other):
    changed = layer.replace(**changes)
    with pytest.raises(ValueError, match=re.escape(f"antialias=True was given with {other}")):
        changed(mx.ones((1, 4, 1)))
    assert fl.nn.Upsample(0.5).replace(mode="linear", antialias=True)(mx.ones((1, 4, 1))).shape == (1, 2, 1)


@each_mode
@pytest.mark.parametrize(
    ("factor", "shape", "takes"),
    [
        (2, (4, 3), "[N, ..., C], of three axes or more"),
        ((2, 3), (1, 4, 3), "[N, ..., C], of 4 axes"),
        ((2,), (1, 4, 4, 3), "[N, ..., C], of 3 axes"),
    ],
)
def test_input_that_does_not_fit(mode, factor, shape, takes):
    layer, given = fl.nn.Upsample(factor, mode), f"f32[{','.join(map(str, shape))}]"
    message = f"Upsample takes an input of shape {takes}, and was given {given}. The layer is {layer!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(mx.zeros(shape))


def test_nearest_of_nothing():
    message = (
        "[N, ..., C], where each int(scale_factor * length) is 1 or more, and was given f32[1,4,3]. The layer is Upsample("
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        fl.nn.Upsample(0.2)(mx.zeros((1, 4, 3)))
    assert fl.nn.Upsample(0.25)(mx.zeros((1, 4, 3))).shape == (1, 1, 3)


@each_mode
@pytest.mark.parametrize("dtype", [mx.float16, mx.int32])
def test_dtype_of_the_output(mode, dtype):
    out = fl.nn.Upsample(1.5, mode)(mx.ones((1, 4, 1), dtype))
    assert out.dtype == (dtype if mode == "nearest" else mx.float32)
