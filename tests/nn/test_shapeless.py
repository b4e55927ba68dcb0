"""Every layer under ``fl.jit(shapeless=True)``: the numbers that it computes without, for all batches."""

import warnings

import mlx.core as mx
import pytest
from cases import CASES

import frostleaf as fl

# Traced for each shape: layers that MLX has no rules for, in some of their cases at least, or that have gradients of their own.
FOR_EACH_SHAPE = {
    "AllToShardedLinear", "AvgPool1d", "AvgPool2d", "AvgPool3d", "Dropout", "Dropout2d", "Dropout3d", "FullyShardedModule",
    "GLU", "GRU", "LSTM", "MaxPool1d", "MaxPool2d", "MaxPool3d", "QQLinear", "QuantizedEmbedding", "RNN", "RoPE",
    "Sequential", "Transformer", "TransformerDecoder", "TransformerDecoderLayer", "TransformerEncoder",
    "TransformerEncoderLayer", "Upsample",
}  # fmt: skip
CROPPED = CASES["convolution: conv2d, padded by less than nothing"]
# The others take long, since MLX's CPU compiler takes half a second for each kernel.
DAILY = {"linear: linear", "normalization: group norm", "normalization: instance norm", "attention: attention, padding"}

pytestmark = pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning", "always::frostleaf.RetraceWarning")


def layer_and_batches(case):
    """Return a layer, and inputs in batches of three sizes."""
    mx.random.seed(3)
    inputs = case.drawn(mx.float32)
    return case.make(fl.nn), [[grown(each, times) for each in inputs] for times in (2, 3, 1)]


def grown(value, times):
    return mx.concatenate([value] * times) if isinstance(value, mx.array) and value.ndim else value


def outcome(function, *args):
    """Return what a function returns, or the class of the error that it raises."""
    mx.random.seed(4)
    try:
        return function(*args)
    except (ValueError, RuntimeError) as error:
        return type(error)


def jitted(function):
    return fl.jit(function, shapeless=True)


def call(layer, *inputs):
    return layer(*inputs)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_layer_is_traced_once_unless_mlx_can_not(case):
    layer, batches = layer_and_batches(case)
    compiled = jitted(call)
    with warnings.catch_warnings(record=True) as caught:
        for inputs in batches:
            expected, result = outcome(call, layer, *inputs), outcome(compiled, layer, *inputs)
            assert isinstance(expected, type) or shapes(result) == shapes(expected)
    if type(layer).__name__ not in FOR_EACH_SHAPE and case is not CROPPED:
        assert (compiled.trace_count, [each.message for each in caught if each.category is fl.RetraceWarning]) == (1, [])


def shapes(tree):
    return [(leaf.shape, leaf.dtype) for leaf in fl.tree.leaves(tree)]


@pytest.mark.parametrize(
    "case", [pytest.param(CASES[name], id=name, marks=() if name in DAILY else pytest.mark.long) for name in CASES]
)
def test_a_layer_computes_the_same(case):
    layer, batches = layer_and_batches(case)
    compiled = jitted(call)
    for inputs in batches:
        expected, result = (outcome(evaluated, function, layer, *inputs) for function in (call, compiled))
        assert result is expected or fl.tree.allclose(result, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def evaluated(function, *args):
    result = function(*args)
    mx.eval(fl.tree.leaves(result))
    return result
