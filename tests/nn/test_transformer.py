"""Keys, masks, checkpoints and errors of attention and transformers. That they compute what MLX does is in test_mlx."""

import re

import mlx.core as mx
import mlx.nn
import pytest

import frostleaf as fl
from frostleaf.core.words import describe

X, MEMORY = (mx.random.normal((2, length, 8), key=mx.random.key(length)) for length in (4, 3))
KEY = mx.random.key(1)
COMPOSED = {
    "encoder layer": (lambda **options: fl.nn.TransformerEncoderLayer(8, 2, 6, **options), (X, None)),
    "decoder layer": (lambda **options: fl.nn.TransformerDecoderLayer(8, 2, 6, **options), (X, MEMORY, "causal", None)),
    "encoder": (lambda **options: fl.nn.TransformerEncoder(2, 8, 2, 6, **options), (X, None)),
    "decoder": (lambda **options: fl.nn.TransformerDecoder(2, 8, 2, 6, **options), (X, MEMORY, None, None)),
    "transformer": (lambda **options: fl.nn.Transformer(8, 2, 2, 2, 6, **options), (MEMORY, X, None, "causal", None)),
}
each_composed = pytest.mark.parametrize(("make", "inputs"), COMPOSED.values(), ids=COMPOSED)
each_stack = pytest.mark.parametrize(("make", "inputs"), list(COMPOSED.values())[2:], ids=list(COMPOSED)[2:])
each_norm = pytest.mark.parametrize("norm_first", [True, False])


def generator():
    return mx.random.state[0].tolist()


def loss(model, inputs, key=None):
    output = model(*inputs, key=key)
    return (output * mx.sin(mx.arange(output.size)).reshape(output.shape)).sum()


@pytest.mark.parametrize(
    ("arguments", "size", "name"),
    [({"dims": 9, "num_heads": 2}, 9, "dims"), ({"dims": 8, "num_heads": 2, "value_dims": 7}, 7, "value_dims")],
)
def test_dimensions_that_do_not_divide(arguments, size, name):
    before = generator()
    with pytest.raises(ValueError, match="can't be divided among") as error:
        fl.nn.MultiHeadAttention(**arguments)
    message = f"{size} dimensions can't be divided among 2 heads: {name} must be a multiple of num_heads"
    assert str(error.value) == message
    assert generator() == before


@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 8), (4, 8), (4, 8)],
        [(2, 4, 8), (2, 3, 8), (2, 4, 8)],
        [(2, 4, 8), (1, 3, 8), (1, 3, 8)],
        [(2, 4, 8), (2, 3, 8), (1, 3, 8)],
        [(2, 4, 8), (2, 3, 8), (2, 3)],
        [(1, 2, 4, 8), (2, 3, 8), (2, 3, 8)],
    ],
)
def test_queries_keys_and_values_that_do_not_go_together(shapes):
    layer = fl.nn.MultiHeadAttention(8, 2)
    with pytest.raises(ValueError, match="takes queries") as error:
        layer(*map(mx.zeros, shapes))
    queries, keys, values = (f"f32[{','.join(map(str, shape))}]" for shape in shapes)
    assert str(error.value) == (
        "MultiHeadAttention takes queries [N, L, ...], keys [N, S, ...] and values [N, S, ...], of the same N and S, "
        "and as mask None, 'causal' or an array that broadcasts to [N, 2, L, S], "
        f"and was given {queries}, {keys}, {values} and None. The layer is {layer!r}"
    )


@pytest.mark.parametrize("position", [0, 1, 2])
def test_vectors_of_another_length(position):
    layer = fl.nn.MultiHeadAttention(8, 2, 3, 5, 7)
    shapes = [(2, 4, 3), (2, 3, 5), (2, 3, 7)]
    shapes[position] = (*shapes[position][:2], 6)
    takes = f"Linear takes an input of shape [..., {(3, 5, 7)[position]}], and was given f32[2,{(4, 3, 3)[position]},6]"
    given = ", ".join(f"f32[{','.join(map(str, shape))}]" for shape in shapes[:2])
    with pytest.raises(ValueError, match=re.escape(takes)) as error:
        layer(*map(mx.zeros, shapes))
    assert str(error.value).startswith("MultiHeadAttention takes queries [N, L, ...], keys [N, S, ...]")
    assert f"and was given {given}" in str(error.value)


