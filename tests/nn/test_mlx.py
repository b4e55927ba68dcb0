"""Every layer against its twin in mlx.nn: names, arguments, initial weights, outputs, gradients and statistics."""

import inspect
from types import ModuleType

import mlx.core as mx
import mlx.nn
import pytest
from cases import CASES
from mlx.utils import tree_flatten, tree_map

import frostleaf as fl
from frostleaf.transforms.group import as_group

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_dtype = pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=lambda dtype: str(dtype)[9:])

LAYERS = sorted(
    name
    for name, value in vars(mlx.nn).items()
    if isinstance(value, type) and issubclass(value, mlx.nn.Module) and name != "Module"
)

# Layers of mlx-lm, which are compared with it in test_lora.py.
TUNED = ["DoRAEmbedding", "DoRALinear", "LoRAEmbedding", "LoRALinear"]
# Its caches, in test_cache.py.
CACHES = ["ArraysCache", "CacheList", "GrowingCache", "KVCache", "RotatingKVCache"]

# How MLX says what it can't compute, on any device or on a CPU.
BEYOND_MLX = "[QQMatmul] NYI", "[qqmm] Scales must be provided"
FIRST = {type(case.make(mlx.nn)).__name__: name for name, case in reversed(CASES.items())}
# What takes MLX's compiler kernels of its own, of which each takes half a second, beside another layer that is jitted each day.
COMPILED_SELDOM = {
    "ALiBi", "AvgPool3d", "CELU", "Dropout3d", "ELU", "GRU", "GroupNorm", "HardTanh", "Hardswish", "InstanceNorm", "LogSigmoid",
    "LogSoftmax", "Mish", "QuantizedEmbedding", "ReLU2", "ReLU6", "SELU", "Sequential", "SiLU", "SinusoidalPositionalEncoding",
    "Softplus", "Softshrink", "Softsign", "Step",
}  # fmt: skip


def seldom(condition):
    return pytest.mark.long if condition else ()


