"""What is special about quantized layers: what is trained and cast, the two forms of QQLinear, errors, memory."""

import gc
import re

import mlx.core as mx
import mlx.nn
import pytest
from mlx.utils import tree_flatten

import frostleaf as fl
from frostleaf.core.words import describe

MODES = ["affine", "mxfp4", "nvfp4", "mxfp8"]
each_mode = pytest.mark.parametrize("mode", MODES)
LAYERS = [fl.nn.QuantizedLinear, fl.nn.QuantizedEmbedding, fl.nn.QQLinear]
each_layer = pytest.mark.parametrize("layer", LAYERS)


def generator():
    return mx.random.state[0].tolist()


def names(tree):
    return [name for name, _ in tree_flatten(tree)]


def same(ours, theirs):
    ours, theirs = tree_flatten(ours), tree_flatten(theirs)
    return names(ours) == names(theirs) and all(
        one.dtype == other.dtype and mx.array_equal(one, other) for (_, one), (_, other) in zip(ours, theirs, strict=True)
    )


# What is made of a layer in full


@each_mode
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_as_linear(mode, dtype):
    ours = fl.nn.Embedding(5, 64, dtype=dtype).to_quantized(mode=mode)
    theirs = mlx.nn.QuantizedEmbedding(5, 64, mode=mode)
    theirs.update(ours.parameters())
    x = mx.random.normal((2, 64)).astype(dtype)
    out = ours.as_linear(x)
    assert out.dtype == dtype
    assert mx.array_equal(out, theirs.as_linear(x))


@pytest.mark.parametrize(
    "quantized",
    [
        lambda: fl.nn.QuantizedLinear.from_linear(fl.nn.Linear(64, 4, key=mx.random.key(1))),
        lambda: fl.nn.QuantizedEmbedding.from_embedding(fl.nn.Embedding(5, 64, key=mx.random.key(1))),
        lambda: fl.nn.QQLinear.from_linear(fl.nn.Linear(64, 4, bias=False, key=mx.random.key(1))),
    ],
)
def test_to_quantize_a_layer_draws_nothing(quantized):
    before = generator()
    quantized()
    assert generator() == before


@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
@pytest.mark.parametrize("training", [True, False])
def test_the_bias_and_the_mode_are_those_of_the_linear(frozen, training):
    linear = fl.nn.Linear(64, 4).train(training)
    linear = linear if frozen is None else linear.freeze(keys=frozen)
    layer = linear.to_quantized()
    assert layer.bias is linear.bias
    assert layer.training is training
    assert names(layer.trainable_parameters()) == ([] if frozen == "bias" else ["bias"])


def test_a_subclass_is_made_of_a_layer():
    class Mine(fl.nn.QuantizedLinear):
        name: str = fl.static(default="mine")

    layer = Mine.from_linear(fl.nn.Linear(64, 4))
    assert type(layer) is Mine
    assert layer.name == "mine"


def test_zero_stands_for_the_default_group_size_and_bits():  # where MLX ends the process
    layer = fl.nn.QuantizedLinear(64, 4, group_size=0, bits=0)
    assert (layer.group_size, layer.bits) == (64, 4)
    assert layer(mx.ones((2, 64))).shape == (2, 4)


# What is trained, and what is cast


def test_what_is_quantized_is_never_trained_and_the_bias_once_it_is_unfrozen():
    model = fl.nn.Sequential(fl.nn.QuantizedEmbedding(5, 64), fl.nn.QuantizedLinear(64, 4))
    assert names(model.parameters()) == [
        *["layers.0.weight", "layers.0.scales", "layers.0.biases"],
        *["layers.1.weight", "layers.1.scales", "layers.1.biases", "layers.1.bias"],
    ]
    assert names(model.trainable_parameters()) == []
    for again in model.unfreeze(), model.at("layers.1.*").unfreeze(), model.unfreeze(keys=["weight", "bias"]):
        assert names(again.trainable_parameters()) == ["layers.1.bias"]
    assert model.freeze() is model
    assert fl.tree.structure(model.unfreeze().freeze()) == fl.tree.structure(model)


def test_gradients():
    model = fl.nn.QuantizedLinear(64, 4, key=mx.random.key(0))
    x = mx.random.normal((3, 64))

    def loss(model, x):
        return model(x).sum()

    with pytest.raises(ValueError, match="nothing to differentiate"):
        fl.grad(loss)(model, x)
    gradient = fl.grad(loss)(model.unfreeze(), x)
    assert gradient.bias.tolist() == [3, 3, 3, 3]
    assert (gradient.weight, gradient.scales, gradient.biases) == (None, None, None)
    full = mx.dequantize(model.weight, model.scales, model.biases)
    assert mx.allclose(fl.grad(loss, argnums=1)(model, x), mx.broadcast_to(full.sum(0), x.shape), atol=1e-5)


