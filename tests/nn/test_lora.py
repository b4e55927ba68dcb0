"""The layers that adapt others, against those of mlx-lm."""

from __future__ import annotations

import inspect
import re
from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from tuned import assert_same

import frostleaf as fl

lora = pytest.importorskip("mlx_lm.tuner.lora")
dora = pytest.importorskip("mlx_lm.tuner.dora")

TOKENS = mx.array([[0, 4, 1], [2, 2, 8]])
THEIRS = {
    "LoRALinear": lora.LoRALinear,
    "LoRAEmbedding": lora.LoRAEmbedding,
    "DoRALinear": dora.DoRALinear,
    "DoRAEmbedding": dora.DoRAEmbedding,
}
LAYERS = {
    "linear": lambda nn: nn.Linear(64, 32),
    "linear, no bias": lambda nn: nn.Linear(64, 32, bias=False),
    "quantized linear": lambda nn: nn.Linear(64, 32).to_quantized(32, 8),
    "quantized linear, 3 bits": lambda nn: nn.Linear(64, 32).to_quantized(32, 3),
    "quantized linear, mxfp4": lambda nn: nn.Linear(64, 32).to_quantized(mode="mxfp4"),
    "embedding": lambda nn: nn.Embedding(9, 64),
    "quantized embedding": lambda nn: nn.Embedding(9, 64).to_quantized(32, 4),
}
ADAPTED = [(name, layer) for name in THEIRS for layer in LAYERS if name[4:].lower() in layer]
# mlx-lm takes what is packed for the numbers themselves, and 3 bits for 3.2.
ADAPTED.remove(("DoRAEmbedding", "quantized embedding"))
ADAPTED.remove(("DoRALinear", "quantized linear, 3 bits"))
each_name = pytest.mark.parametrize("name", THEIRS)
each_adapted = pytest.mark.parametrize(("name", "layer"), ADAPTED)


def sizes(name: str) -> tuple[int, int]:
    return (9, 64) if "Embedding" in name else (64, 32)


def both(name: str, layer: str, dtype: mx.Dtype = mx.float32, **options: Any) -> tuple[Any, Any]:
    """Return an adapter and its twin, around layers of the same numbers; neither product is 0."""
    made = []
    for nn, cls in (fl.nn, getattr(fl.nn, name)), (mlx.nn, THEIRS[name]):
        mx.random.seed(5)
        base = LAYERS[layer](nn)
        base = base.astype(dtype) if nn is fl.nn else base.set_dtype(dtype) or base
        mx.random.seed(6)  # mlx.nn draws where it quantizes
        made.append(cls.from_base(base, **options))
    ours, theirs = made
    assert_same(ours.parameters(), theirs.parameters())
    lora_b = 0.1 * mx.random.normal(ours.lora_b.shape, key=mx.random.key(1))
    theirs.lora_b = lora_b
    return ours.replace(lora_b=lora_b), theirs


def inputs(layer: str, dtype: mx.Dtype) -> mx.array:
    return TOKENS if "embedding" in layer else mx.random.normal((2, 3, 64), key=mx.random.key(2)).astype(dtype)


@each_name
def test_the_arguments_are_those_of_mlx_lm(name: str) -> None:
    def positional(function: Any) -> list[Any]:
        parameters = inspect.signature(function).parameters.values()
        return [(each.name, each.default) for each in parameters if each.kind is not each.KEYWORD_ONLY]

    ours, theirs = getattr(fl.nn, name), THEIRS[name]
    assert positional(ours) == positional(theirs)
    assert positional(ours.from_base) == positional(theirs.from_base)
    assert positional(ours.fuse)[1] == ("dequantize", False)


@each_name
def test_the_same_seed_gives_the_same_layer(name: str) -> None:
    layers = []
    for cls in getattr(fl.nn, name), THEIRS[name]:
        mx.random.seed(3)
        layers.append(cls(*sizes(name), r=4))
        layers.append(mx.random.normal((2,)))
    assert_same(layers[0].parameters(), layers[2].parameters())
    assert mx.array_equal(layers[1], layers[3])


@each_adapted
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_outputs_and_gradients_are_those_of_mlx_lm(name: str, layer: str, dtype: mx.Dtype) -> None:
    ours, theirs = both(name, layer, dtype, r=4, scale=2.0, dropout=0.25)
    x = inputs(layer, dtype)
    mx.random.seed(1)
    out, grads = fl.value_and_grad(lambda layer, x: layer(x).square().sum())(ours, x)
    mx.random.seed(1)
    expected, their_grads = mlx.nn.value_and_grad(theirs, lambda x: theirs(x).square().sum())(x)
    assert mx.array_equal(out, expected)
    assert_same({name: grads[name] for name in type(ours).own}, {name: their_grads[name] for name in type(ours).own})
    theirs.eval()
    assert mx.array_equal(ours.eval()(x), theirs(x))
    assert ours.eval()(x).dtype == theirs(x).dtype
    if "embedding" in layer:
        hidden = mx.random.normal((2, 64)).astype(dtype)
        assert mx.array_equal(ours.eval().as_linear(hidden), theirs.as_linear(hidden))


