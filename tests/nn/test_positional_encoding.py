import re

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest

import frostleaf as fl
from frostleaf.core.words import describe

POSITIONS = mx.arange(1000, 1003)


@pytest.mark.parametrize("layer", [fl.nn.RoPE, fl.nn.SinusoidalPositionalEncoding])
@pytest.mark.parametrize("dims", [0, -2, 3, 4.0, None, "4"])
def test_dims_that_are_not_pairs(layer, dims):
    message = f"{layer.__name__} works on pairs of features, so dims must be a positive even int, and was given as {dims!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(dims)
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(4).replace(dims=dims)


@pytest.mark.parametrize(
    ("layer", "shape", "takes"),
    [
        (fl.nn.RoPE(4), (5, 4), "RoPE takes an input of shape [B, ..., L, D] with at least three axes and D >= 4"),
        (fl.nn.RoPE(4), (2, 5, 2), "and D >= 4"),
        (fl.nn.ALiBi(), (4, 3, 3), "ALiBi takes an input of shape [B, H, L, S]"),
        (fl.nn.ALiBi(), (2, 2, 4, 3, 3), "[B, H, L, S]"),
    ],
)
def test_input_that_does_not_fit(layer, shape, takes):
    with pytest.raises(ValueError, match="takes an input") as error:
        layer(mx.zeros(shape))
    assert f"{takes}, and was given f32[{','.join(map(str, shape))}]" in str(error.value)