def test_a_step_trains_the_bias_alone():
    model = fl.nn.Linear(64, 4).to_quantized()
    optimizer = fl.optim.SGD(0.1)

    @fl.jit
    def step(model, state, x):
        gradients = fl.grad(lambda model: model(x).square().sum())(model)
        return optimizer.update(model, gradients, state)

    after, _ = step(model, optimizer.init(model), mx.ones((2, 64)))
    assert not mx.array_equal(after.bias, model.bias)
    assert after.weight is model.weight
    assert after.scales is model.scales


@each_mode
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("method", ["astype", "set_dtype"])
def test_a_quantized_model_is_cast_as_by_mlx(method, dtype, mode):
    def build(nn):
        return nn.Sequential(nn.Embedding(5, 64), nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64, bias=False))

    ours, theirs = fl.quantize(build(fl.nn), mode=mode), build(mlx.nn)
    mlx.nn.quantize(theirs, mode=mode)
    theirs.update(ours.parameters())
    x = mx.array([[3, 4]])
    before, kept = ours(x), ours.parameters()
    theirs.set_dtype(dtype)
    cast = getattr(ours, method)(dtype)
    assert same(cast.parameters(), theirs.parameters())
    assert (cast(x).dtype, mx.array_equal(cast(x), theirs(x)).item()) == (theirs(x).dtype, True)
    assert mode != "affine" or cast(x).dtype == dtype
    packed = [path for path, array in tree_flatten(kept) if array.dtype in (mx.uint32, mx.uint8)]
    assert {dict(tree_flatten(cast.parameters()))[path] is dict(tree_flatten(kept))[path] for path in packed} == {True}
    assert same(ours.parameters(), kept)
    assert mx.array_equal(ours(x), before)


def test_a_cast_of_a_part_or_by_a_predicate():
    model = fl.nn.Sequential(fl.nn.QuantizedLinear(64, 64), fl.nn.QuantizedLinear(64, 64, dtype=mx.float16))
    half = model.at("layers.0").astype(mx.bfloat16)
    assert [layer.scales.dtype for layer in half.layers] == [mx.bfloat16, mx.float16]
    wide = model.astype(mx.bfloat16, lambda dtype: dtype == mx.float32)
    assert [layer.biases.dtype for layer in wide.layers] == [mx.bfloat16, mx.float16]
    assert wide.layers[1] is model.layers[1]


def test_where_nothing_is_floating_nothing_is_cast():
    layer = fl.nn.QuantizedEmbedding(5, 64, mode="mxfp8")
    assert layer.astype(mx.float16) is layer


def test_a_quantized_layer_of_qqlinear_is_cast_in_full_alone():
    layer = fl.nn.QQLinear(64, 4)
    assert layer.astype(mx.bfloat16).weight.dtype == mx.bfloat16
    assert layer.eval().astype(mx.bfloat16).scales.dtype == mx.uint8


def test_a_default_dtype_is_for_building_and_a_cast_is_for_what_was_built():
    with fl.default_dtype(mx.bfloat16):
        built = fl.nn.QuantizedLinear(64, 4)
    cast = fl.nn.QuantizedLinear(64, 4).astype(mx.bfloat16)
    assert [leaf.dtype for leaf in fl.tree.leaves(built)] == [leaf.dtype for leaf in fl.tree.leaves(cast)]


# QQLinear


