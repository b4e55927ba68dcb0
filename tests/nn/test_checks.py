"""What all layers do alike: the dtype they are born in, the key they draw from, the shapes they refuse."""

import inspect
import re

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest

import frostleaf as fl
from frostleaf.core.words import describe

LISTED = [getattr(fl.nn, name) for name in fl.nn.__all__]
LAYERS = [value for value in LISTED if isinstance(value, type) and issubclass(value, fl.Module)]
DRAWN = {
    "linear": lambda **options: fl.nn.Linear(3, 4, **options),
    "conv2d": lambda **options: fl.nn.Conv2d(2, 3, 2, **options),
    "embedding": lambda **options: fl.nn.Embedding(5, 3, **options),
}
NORMED = {
    "layer_norm": lambda **options: fl.nn.LayerNorm(4, **options),
    "rms_norm": lambda **options: fl.nn.RMSNorm(4, **options),
    "batch_norm": lambda **options: fl.nn.BatchNorm(4, **options),
}
OWNERS = {**DRAWN, **NORMED}
each_drawn = pytest.mark.parametrize("make", DRAWN.values(), ids=DRAWN)
each_owner = pytest.mark.parametrize("make", OWNERS.values(), ids=OWNERS)


def generator():
    return mx.random.state[0].tolist()


@each_owner
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_dtype_at_birth(make, dtype):
    assert {leaf.dtype for leaf in fl.tree.leaves(make(dtype=dtype))} == {dtype}
    assert {leaf.dtype for leaf in fl.tree.leaves(make())} == {mx.float32}


@each_owner
def test_dtype_is_not_cast_to(make, monkeypatch):
    made = []

    def kept(function):
        return lambda *args, **kwargs: made.append(function(*args, **kwargs)) or made[-1]

    for owner, name in (mx, "zeros"), (mx, "ones"), (mx.random, "uniform"), (mx.random, "normal"):
        monkeypatch.setattr(owner, name, kept(getattr(owner, name)))
    layer = make(dtype=mx.float16)
    assert {array.dtype for array in made} == {mx.float16}
    assert {id(leaf) for leaf in fl.tree.leaves(layer)} == set(map(id, made))


@each_owner
@pytest.mark.parametrize("dtype", [mx.int32, mx.bool_, mx.complex64, "float16", float])
def test_dtype_that_does_not_suit(make, dtype):
    before = generator()
    with pytest.raises(TypeError, match=r"can't be made in dtype .*Give a floating-point mx\.Dtype, such as mx\.bfloat16"):
        make(dtype=dtype)
    assert generator() == before


@each_drawn
def test_key_is_pure(make):
    key = mx.random.key(5)
    mx.random.seed(1)
    before = generator()
    first = make(key=key)
    assert generator() == before
    mx.random.seed(2)
    assert fl.tree.equal(first, make(key=key))
    assert not fl.tree.equal(first, make(key=mx.random.key(6)))
    assert mx.array_equal(key, mx.random.key(5))


@each_drawn
def test_without_key_the_state_moves_on(make):
    mx.random.seed(1)
    first, second = make(), make()
    assert not fl.tree.equal(first, second)
    mx.random.seed(1)
    assert fl.tree.equal(first, make())


@pytest.mark.parametrize(
    ("layer", "shape", "takes"),
    [
        (fl.nn.Linear(3, 4), (2, 4), "Linear takes an input of shape [..., 3]"),
        (fl.nn.Linear(3, 4), (), "of shape [..., 3]"),
        (fl.nn.Embedding(5, 3).as_linear, (2, 5), "Embedding takes an input of shape [..., 3]"),
        (fl.nn.Conv2d(4, 6, 3, groups=2), (1, 8, 8, 2), "Conv2d takes an input of shape [N, H, W, 4]"),
        (fl.nn.Conv2d(4, 6, 3), (8, 8, 4), "[N, H, W, 4]"),
        (fl.nn.Conv1d(4, 6, 3, dilation=2), (1, 4, 4), "Conv1d takes an input of shape [N, 5 or more, 4]"),
        (fl.nn.Conv2d(4, 6, 3, padding=(1, 0)), (1, 1, 2, 4), "Conv2d takes an input of shape [N, 1 or more, 3 or more, 4]"),
        (fl.nn.Conv3d(4, 6, 2), (1, 2, 1, 2, 4), "of shape [N, 2 or more, 2 or more, 2 or more, 4]"),
        (
            fl.nn.MaxPool2d(2),
            (8, 8, 4),
            "MaxPool2d takes an input of shape [N, H, W, C]",
        ),
        (fl.nn.ConvTranspose1d(4, 6, 3, padding=2), (2, 1, 4), "ConvTranspose1d takes an input of shape [N, L, 4]"),
        (fl.nn.ConvTranspose3d(4, 6, 1), (2, 1, 0, 1, 4), "ConvTranspose3d takes an input of shape [N, D, H, W, 4]"),
        (fl.nn.LayerNorm(4), (2, 1), "LayerNorm takes an input of shape [..., 4]"),
        (fl.nn.LayerNorm(4, affine=False), (), "of shape [..., 4]"),
        (fl.nn.RMSNorm(4), (4, 3), "RMSNorm takes an input of shape [..., 4]"),
        (fl.nn.BatchNorm(4), (3, 1), "BatchNorm takes an input of shape [N, 4], [N, L, 4] or [N, H, W, 4]"),
        (fl.nn.BatchNorm(4), (4,), "or [N, H, W, 4]"),
        (fl.nn.BatchNorm(4), (2, 2, 2, 2, 4), "or [N, H, W, 4]"),
    ],
)
def test_input_that_does_not_fit(layer, shape, takes):
    with pytest.raises(ValueError, match="takes an input") as error:
        layer(mx.zeros(shape))
    owner = getattr(layer, "__self__", layer)
    assert f"{takes}, and was given f32[{','.join(map(str, shape))}]" in str(error.value)
    assert str(error.value).endswith(f". The layer is {owner!r}")


