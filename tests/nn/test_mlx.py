"""Every layer against its twin in mlx.nn: names, arguments, initial weights, outputs, gradients and statistics."""

import inspect
from types import ModuleType

import mlx.core as mx
import mlx.nn
import pytest
from mlx.utils import tree_flatten

import frostleaf as fl

IMAGE, WIDE = (2, 6, 6, 4), (2, 7, 5, 4)
LAYERS = {
    "identity": (lambda nn: nn.Identity(1, a=2), (2, 3)),
    "linear": (lambda nn: nn.Linear(3, 4), (2, 3)),
    "linear, batched": (lambda nn: nn.Linear(3, 4), (5, 2, 3)),
    "linear, one vector": (lambda nn: nn.Linear(3, 4), (3,)),
    "linear, no bias": (lambda nn: nn.Linear(3, 4, bias=False), (2, 3)),
    "conv2d": (lambda nn: nn.Conv2d(4, 6, 3), IMAGE),
    "conv2d, no bias": (lambda nn: nn.Conv2d(4, 6, (3, 1), bias=False), WIDE),
    "conv2d, everything": (lambda nn: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2), WIDE),
    "max_pool2d, tiled": (lambda nn: nn.MaxPool2d(2), IMAGE),
    "max_pool2d, tiled and padded": (lambda nn: nn.MaxPool2d((3, 2), padding=(3, 0)), IMAGE),
    "max_pool2d, cut": (lambda nn: nn.MaxPool2d(2), WIDE),
    "max_pool2d, overlapping": (lambda nn: nn.MaxPool2d((3, 2), (2, 1), (1, 0)), WIDE),
    "embedding": (lambda nn: nn.Embedding(5, 3), mx.array([[0, 4], [4, 1]])),
    "layer_norm": (lambda nn: nn.LayerNorm(4), (2, 3, 4)),
    "layer_norm, no bias": (lambda nn: nn.LayerNorm(4, 1e-2, bias=False), (2, 4)),
    "layer_norm, not affine": (lambda nn: nn.LayerNorm(4, affine=False), (2, 4)),
    "rms_norm": (lambda nn: nn.RMSNorm(4, 1e-3), (2, 3, 4)),
    "batch_norm": (lambda nn: nn.BatchNorm(4), (5, 4)),
    "batch_norm, sequence": (lambda nn: nn.BatchNorm(4, 1e-3, 0.3), (5, 2, 4)),
    "batch_norm, image": (lambda nn: nn.BatchNorm(4, affine=False), IMAGE),
    "batch_norm, untracked": (lambda nn: nn.BatchNorm(4, track_running_stats=False), IMAGE),
    "batch_norm, eval": (lambda nn: in_eval_mode(nn.BatchNorm(4)), IMAGE),
    "dropout": (lambda nn: nn.Dropout(0.3), (20, 3)),
    "dropout, nothing": (lambda nn: nn.Dropout(0.0), (2, 3)),
    "dropout, eval": (lambda nn: in_eval_mode(nn.Dropout()), (2, 3)),
    "sequential": (
        lambda nn: nn.Sequential(nn.Linear(3, 4), nn.gelu, nn.Sequential(nn.Dropout()), nn.RMSNorm(4)),
        (2, 3),
    ),
}
each_layer = pytest.mark.parametrize(("make", "x"), LAYERS.values(), ids=LAYERS)
each_dtype = pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=lambda dtype: str(dtype)[9:])


def in_eval_mode(module):
    return module.eval() or module


def twins(make, dtype=mx.float32):
    """Return a layer and its twin, drawn from the same seed."""
    mx.random.seed(3)
    ours = make(fl.nn)
    mx.random.seed(3)
    theirs = make(mlx.nn)
    theirs.set_dtype(dtype)
    return ours.astype(dtype), theirs


def draw(x, dtype):
    return x if isinstance(x, mx.array) else mx.random.normal(x, key=mx.random.key(7)).astype(dtype)