@pytest.mark.parametrize("mode", ["nvfp4", "mxfp8"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(
    "calls",
    [
        ["eval"],
        ["eval", "eval"],
        ["eval", "train"],
        ["quantize"],
        ["quantize", "train"],
        ["eval", "dequantize", "eval"],
        ["train"],
    ],
    ids=" ".join,
)
def test_both_forms_are_those_of_mlx(mode, dtype, calls):
    ours, theirs = fl.nn.QQLinear(64, 4, mode=mode, dtype=dtype), mlx.nn.QQLinear(64, 4, mode=mode)
    theirs.update(ours.parameters())
    for call in calls:
        ours = getattr(ours, call)()
        getattr(theirs, call)()
        assert ours.training == theirs.training
        assert same(ours.parameters(), theirs.parameters())
        assert same(ours.trainable_parameters(), theirs.trainable_parameters())


def test_a_form_that_is_there_is_kept():
    layer = fl.nn.QQLinear(64, 4)
    assert layer.train() is layer
    assert layer.dequantize() is layer
    small = layer.eval()
    assert small.eval() is small
    assert small.quantize() is small
    assert small is not layer
    assert layer.weight.dtype == mx.float32


def test_the_layer_is_switched_inside_a_model_and_inside_jit():
    model = fl.nn.Sequential(fl.nn.Linear(8, 64), fl.nn.QQLinear(64, 4))
    x = mx.random.normal((1, 8))
    small = model.eval()
    assert small.layers[0].weight is model.layers[0].weight
    assert small.layers[1].scales.dtype == mx.uint8
    inside = fl.jit(lambda model, x: model.eval()(x))
    assert mx.allclose(inside(model, x), small(x), atol=1e-6)


def test_what_is_quantized_has_no_trainable_leaf():
    layer = fl.nn.QQLinear(64, 4).eval()
    with pytest.raises(ValueError, match="nothing to differentiate"):
        fl.grad(lambda layer: layer(mx.ones((1, 64))).sum())(layer)


def test_a_frozen_linear_makes_a_frozen_layer():
    linear = fl.nn.Linear(64, 4, bias=False).freeze()
    assert names(fl.nn.QQLinear.from_linear(linear).trainable_parameters()) == []
    assert fl.nn.QQLinear.from_linear(linear).unfreeze().weight is linear.weight


# Errors


@each_layer
def test_no_such_mode(layer):
    before = generator()
    message = "Invalid quantization mode 'int4'. Valid modes are: affine, mxfp4, nvfp4, mxfp8."
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(64, 64, mode="int4")
    assert generator() == before


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_modes_that_do_not_quantize_the_input(mode):
    message = f"Quantized activations are only supported for 'nvfp4' and 'mxfp8' modes, got '{mode}'."
    with pytest.raises(ValueError, match=re.escape(message)):
        fl.nn.QQLinear(64, 4, mode=mode)
    with pytest.raises(ValueError, match=re.escape(message)):
        fl.nn.Linear(64, 4).to_quantized(mode=mode, quantize_input=True)


@each_layer
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "nvfp4", "group_size": 32}, "requires group size 16 but got 32"),
        ({"mode": "mxfp8", "bits": 4}, "requires bits to be 8 but got 4"),
    ],
)
def test_what_a_mode_does_not_have(layer, options, message):
    with pytest.raises(ValueError, match=message):
        layer(64, 64, **options)