def test_rope_turns_by_distance_and_leaves_the_rest():
    rope = fl.nn.RoPE(4)
    x = mx.random.normal((1, 1, 1, 6), key=mx.random.key(0))

    def product(first, second):
        return (rope(x, first) * rope(x, second)).sum().item()

    assert product(3, 5) == pytest.approx(product(10, 12), abs=1e-5)
    assert product(3, 5) != pytest.approx(product(3, 6), abs=1e-2)
    assert mx.array_equal(rope(x, 3)[..., 4:], x[..., 4:])


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 1)])
def test_offsets_that_do_not_fit(shape):
    message = (
        "RoPE takes as offset an int, or an array that is scalar or has one for each element of the batch, "
        f"and was given i32[{','.join(map(str, shape))}] with an input f32[2,5,4]. The layer is RoPE(dims=4"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        fl.nn.RoPE(4)(mx.zeros((2, 5, 4)), mx.zeros(shape, mx.int32))


@pytest.mark.parametrize("offset", [1.5, True, None, "3", [1, 2], mx.array(1.5), mx.array([True, False])], ids=describe)
def test_offsets_that_are_no_ints(offset):
    message = f"and was given {describe(offset)} with an input f32[2,5,4]. The layer is RoPE(dims=4"
    with pytest.raises(ValueError, match=re.escape(message)):
        fl.nn.RoPE(4)(mx.zeros((2, 5, 4)), offset)


@pytest.mark.parametrize("offset", [mx.array(3), mx.array([1, 2]), "3", None], ids=describe)
def test_offsets_of_alibi_that_are_no_ints(offset):
    with pytest.raises(ValueError, match=re.escape(f"ALiBi takes an int as offset, and was given {describe(offset)}")):
        fl.nn.ALiBi()(mx.zeros((2, 3, 4, 5)), offset)


@pytest.mark.parametrize("offset", [mx.array(3), mx.array([3]), mx.array([3, 3])], ids=lambda offset: str(offset.shape))
def test_offsets_in_an_array(offset):
    x = mx.random.normal((2, 5, 4))
    assert mx.array_equal(fl.nn.RoPE(4)(x, offset), mlx.nn.RoPE(4)(x, offset))
    assert mx.allclose(fl.nn.RoPE(4)(x, offset), fl.nn.RoPE(4)(x, 3), atol=1e-6)


def test_an_offset_in_an_array_is_not_traced_again():
    rope, x = fl.jit(fl.nn.RoPE(8)), mx.ones((2, 3, 5, 8))
    first, second = rope(x, mx.array(1)), rope(x, mx.array(2))
    assert rope.trace_count == 1
    assert mx.allclose(first[:, :, 1], second[:, :, 0])
    assert not mx.allclose(first, second)


@pytest.mark.long
def test_an_array_of_offsets_is_not_traced_again():
    rope, x = fl.jit(fl.nn.RoPE(8)), mx.ones((2, 3, 5, 8))
    first, second = rope(x, mx.array([1, 7])), rope(x, mx.array([2, 8]))
    assert rope.trace_count == 1
    assert mx.allclose(first[:, :, 1], second[:, :, 0])
    assert not mx.allclose(first, second)


@pytest.mark.parametrize("positions", [np.array([3, 4]), [3, 4], 3], ids=type)
def test_positions_that_are_no_arrays(positions):
    encoding = fl.nn.SinusoidalPositionalEncoding(4)
    assert mx.array_equal(encoding(positions), encoding(mx.array(positions)))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_dtype_of_sinusoids(dtype):
    encoding = fl.nn.SinusoidalPositionalEncoding(8, dtype=dtype)
    assert encoding(POSITIONS).dtype == dtype
    assert encoding(POSITIONS.astype(dtype)).dtype == dtype
    assert encoding(POSITIONS.astype(mx.float32)).dtype == mx.float32
    with fl.default_dtype(dtype):
        assert fl.tree.structure(fl.nn.SinusoidalPositionalEncoding(8)) == fl.tree.structure(encoding)


def test_sinusoids_are_computed_in_float32():
    exact = fl.nn.SinusoidalPositionalEncoding(8)(POSITIONS)
    half = fl.nn.SinusoidalPositionalEncoding(8, dtype=mx.bfloat16)
    assert mx.array_equal(half(POSITIONS), exact.astype(mx.bfloat16))
    assert not mx.array_equal(half(POSITIONS[:1]), half(POSITIONS[1:2]))


def test_a_cast_model_has_the_sinusoids_that_it_had():
    encoding = fl.nn.SinusoidalPositionalEncoding(8)
    assert fl.tree.leaves(encoding) == []
    assert encoding.astype(mx.bfloat16) is encoding


def test_dtype_that_does_not_suit():
    with pytest.raises(TypeError, match="can't be made in dtype"):
        fl.nn.SinusoidalPositionalEncoding(8, dtype=mx.int32)


def test_sinusoids_have_length_one():
    lengths = mx.linalg.norm(fl.nn.SinusoidalPositionalEncoding(6)(mx.arange(4)), axis=-1)
    assert mx.allclose(lengths, mx.ones(4))


@pytest.mark.parametrize("heads", [0, -1])
def test_no_heads(heads):
    with pytest.raises(ValueError, match=re.escape(f"num_heads was given as {heads}: it must be positive")):
        fl.nn.ALiBi.create_alibi_slope(heads)


@pytest.mark.parametrize("heads", [1, 2, 5, 8, 12])
def test_the_matrix_of_alibi(heads):
    for dtype in mx.float32, mx.bfloat16:
        ours = fl.nn.ALiBi.create_alibi_matrix(7, 9, heads, 2, dtype)
        assert ours.shape == (1, heads, 5, 9)
        assert mx.array_equal(ours, mlx.nn.ALiBi.create_alibi_matrix(7, 9, heads, 2, dtype))
        slopes = fl.nn.ALiBi.create_alibi_slope(heads, dtype)
        assert mx.array_equal(slopes, mlx.nn.ALiBi.create_alibi_slope(heads, dtype))


def test_nothing_is_left_of_a_call_of_alibi():
    alibi, scores = fl.nn.ALiBi(), mx.zeros((1, 2, 3, 3))
    before = dict(vars(fl.nn.ALiBi))
    traced = fl.jit(alibi)(scores)
    assert dict(vars(fl.nn.ALiBi)) == before
    assert mx.array_equal(alibi(scores), traced)


@pytest.mark.parametrize("shape", [(7, 7), (3, 1, 4, 5)])
def test_a_mask_that_does_not_broadcast(shape):
    shown = ",".join(map(str, shape))
    message = f"ALiBi takes a mask of a shape that broadcasts with the scores, f32[2,3,4,5], and was given f32[{shown}]"
    with pytest.raises(ValueError, match=re.escape(message)):
        fl.nn.ALiBi()(mx.zeros((2, 3, 4, 5)), 0, mx.zeros(shape))