def bits(tree):
    """Return the names, dtypes, shapes and bytes of the arrays of a tree of dicts and lists."""
    return [(name, array.dtype, array.shape, array.reshape(-1).view(mx.uint8).tolist()) for name, array in tree_flatten(tree)]


@each_layer
def test_initial_weights(make, x):
    ours, theirs = twins(make)
    assert bits(ours.parameters()) == bits(theirs.parameters())
    assert bits(ours.trainable_parameters()) == bits(theirs.trainable_parameters())


@each_dtype
@each_layer
def test_outputs_and_gradients(make, x, dtype):
    ours, theirs = twins(make, dtype)
    x = draw(x, dtype)
    cotangent = mx.random.normal(theirs(x).shape, key=mx.random.key(8)).astype(dtype)
    theirs = twins(make, dtype)[1]

    def our_loss(parameters, x):
        return (ours.update(parameters)(x) * cotangent).sum()

    def their_loss(parameters, x):
        theirs.update(parameters)
        return (theirs(x) * cotangent).sum()

    mx.random.seed(9)
    our_output = ours(x)
    mx.random.seed(9)
    assert bits(our_output) == bits(theirs(x))

    parameters = theirs.trainable_parameters()
    argnums = [i for i, wanted in enumerate([tree_flatten(parameters), x.dtype == dtype]) if wanted]
    mx.random.seed(9)
    gradients = mx.grad(our_loss, argnums)(parameters, x)
    mx.random.seed(9)
    assert bits(gradients) == bits(mx.grad(their_loss, argnums)(parameters, x))


@each_dtype
@each_layer
def test_statistics(make, x, dtype):
    ours, theirs = twins(make, dtype)
    x = draw(x, dtype)
    for scale in 1, 2, 3:
        x = x * scale if x.dtype == dtype else x
        mx.random.seed(9)
        out, ours = fl.stateful(ours, x)
        mx.random.seed(9)
        assert bits(out) == bits(theirs(x))
    assert bits(ours.parameters()) == bits(theirs.parameters())


@each_layer
def test_weights_go_both_ways(make, x):
    ours, theirs = make(fl.nn), make(mlx.nn)
    assert bits(ours.load_weights(tree_flatten(theirs.parameters())).parameters()) == bits(theirs.parameters())
    theirs = make(mlx.nn)
    theirs.load_weights(tree_flatten(ours.parameters()))
    assert bits(theirs.parameters()) == bits(ours.parameters())


@each_layer
def test_public_attributes(make, x):
    ours, theirs = make(fl.nn), make(mlx.nn)
    for name, value in {**theirs, **vars(theirs)}.items():
        if not name.startswith("_") and not isinstance(value, mx.array | list):
            assert getattr(ours, name) == value


CLASSES = [name for name in fl.nn.__all__ if isinstance(getattr(fl.nn, name), type)]


@pytest.mark.parametrize("name", CLASSES)
def test_arguments(name):
    def positional(cls):
        parameters = inspect.signature(cls).parameters.values()
        return [(each.name, each.kind, each.default) for each in parameters if each.kind is not each.KEYWORD_ONLY]

    ours = getattr(fl.nn, name)
    assert positional(ours) == positional(getattr(mlx.nn, name))
    added = {each.name for each in inspect.signature(ours).parameters.values() if each.kind is each.KEYWORD_ONLY}
    drawn = {"Linear", "Conv2d", "Embedding"}
    normed = {"LayerNorm", "RMSNorm", "BatchNorm"}
    assert added == ({"dtype", "key"} if name in drawn else {"dtype"} if name in normed else set())


def test_functions_are_those_of_mlx():
    functions = [name for name in fl.nn.__all__ if name not in CLASSES]
    assert {"relu", "gelu_fast_approx", "losses", "init"} <= set(functions)
    assert all(getattr(fl.nn, name) is getattr(mlx.nn, name) for name in functions)
    transformations = {"value_and_grad", "quantize", "average_gradients", "fully_shard"}
    for name, value in vars(mlx.nn).items():
        if callable(value) and not isinstance(value, type | ModuleType) and name not in transformations:
            assert name in functions