MASKS = [mx.zeros((4, 5)), mx.zeros((3, 1, 4, 3)), mx.zeros((2, 3, 4, 3), mx.bool_), mx.zeros((1, 1, 2, 4, 3))]


@pytest.mark.parametrize("mask", [*MASKS, "casual", 1.5, [[0.0]], mx.zeros((4, 3), mx.complex64)], ids=describe)
def test_masks_that_do_not_fit(mask):
    layer, queries, keys = fl.nn.MultiHeadAttention(8, 2), mx.zeros((2, 4, 8)), mx.zeros((2, 3, 8))
    message = f"that broadcasts to [N, 2, L, S], and was given f32[2,4,8], f32[2,3,8], f32[2,3,8] and {describe(mask)}: "
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        layer(queries, keys, keys, mask)
    assert str(error.value).startswith("MultiHeadAttention takes queries")
    assert str(error.value).endswith(f". The layer is {layer!r}")


@pytest.mark.parametrize("shape", [(), (3,), (4, 1), (4, 3), (1, 1, 4, 3), (2, 1, 1, 3), (2, 2, 4, 3)])
def test_masks_that_fit(shape):
    ours, theirs = fl.nn.MultiHeadAttention(8, 2), mlx.nn.MultiHeadAttention(8, 2)
    theirs.update(ours.parameters())
    mask = mx.random.normal(shape)
    assert mx.array_equal(ours(X, MEMORY, MEMORY, mask), theirs(X, MEMORY, MEMORY, mask))


@each_composed
@pytest.mark.parametrize("checkpoint", [False, True])
def test_inputs_that_do_not_fit_in_a_model(make, inputs, checkpoint):
    model = make()
    if hasattr(model, "checkpoint"):
        model = model.replace(checkpoint=checkpoint)
    arrays = sum(isinstance(each, mx.array) for each in inputs)
    for position, each in enumerate(inputs):
        bads = [mx.zeros((4, 7)), mx.zeros((5, 1, 4, 4))]
        if isinstance(each, mx.array):
            batch, length, dims = each.shape
            bads = [mx.zeros(dims), mx.zeros((batch, length, dims + 1)), mx.zeros((1, batch, length, dims))]
            bads += [mx.zeros((batch + 1, length, dims))] * (arrays > 1)
        for bad in bads:
            given = [*inputs[:position], bad, *inputs[position + 1 :]]
            message = f"{type(model).__name__} was called with {', '.join(map(describe, given))}. In it, "
            with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
                model(*given)


def test_an_error_of_ones_own_is_left_as_it_is():
    class OwnError(ValueError):
        pass

    def activation(x):
        raise OwnError("no")

    with pytest.raises(OwnError, match=r"^no$"):
        fl.nn.TransformerEncoder(1, 8, 2, activation=activation)(X, None)


@pytest.mark.parametrize("value", [None, "relu", 3, mx.array(1.0)])
@pytest.mark.parametrize("make", [make for make, _ in COMPOSED.values()], ids=COMPOSED)
def test_an_activation_that_is_no_function(make, value):
    before = generator()
    with pytest.raises(
        TypeError, match=re.escape(f"takes a function or a module as activation, and was given {describe(value)}")
    ):
        make(activation=value, key=KEY)
    assert generator() == before


@pytest.mark.parametrize("name", ["custom_encoder", "custom_decoder"])
def test_a_custom_part_that_is_no_function(name):
    message = f"Transformer takes a function or a module as {name}, and was given 'x'"
    with pytest.raises(TypeError, match=message):
        fl.nn.Transformer(8, 2, 1, 1, **{name: "x"})


@pytest.mark.parametrize("value", [-1, 1.0, None, "2"])
@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (fl.nn.TransformerEncoder, "num_layers"),
        (fl.nn.TransformerDecoder, "num_layers"),
        (fl.nn.Transformer, "num_encoder_layers"),
        (fl.nn.Transformer, "num_decoder_layers"),
    ],
)
def test_a_number_of_layers_that_is_none(layer, name, value):
    message = f"{layer.__name__} takes an int of 0 or more as {name}, and was given {value!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(**{"dims": 8, "num_heads": 2, name: value})
    assert fl.nn.TransformerEncoder(0, 8, 2)(X, None).shape == X.shape