@pytest.mark.parametrize("layer", [fl.nn.QuantizedLinear.from_linear, lambda linear, **options: linear.to_quantized(**options)])
@pytest.mark.parametrize(
    ("dims", "options", "message"),
    [
        (100, {}, "divisible by the quantization group size 64. However the provided  matrix has shape (3,100)"),
        (64, {"bits": 7}, "bits 7 is not supported. The supported bits are"),
        (64, {"group_size": 16}, "group size 16 is not supported. The supported group sizes are"),
    ],
)
def test_what_can_not_be_quantized(layer, dims, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(fl.nn.Linear(dims, 3), **options)


@each_layer
def test_numbers_of_64_bits(layer):
    message = "MLX does not quantize numbers in mx.float64. Make the layer in mx.float32, mx.float16 or mx.bfloat16"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(64, 4, dtype=mx.float64)
    with fl.default_dtype(mx.float64), pytest.raises(ValueError, match=re.escape(message)):
        layer(64, 4)


def test_the_default_dtype_is_not_asked_when_a_layer_is_quantized():
    linear, embedding = fl.nn.Linear(64, 4, bias=False, dtype=mx.float16), fl.nn.Embedding(5, 64, dtype=mx.float16)
    with fl.default_dtype(mx.float64):
        assert linear.to_quantized().scales.dtype == embedding.to_quantized().scales.dtype == mx.float16
        assert linear.to_quantized(mode="nvfp4", quantize_input=True).weight is linear.weight


@each_layer
def test_dims_that_do_not_divide(layer):
    with pytest.raises(ValueError, match=re.escape("divisible by the quantization group size")):
        layer(100, 100)


def test_a_bias_beside_a_quantized_input():
    message = (
        "QQLinear does not support bias yet. Give it a Linear without: Linear(..., bias=False), or linear.replace(bias=None)."
    )
    with pytest.raises(NotImplementedError, match=re.escape(message)):
        fl.nn.QQLinear.from_linear(fl.nn.Linear(64, 4))
    with pytest.raises(NotImplementedError, match=re.escape(message)):
        fl.nn.Linear(64, 4).to_quantized(mode="mxfp8", quantize_input=True)
    assert fl.nn.QQLinear.from_linear(fl.nn.Linear(64, 4).replace(bias=None)).scales is None


def test_the_input_of_an_embedding_is_not_quantized():
    message = "Quantized input is not supported. The input of an Embedding is integers: leave quantize_input at False for it."
    with pytest.raises(ValueError, match=re.escape(message)):
        fl.nn.Embedding(5, 64).to_quantized(mode="nvfp4", quantize_input=True)


@pytest.mark.parametrize(
    ("call", "shape", "takes"),
    [
        (fl.nn.QuantizedLinear(64, 4), (2, 32), "QuantizedLinear takes an input of shape [..., 64]"),
        (fl.nn.QuantizedLinear(96, 4, group_size=32, bits=3), (8,), "QuantizedLinear takes an input of shape [..., 96]"),
        (fl.nn.QuantizedLinear(64, 4, mode="mxfp8"), (), "QuantizedLinear takes an input of shape [..., 64]"),
        (fl.nn.QuantizedEmbedding(5, 64).as_linear, (2, 5), "QuantizedEmbedding takes an input of shape [..., 64]"),
        (fl.nn.QQLinear(64, 4), (2, 32), "QQLinear takes an input of shape [N, 64]"),
        (fl.nn.QQLinear(64, 4).eval(), (1, 8), "QQLinear takes an input of shape [N, 64]"),
    ],
)
def test_input_that_does_not_fit(call, shape, takes):
    with pytest.raises(ValueError, match="takes an input") as error:
        call(mx.zeros(shape))
    assert f"{takes}, and was given f32[{','.join(map(str, shape))}]" in str(error.value)
    assert str(error.value).endswith(f"The layer is {getattr(call, '__self__', call)!r}")


@pytest.mark.parametrize("make", [fl.nn.QuantizedLinear.from_linear, fl.nn.QQLinear.from_linear])
@pytest.mark.parametrize(
    "layer",
    [
        fl.nn.ReLU(),
        fl.nn.Bilinear(2, 3, 4),
        fl.nn.QuantizedLinear(64, 4, False),
        fl.tree.stack([fl.nn.Linear(64, 4)] * 2),
        fl.nn.Linear(64, 4).replace(weight=mx.zeros((4, 64), mx.int32)),
        mlx.nn.Linear(64, 4),
        None,
    ],
    ids=repr,
)
def test_what_a_layer_is_not_made_of(make, layer):
    cls = make.__self__.__name__
    message = (
        f"{cls} is made of a frostleaf module that has a floating-point weight of two axes, and was given {describe(layer)}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make(layer)
    with pytest.raises(ValueError, match="QuantizedEmbedding is made of"):
        fl.nn.QuantizedEmbedding.from_embedding(layer)


# Inputs that MLX refuses, or that end its process


@each_mode
def test_a_single_index(mode):
    layer = fl.nn.QuantizedEmbedding(5, 64, mode=mode)
    rows = layer(mx.array([3, 4]))
    assert mx.array_equal(layer(mx.array(3)), rows[0])


@pytest.mark.parametrize(
    "mode", ["mxfp8", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("affine", "mxfp4", "nvfp4"))]
)
def test_a_single_index_inside_jit(mode):
    layer = fl.nn.QuantizedEmbedding(5, 64, mode=mode)
    assert mx.array_equal(fl.jit(layer)(mx.array(4)), layer(mx.array([3, 4]))[1])


@each_mode
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_no_index(mode, shape):
    layer = fl.nn.QuantizedEmbedding(5, 64, mode=mode)
    out = layer(mx.zeros(shape, mx.int32))
    assert out.shape == (*shape, 64)
    assert out.dtype == layer(mx.array([0])).dtype


@each_mode
@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_no_rows(mode, shape):
    linear, embedding = fl.nn.QuantizedLinear(64, 4, mode=mode), fl.nn.QuantizedEmbedding(4, 64, mode=mode)
    for dtype in mx.float32, mx.float16:
        x, one = mx.zeros(shape, dtype), mx.zeros((1, 64), dtype)
        for call in linear, embedding.as_linear, fl.jit(linear):
            out = call(x)
            fl.eval(out)
            assert out.shape == (*shape[:-1], 4)
            assert out.dtype == call(one).dtype


# Memory


@pytest.mark.parametrize(
    "make",
    [
        lambda dims: fl.nn.QuantizedLinear(dims, dims),
        lambda dims: fl.nn.QuantizedLinear(dims, dims, dtype=mx.bfloat16),
        lambda dims: fl.quantize(fl.nn.Linear(dims, dims)),
    ],
)
def test_one_weight_in_full_at_a_time(make):
    dims, count = 256, 16
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    layers = [make(dims) for _ in range(count)]
    fl.eval(layers, at_once=0)
    in_full = 4 * dims * dims
    assert mx.get_peak_memory() - before < fl.tree.nbytes(layers) + 2 * in_full