@pytest.mark.parametrize(
    ("layer", "shape", "dtype"),
    [
        (fl.nn.Conv1d(4, 2, 3), (2, 6, 4), mx.int32),
        (fl.nn.ConvTranspose2d(4, 2, 3), (2, 6, 6, 4), mx.bool_),
        (fl.nn.LayerNorm(4), (2, 4), mx.complex64),
        (fl.nn.RMSNorm(4), (2, 4), mx.complex64),
        (fl.nn.InstanceNorm(4), (2, 3, 4), mx.int32),
        (fl.nn.GroupNorm(2, 4, pytorch_compatible=True), (2, 3, 4), mx.bool_),
        (fl.nn.RoPE(4), (2, 3, 4), mx.int32),
        (fl.nn.QuantizedLinear(64, 2), (2, 64), mx.complex64),
        (fl.nn.QQLinear(64, 2), (2, 64), mx.int32),
    ],
)
def test_input_of_a_dtype_that_mlx_refuses(layer, shape, dtype):
    with pytest.raises(ValueError, match="takes an input") as error:
        layer(mx.zeros(shape, dtype))
    assert str(error.value).startswith(f"{type(layer).__name__} takes an input of shape [")
    assert f", and was given {describe(mx.zeros(shape, dtype))}" in str(error.value)
    assert "floating" in str(error.value) or "unsupported type" in str(error.value)


@pytest.mark.parametrize("make", [fl.nn.Embedding, fl.nn.QuantizedEmbedding])
@pytest.mark.parametrize("x", [mx.zeros(2), mx.zeros(2, mx.bool_), 1.5, "a", np.zeros(2)], ids=describe)
def test_indices_that_are_none(make, x):
    layer = make(5, 64)
    message = f"{make.__name__} takes integers, an array of them or one, and was given {describe(x)}: "
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        layer(x)
    assert str(error.value).endswith(f"The layer is {layer!r}")


SIZED = [
    (fl.nn.Linear, {"input_dims": 3, "output_dims": 4}),
    (fl.nn.Bilinear, {"input1_dims": 3, "input2_dims": 4, "output_dims": 2}),
    (fl.nn.Embedding, {"num_embeddings": 3, "dims": 4}),
    (fl.nn.LayerNorm, {"dims": 4}),
    (fl.nn.RMSNorm, {"dims": 4}),
    (fl.nn.InstanceNorm, {"dims": 4}),
    (fl.nn.BatchNorm, {"num_features": 4}),
    (fl.nn.RNN, {"input_size": 3, "hidden_size": 4}),
    (fl.nn.GRU, {"input_size": 3, "hidden_size": 4}),
    (fl.nn.LSTM, {"input_size": 3, "hidden_size": 4}),
    (fl.nn.GroupNorm, {"num_groups": 2, "dims": 4}),
    (fl.nn.PReLU, {"num_parameters": 2}),
    (fl.nn.MultiHeadAttention, {"dims": 4, "num_heads": 2}),
    (fl.nn.QuantizedLinear, {"input_dims": 64, "output_dims": 4}),
    (fl.nn.QuantizedEmbedding, {"num_embeddings": 5, "dims": 64}),
    (fl.nn.QQLinear, {"input_dims": 64, "output_dims": 4}),
]
# With which mlx.nn has working layers too.
MAY_BE_0 = [(fl.nn.Linear, "output_dims"), (fl.nn.LayerNorm, "dims"), (fl.nn.RMSNorm, "dims")]
MAY_BE_0 += [(fl.nn.BatchNorm, "num_features"), (fl.nn.PReLU, "num_parameters")]