@pytest.mark.parametrize("make", [make for make, _ in COMPOSED.values()], ids=COMPOSED)
@pytest.mark.parametrize("dropout", [1, -0.1, float("nan")])
def test_dropout_that_is_not_a_probability(make, dropout):
    with pytest.raises(ValueError, match=f"'p' must be .*: {dropout}"):
        make(dropout=dropout)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("length", [0, 1, 4])
def test_additive_causal_mask(dtype, length):
    ours = fl.nn.MultiHeadAttention.create_additive_causal_mask(length, dtype)
    theirs = mlx.nn.MultiHeadAttention.create_additive_causal_mask(length, dtype)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape) == (dtype, (length, length))
    assert mx.array_equal(ours.view(mx.uint8), theirs.view(mx.uint8))
    assert fl.nn.MultiHeadAttention.create_additive_causal_mask(2).dtype == mx.float32


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_causal_masks_are_one_mask_in_three_forms(dtype):
    model, x = fl.nn.TransformerEncoder(2, 8, 2, dtype=dtype), X.astype(dtype)
    added = fl.nn.MultiHeadAttention.create_additive_causal_mask(4, dtype)
    expected = model(x, added)
    assert expected.dtype == dtype
    for mask in "causal", added == 0:
        assert mx.allclose(model(x, mask), expected, atol=1e-6 if dtype == mx.float32 else 0.02)
    changed = x + (mx.arange(4) == 3)[:, None] * x
    assert mx.array_equal(model(changed, added)[:, :3], expected[:, :3])
    assert not mx.array_equal(model(changed, None)[:, :3], model(x, None)[:, :3])


@each_norm
@each_composed
def test_a_key_in_a_call_is_pure(make, inputs, norm_first):
    model = make(dropout=0.5, norm_first=norm_first)
    before = generator()
    first = model(*inputs, key=KEY)
    assert mx.array_equal(first, model(*inputs, key=KEY))
    assert not mx.array_equal(first, model(*inputs, key=mx.random.key(2)))
    assert generator() == before
    assert not mx.array_equal(model(*inputs), model(*inputs))
    assert mx.array_equal(model.eval()(*inputs), make_plain(model)(*inputs, key=KEY))
    with fl.rng(KEY):
        drawn = model(*inputs)
    with fl.rng(KEY):
        assert mx.array_equal(model(*inputs), drawn)


def make_plain(model):
    return model.at(fl.nn.Dropout).set(fl.nn.Dropout(0))


@each_composed
def test_each_dropout_has_a_key_of_its_own(make, inputs, monkeypatch):
    keys = []
    monkeypatch.setattr(fl.nn.Dropout, "__call__", lambda self, x, *, key: keys.append(tuple(key.tolist())) or x)
    model = make(dropout=0.5)
    model(*inputs, key=KEY)
    assert len(keys) == len(set(keys)) == len(model.at(fl.nn.Dropout).paths())


@each_stack
def test_dropout_and_checkpoint(make, inputs):
    # MLX's own checkpoint draws again for the gradient, and so drops other elements than those of the value.
    plain = make(dropout=0.5, key=mx.random.key(0))
    model = plain.map_modules(lambda path, module: module.replace(checkpoint=True) if hasattr(module, "checkpoint") else None)
    for key in None, KEY:
        mx.random.seed(3)
        expected = fl.value_and_grad(loss)(plain, inputs, key), mx.random.normal((2,))
        mx.random.seed(3)
        ours = fl.value_and_grad(loss)(model, inputs, key), mx.random.normal((2,))
        assert fl.tree.equal((ours[0][0], ours[1]), (expected[0][0], expected[1]))
        for one, other in zip(fl.tree.leaves(ours), fl.tree.leaves(expected), strict=True):
            assert mx.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_computes_again_for_the_gradient():
    runs = []

    def activation(x):
        runs.append(x.shape)
        return mx.tanh(x)

    for checkpoint, count in (False, 2), (True, 4):
        model = fl.nn.TransformerEncoder(2, 8, 2, activation=activation, checkpoint=checkpoint)
        runs.clear()
        model(X, None)
        assert len(runs) == 2
        runs.clear()
        fl.grad(loss)(model, (X, None))
        assert len(runs) == count