@each_adapted
@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_the_fused_layer_is_that_of_mlx_lm(name: str, layer: str, dequantize: bool, dtype: mx.Dtype) -> None:
    ours, theirs = both(name, layer, dtype, r=4, scale=2.0)
    before = mx.random.state[0].tolist()
    fused = ours.fuse(dequantize)
    assert mx.random.state[0].tolist() == before
    expected = theirs.fuse(dequantize)
    assert type(fused).__name__ == type(expected).__name__
    assert_same(fused.parameters(), expected.parameters())


@each_name
def test_a_layer_is_a_frozen_tree_like_any_other(name: str, tmp_path: Any) -> None:
    layer = getattr(fl.nn, name)(*sizes(name), r=2, dtype=mx.float16, key=mx.random.key(0))
    assert {leaf.dtype for leaf in fl.tree.leaves(layer)} == {mx.float16}
    assert {leaf.dtype for leaf in fl.tree.leaves(layer.astype(mx.float32))} == {mx.float32}
    assert fl.tree.equal(layer, getattr(fl.nn, name)(*sizes(name), r=2, dtype=mx.float16, key=mx.random.key(0)))
    fl.save(tmp_path / "layer", layer)
    assert fl.tree.equal(fl.load(tmp_path / "layer", layer), layer)
    x = inputs(name.lower(), mx.float16)
    assert mx.allclose(fl.jit(layer)(x), layer(x), rtol=1e-2, atol=1e-2)
    assert "lora_a" in repr(layer)


def test_dora_of_three_bits() -> None:
    layer = fl.nn.Linear(64, 32).to_quantized(32, 3)
    adapted = fl.nn.DoRALinear.from_base(layer)
    x = mx.random.normal((2, 64))
    assert mx.allclose(adapted(x), layer(x), atol=1e-5)


def test_a_layer_of_another_training_mode() -> None:
    ours = fl.nn.LoRALinear.from_base(fl.nn.Linear(2, 3).eval(), dropout=0.5)
    theirs = lora.LoRALinear.from_base(mlx.nn.Linear(2, 3).eval(), dropout=0.5)
    for adapted in (ours, theirs):
        assert (adapted.training, adapted.dropout.training, adapted.linear.training) == (True, True, False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fl.nn.LoRALinear(2, 3, r=0), "LoRALinear takes a positive int as r, and was given 0"),
        (lambda: fl.nn.LoRALinear(2, 3, scale="x"), "LoRALinear takes a number as scale, and was given 'x'"),
        (lambda: fl.nn.DoRALinear(2, 3, dropout=1.5), "'p' must be >= 0 and < 1, and Dropout was given: 1.5"),
        (
            lambda: fl.nn.LoRALinear.from_base(fl.nn.ReLU()),
            "LoRALinear adapts a layer with a weight of two axes, and was given ReLU",
        ),
        (
            lambda: fl.nn.DoRALinear.from_base(fl.nn.Conv1d(2, 3, 4)),
            "DoRALinear adapts a layer with a weight of two axes, and was given Conv1d",
        ),
        (
            lambda: fl.nn.DoRAEmbedding.from_base(fl.nn.QuantizedEmbedding(9, 64)),
            "DoRAEmbedding does not take a quantized layer, and was given a QuantizedEmbedding: give LoRAEmbedding one",
        ),
        (lambda: fl.nn.LoRALinear(2, 3)(mx.ones(5)), "Linear takes an input of shape [..., 2], and was given f32[5]"),
        (lambda: fl.nn.DoRALinear(2, 3)(mx.ones(5)), "DoRALinear takes an input of shape [..., 2], and was given f32[5]"),
        (lambda: fl.nn.DoRALinear(2, 3)([1.0, 2.0]), "DoRALinear takes an array of MLX, and was given a list"),
        (lambda: fl.nn.LoRALinear(2, 3)(np.ones(2)), "Linear takes an array of MLX, and was given a ndarray"),
        (lambda: fl.nn.DoRALinear(2, 3)(np.ones(2)), "DoRALinear takes an array of MLX, and was given a ndarray"),
        (lambda: fl.nn.LoRAEmbedding(2, 3)(mx.ones(5)), "Embedding takes integers"),
    ],
)
def test_what_does_not_fit_is_told(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