@pytest.mark.parametrize(
    ("layer", "arguments", "name", "value"),
    [
        (layer, arguments, name, value)
        for layer, arguments in SIZED
        for name in arguments
        for value in [-64, 64.0, "64", None, float("nan"), *([0] if (layer, name) not in MAY_BE_0 else [])]
    ],
)
def test_a_size_that_is_not_one(layer, arguments, name, value):
    before = generator()
    takes = "an int of 0 or more" if (layer, name) in MAY_BE_0 else "a positive int"
    message = f"{layer.__name__} takes {takes} as {name}, and was given {value!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(**{**arguments, name: value})
    assert generator() == before


@pytest.mark.parametrize("layer", [fl.nn.QuantizedLinear, fl.nn.QuantizedEmbedding, fl.nn.QQLinear])
@pytest.mark.parametrize("name", ["group_size", "bits"])
@pytest.mark.parametrize("value", [-1, "4", 4.5])
def test_a_group_size_and_bits_that_are_no_sizes(layer, name, value):
    message = f"{layer.__name__} takes a positive int as {name}, and was given {value!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(64, 64, **{name: value})


@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
@pytest.mark.parametrize(("layer", "name"), MAY_BE_0)
def test_a_layer_of_no_features(layer, name):
    arguments = {**next(arguments for other, arguments in SIZED if other is layer), name: 0}
    ours, theirs = layer(**arguments), getattr(mlx.nn, layer.__name__)(**arguments)
    x = mx.ones((2, 3 if layer is fl.nn.Linear else 0))
    assert ours(x).shape == theirs(x).shape == (2, 0)
    gradients = fl.grad(lambda layer, x: layer(x).sum())(ours, x)
    assert {0} == {leaf.size for leaf in fl.tree.leaves(gradients)}


NUMBERS = [
    *[(layer, "eps", (4,)) for layer in (fl.nn.LayerNorm, fl.nn.RMSNorm, fl.nn.BatchNorm, fl.nn.InstanceNorm)],
    (fl.nn.GroupNorm, "eps", (2, 4)),
    (fl.nn.RoPE, "base", (4,)),
    (fl.nn.SinusoidalPositionalEncoding, "min_freq", (4,)),
    (fl.nn.SinusoidalPositionalEncoding, "max_freq", (4,)),
]
ANY_NUMBERS = [
    (fl.nn.CELU, "alpha", ()),
    (fl.nn.ELU, "alpha", ()),
    (fl.nn.HardShrink, "lambd", ()),
    (fl.nn.Softshrink, "lambd", ()),
    (fl.nn.LeakyReLU, "negative_slope", ()),
    (fl.nn.Step, "threshold", ()),
    (fl.nn.BatchNorm, "momentum", (4,)),
    (fl.nn.RoPE, "scale", (4,)),
]


@pytest.mark.parametrize(("layer", "name", "arguments"), NUMBERS)
@pytest.mark.parametrize("value", [0, 0.0, -1, -1e-5, float("nan"), None, "1e-5"])
def test_a_number_that_is_not_positive(layer, name, arguments, value):
    message = re.escape(f"{layer.__name__} takes {name} > 0, and was given {value!r}")
    with pytest.raises(ValueError, match=message):
        layer(*arguments, **{name: value})
    with pytest.raises(ValueError, match=message):
        layer(*arguments).replace(**{name: value})
    assert getattr(layer(*arguments, **{name: np.float32(2)}), name) == 2


@pytest.mark.parametrize(("layer", "name", "arguments"), ANY_NUMBERS)
@pytest.mark.parametrize("value", [None, "1", [1.0]])
def test_a_number_that_is_none(layer, name, arguments, value):
    with pytest.raises(ValueError, match=re.escape(f"{layer.__name__} takes a number as {name}, and was given")):
        layer(*arguments, **{name: value})
    assert getattr(layer(*arguments, **{name: -2}), name) == -2


KEYED = [*SIZED, (fl.nn.Conv2d, {"in_channels": 2, "out_channels": 2, "kernel_size": 2})]
KEYED += [(fl.nn.Transformer, {"dims": 4, "num_heads": 2}), (fl.nn.ConvTranspose1d, KEYED[-1][1])]
KEYED = [(layer, arguments) for layer, arguments in KEYED if "key" in inspect.signature(layer).parameters]