@pytest.mark.parametrize("jitted", [False, pytest.param(True, marks=pytest.mark.long)])
def test_under_every_transformation(jitted):
    model = fl.nn.TransformerEncoder(1, 8, 2, 6, dropout=0.3, checkpoint=True, key=KEY)
    keys = mx.random.split(KEY, 2)
    inputs = X, None
    grads = fl.grad(loss)(model, inputs, keys[0])
    if jitted:  # sixteen kernels
        assert fl.tree.allclose(fl.jit(fl.grad(loss))(model, inputs, keys[0]), grads, rtol=1e-4, atol=1e-5)
    assert fl.tree.allclose(fl.jit(loss)(model, inputs, keys[0]), loss(model, inputs, keys[0]), rtol=1e-4, atol=1e-5)
    mapped = fl.vmap(fl.grad(loss), in_axes=(None, None, 0))(model, inputs, keys)
    assert fl.tree.allclose(fl.tree.unstack(mapped)[0], grads, rtol=1e-4, atol=1e-5)
    total = fl.grad(lambda model: fl.vmap(loss, in_axes=(None, None, 0))(model, inputs, keys).sum())(model)
    assert fl.tree.allclose(total, fl.tree.map(lambda each: each.sum(0), mapped), rtol=1e-4, atol=1e-5)
    assert fl.stateful(model, *inputs)[1] is model


class Shift(fl.Module):
    by: mx.array
    dropout: fl.nn.Dropout

    def __call__(self, src, mask, *, key=None):
        return self.dropout(src + self.by, key=key)


def test_a_custom_part_is_a_part_of_the_model_and_given_a_key_if_there_is_one():
    model = fl.nn.Transformer(8, 2, 9, 1, 6, custom_encoder=Shift(mx.ones(8), fl.nn.Dropout()), key=KEY)
    assert fl.tree.paths(model)[0] == "encoder.by"
    inputs = MEMORY, X, None, None, None
    assert mx.array_equal(model(*inputs, key=KEY), model(*inputs, key=KEY))
    assert not mx.array_equal(model(*inputs), model(*inputs))
    assert fl.grad(loss)(model, inputs).encoder.by.shape == (8,)


def test_a_custom_part_that_is_a_function_needs_no_key_without_one():
    model = fl.nn.Transformer(8, 2, 1, 1, 6, custom_encoder=lambda src, mask: src)
    assert model(MEMORY, X, None, None, None).shape == X.shape


def test_a_part_of_mlx_is_refused():
    with pytest.raises(TypeError, match=r"Transformer\.encoder .*Use the layer of that name in fl\.nn"):
        fl.nn.Transformer(8, 2, custom_encoder=mlx.nn.TransformerEncoder(1, 8, 2), num_decoder_layers=0)


def test_an_activation_with_parameters_is_trained_apart_in_each_layer():
    model = fl.nn.TransformerEncoder(2, 8, 2, 6, activation=fl.nn.Linear(6, 6))
    first, second = (layer.activation.weight for layer in model.layers)
    assert first is second
    grads = fl.grad(loss)(model, (X, None))
    first, second = (layer.activation.weight for layer in grads.layers)
    assert not mx.array_equal(first, second)


def test_a_key_gives_each_part_weights_of_its_own():
    model = fl.nn.Transformer(8, 2, 2, 2, 6, key=KEY)
    weights = [linear.weight.reshape(-1)[:5] for linear in model.at(fl.nn.Linear).get().values()]
    assert len({tuple(weight.tolist()) for weight in weights}) == len(weights)


def test_the_dtype_is_checked_where_both_parts_are_custom():
    with pytest.raises(TypeError, match=r"a layer can't be made in dtype mlx\.core\.int32\. Give a floating-point"):
        fl.nn.Transformer(custom_encoder=lambda src, mask: src, custom_decoder=lambda *args: args[0], dtype=mx.int32)