@pytest.fixture
def eager():
    """Without MLX's compiled activation functions, whose kernels take long to build: the layers in the test are compared."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_every_layer_has_a_case():
    assert sorted(FIRST) == LAYERS
    listed = {name: getattr(fl.nn, name) for name in fl.nn.__all__}
    classes = {name: value for name, value in listed.items() if isinstance(value, type)}
    assert sorted(name for name, value in classes.items() if issubclass(value, fl.Module)) == sorted([*LAYERS, *TUNED, *CACHES])


def twins(case, dtype=mx.float32):
    """Return a layer and its twin, drawn from the same seed."""
    mx.random.seed(3)
    ours = case.make(fl.nn)
    mx.random.seed(3)
    theirs = case.make(mlx.nn)
    theirs.set_dtype(dtype)
    return ours.astype(dtype), theirs


def seeded(layer, inputs):
    mx.random.seed(9)
    return layer(*inputs)


def reference(function, *args):
    """Return what MLX computes; the test is skipped, for MLX's reason, where it can't."""
    try:
        result = function(*args)
        mx.eval(result)
    except (RuntimeError, ValueError) as error:
        if not str(error).startswith(BEYOND_MLX):
            raise
        pytest.skip(str(error))
    return result


def bits(tree):
    """Return the names, dtypes, shapes and bytes of the arrays of a tree of dicts and lists."""
    return [(name, array.dtype, array.shape, array.reshape(-1).view(mx.uint8).tolist()) for name, array in tree_flatten(tree)]


@each_case
def test_initial_weights(case):
    ours, theirs = twins(case)
    assert bits(ours.parameters()) == bits(theirs.parameters())
    assert bits(ours.trainable_parameters()) == bits(theirs.trainable_parameters())


@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
@pytest.mark.usefixtures("eager")
@each_dtype
@each_case
def test_outputs_and_gradients(case, dtype):
    ours, theirs = twins(case, dtype)
    inputs = case.drawn(dtype)
    output = reference(seeded, theirs, inputs)
    assert bits(seeded(ours, inputs)) == bits(output)

    weights = tree_map(lambda array: mx.random.normal(array.shape, key=mx.random.key(8)).astype(dtype), output)

    def weighted(output):
        pairs = zip(tree_flatten(output), tree_flatten(weights), strict=True)
        return sum((array * weight).sum() for (_, array), (_, weight) in pairs)

    def our_loss(parameters, *inputs):
        return weighted(seeded(ours.update(parameters), inputs))

    def their_loss(parameters, *inputs):
        theirs.update(parameters)
        return weighted(seeded(theirs, inputs))

    theirs = twins(case, dtype)[1]
    parameters = theirs.trainable_parameters()
    argnums = [0] * bool(tree_flatten(parameters)) + [position + 1 for position in case.positions()]
    if argnums:
        gradients = reference(mx.grad(their_loss, argnums), parameters, *inputs)
        assert bits(mx.grad(our_loss, argnums)(parameters, *inputs)) == bits(gradients)


@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, id=cls, marks=seldom(cls in COMPILED_SELDOM)) for cls, name in FIRST.items()]
)
def test_jitted_outputs(name):
    case = CASES[name]
    ours, theirs = twins(case)
    inputs = case.drawn(mx.float32)
    eager = [array for _, array in tree_flatten(seeded(theirs, inputs))]
    jitted = fl.tree.leaves(seeded(fl.jit(ours), inputs))
    state = [theirs.state, mx.random.state]
    compiled = [array for _, array in tree_flatten(seeded(mx.compile(theirs, inputs=state, outputs=state), inputs))]
    for one, by_mlx, plain in zip(jitted, compiled, eager, strict=True):
        tolerance = mx.abs(by_mlx - plain).max() + 1e-6
        assert (mx.abs(one - plain) <= tolerance).all(), (one, plain, tolerance)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        # Only normalization has statistics.
        pytest.param(case, dtype, id=f"{name}-{dtype}", marks=seldom(dtype != mx.float32 and "norm" not in name))
        for name, case in CASES.items()
        for dtype in (mx.float32, mx.float16, mx.bfloat16)
    ],
)
def test_statistics(case, dtype):
    ours, theirs = twins(case, dtype)
    for seed in 1, 2, 3:
        inputs = case.drawn(dtype, seed)
        expected = reference(seeded, theirs, inputs)
        mx.random.seed(9)
        out, ours = fl.stateful(ours, *inputs)
        assert bits(out) == bits(expected)
    assert bits(ours.parameters()) == bits(theirs.parameters())


@pytest.mark.parametrize(
    ("case", "suffix"),
    [
        pytest.param(case, suffix, id=f"{name}-{suffix}", marks=seldom(suffix == "npz" and name not in FIRST.values()))
        for name, case in CASES.items()
        for suffix in ("npz", "safetensors")
    ],
)
def test_weights_go_both_ways(case, suffix, tmp_path):
    file = f"{tmp_path}/weights.{suffix}"
    ours, theirs = case.make(fl.nn), case.make(mlx.nn)
    theirs.save_weights(file)
    assert bits(ours.load_weights(file).parameters()) == bits(theirs.parameters())
    theirs = case.make(mlx.nn)
    ours.save_weights(file)
    theirs.load_weights(file)
    assert bits(theirs.parameters()) == bits(ours.parameters())


@pytest.mark.parametrize("name", ["linear: bilinear", "convolution: conv2d", "normalization: batch_norm"])
def test_jitted_gradients_and_statistics(name):
    ours, theirs = twins(CASES[name])
    inputs = CASES[name].drawn(mx.float32)
    parameters = theirs.trainable_parameters()

    def our_loss(model, *inputs):
        out, model = fl.stateful(model, *inputs)
        return out.square().sum(), model.parameters()

    def their_loss(trained, *inputs):
        theirs.update(trained)
        return theirs(*inputs).square().sum()

    (value, after), gradients = fl.jit(fl.value_and_grad(our_loss, has_aux=True))(ours, *inputs)
    compiled = mx.compile(mx.value_and_grad(their_loss), inputs=[theirs.state], outputs=[theirs.state])
    their_value, their_gradients = compiled(parameters, *inputs)
    assert fl.tree.allclose(value, their_value, rtol=1e-6)
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    for path, gradient in tree_flatten(their_gradients):
        assert fl.tree.allclose(gradients.at(path).get(), gradient, **tolerance)
    for path in "running_mean", "running_var":
        if path in after:
            assert fl.tree.allclose(after[path], theirs[path], **tolerance)


@each_case
def test_public_attributes(case):
    ours, theirs = case.make(fl.nn), case.make(mlx.nn)
    for name, value in {**theirs, **vars(theirs)}.items():
        if not name.startswith("_") and not isinstance(value, mx.array | list | mlx.nn.Module):
            assert getattr(ours, name) == (as_group(value) if isinstance(value, mx.distributed.Group) else value)


@pytest.mark.parametrize("name", LAYERS)
def test_arguments(name):
    def positional(function):
        parameters = inspect.signature(function).parameters.values()
        return [(each.name, each.kind, shown(each.default)) for each in parameters if each.kind is not each.KEYWORD_ONLY]

    def shown(default):  # the default of an activation is named as MLX's function, and has no address
        return default.__name__ if callable(default) and default is not inspect.Parameter.empty else default

    ours, theirs = getattr(fl.nn, name), getattr(mlx.nn, name)
    assert positional(ours) == positional(theirs)
    methods = [method for method in dir(theirs) if not method.startswith("_") and not hasattr(mlx.nn.Module, method)]
    for method in "__call__", *methods:
        # Some of MLX's activations call their self "_".
        assert positional(getattr(ours, method))[1:] == positional(getattr(theirs, method))[1:]


def test_functions_are_those_of_mlx():
    own = {"make_cache"}
    functions = [name for name in fl.nn.__all__ if not isinstance(getattr(fl.nn, name), type) and name not in own]
    assert {"relu", "gelu_fast_approx", "losses", "init"} <= set(functions)
    assert all(getattr(fl.nn, name) is getattr(mlx.nn, name) for name in functions)
    transformations = {"value_and_grad", "quantize", "average_gradients", "fully_shard"}
    for name, value in vars(mlx.nn).items():
        if callable(value) and not isinstance(value, type | ModuleType) and name not in transformations:
            assert name in functions