@pytest.mark.parametrize(("layer", "arguments"), KEYED, ids=[layer.__name__ for layer, _ in KEYED])
@pytest.mark.parametrize("key", [0, True, [0, 1], mx.array([0, 1]), mx.random.split(mx.random.key(0), 3)], ids=type)
def test_a_key_that_is_none(layer, arguments, key):
    message = "key must be an array of two uint32 numbers, such as mx.random.key(0), and was given as "
    with pytest.raises(TypeError, match=re.escape(message + describe(key))):
        layer(**arguments, key=key)


@pytest.mark.parametrize("layer", [fl.nn.Dropout(), fl.nn.TransformerEncoderLayer(4, 2), fl.nn.TransformerEncoder(1, 4, 2)])
def test_a_key_that_is_none_in_a_call(layer):
    inputs = [mx.ones((1, 2, 4)), *([] if isinstance(layer, fl.nn.Dropout) else [None])]
    with pytest.raises(TypeError, match=re.escape("such as mx.random.key(0), and was given as 0")):
        layer(*inputs, key=0)


@pytest.mark.parametrize("size", [np.int64(2), mx.array(2)], ids=["numpy", "mlx"])
@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda size: fl.nn.Conv2d(1, 1, (size, size), stride=(size, size)), "stride"),
        (lambda size: fl.nn.Conv1d(1, 1, 2, padding=size), "padding"),
        (lambda size: fl.nn.MaxPool2d((size, 3)), "kernel_size"),
    ],
)
def test_sizes_that_are_ints_of_another_kind(make, field, size):
    assert fl.tree.structure(make(size)) == fl.tree.structure(make(2))
    assert {type(each) for each in np.atleast_1d(getattr(make(size), field)).tolist()} == {int}


@pytest.mark.parametrize("layer", LAYERS)
def test_no_signature_prints_an_address(layer):
    for function in layer, *filter(inspect.isfunction, vars(layer).values()):
        assert " at 0x" not in str(inspect.signature(function))


def test_the_names_shown_are_the_public_ones():
    assert dir(fl.nn) == sorted(fl.nn.__all__)


def test_the_error_of_an_input_is_public():
    with pytest.raises(fl.nn.MisfitError):
        fl.nn.Linear(2, 3)(mx.ones(5))
    assert issubclass(fl.nn.MisfitError, ValueError)


OF_ARRAYS = {
    "linear": (fl.nn.Linear(2, 2), (3, 2)),
    "linear without bias": (fl.nn.Linear(2, 2, bias=False), (3, 2)),
    "linear of another size": (fl.nn.Linear(5, 2), (3, 2)),
    "in a model": (fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.relu), (2,)),
    "conv1d": (fl.nn.Conv1d(2, 2, 1), (1, 3, 2)),
    "conv_transpose1d": (fl.nn.ConvTranspose1d(2, 2, 1), (1, 3, 2)),
    "layer_norm": (fl.nn.LayerNorm(2), (3, 2)),
    "rms_norm": (fl.nn.RMSNorm(2), (3, 2)),
    "quantized_linear": (fl.nn.QuantizedLinear(64, 64), (3, 64)),
    "transformer": (lambda x: fl.nn.TransformerEncoderLayer(2, 1)(x, None), (1, 3, 2)),
}


@pytest.mark.parametrize("name", OF_ARRAYS)
def test_an_array_of_numpy_says_to_make_it_one_of_mlx(name):
    layer, shape = OF_ARRAYS[name]
    x = np.ones(shape, np.float32)
    with pytest.raises(fl.nn.MisfitError, match=r"takes an array of MLX, and was given a ndarray: give mx\.array\(\.\.\.\)"):
        layer(x)
    if name != "linear of another size":
        assert isinstance(layer(mx.array(x)), mx.array)


@pytest.mark.parametrize("x", [[1.0, 2.0], (1.0, 2.0), 1.0, None], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_list_says_to_make_it_an_array(x, bias):
    with pytest.raises(fl.nn.MisfitError, match=r"Linear takes an array of MLX, and was given a \w+: give mx\.array\(\.\.\.\)"):
        fl.nn.Linear(2, 2, bias=bias)(x)


def test_what_fails_inside_a_layer_is_not_blamed_on_its_input():
    with pytest.raises(AttributeError, match="has no T"):
        fl.eval_shape(lambda: fl.nn.Linear(2, 2))(mx.ones(2))


def test_a_layer_without_numbers_does_not_blame_its_input():
    layer = fl.eval_shape(lambda: fl.nn.Conv2d(1, 2, 3))
    with pytest.raises(fl.nn.MisfitError, match=r"^Conv2d has shapes without values in the place of arrays"):
        layer(mx.ones((1, 4, 4, 1)))
