"""How all layers are born: in the dtype that is asked for, and from the key that is given."""

import inspect
import itertools
import threading

import mlx.core as mx
import pytest
from cases import CASES

import frostleaf as fl
from frostleaf.core.words import describe

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_dtype = pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=lambda dtype: str(dtype)[9:])


class With:
    """``frostleaf.nn``, with keyword arguments given to every layer that takes them."""

    def __init__(self, **options):
        self.options = options

    def __getattr__(self, name):
        value = getattr(fl.nn, name)
        if not isinstance(value, type):
            return value
        taken = {key: option for key, option in self.options.items() if key in inspect.signature(value).parameters}
        return Taking(value, taken)


class Taking:
    """A class that is given keyword arguments. Its other constructors, which make it of a layer that is there, take none."""

    def __init__(self, made, taken):
        self.made, self.taken = made, taken

    def __call__(self, *args, **kwargs):
        return self.made(*args, **kwargs, **self.taken)

    def __getattr__(self, name):
        return getattr(self.made, name)


def floats(tree):
    return {leaf.dtype for leaf in fl.tree.leaves(tree) if mx.issubdtype(leaf.dtype, mx.floating)}


def generator():
    return mx.random.state[0].tolist()


@each_dtype
@each_case
def test_every_array_is_born_in_the_dtype(case, dtype):
    assert floats(case.make(With(dtype=dtype))) <= {dtype}
    with fl.default_dtype(dtype):
        assert floats(case.make(fl.nn)) <= {dtype}
        assert floats(case.make(With(dtype=mx.float16))) <= {mx.float16}
    assert floats(case.make(fl.nn)) <= {mx.float32}


@each_case
def test_a_key_makes_construction_pure(case):
    key = mx.random.key(5)
    mx.random.seed(1)
    before = generator()
    first = case.make(With(key=key))
    assert generator() == before
    mx.random.seed(2)
    assert fl.tree.equal(first, case.make(With(key=key)))
    other = case.make(With(key=mx.random.key(6)))
    mx.random.seed(1)
    drawn = case.make(fl.nn)
    if generator() != before:  # this layer draws
        assert not fl.tree.equal(first, other)
    assert fl.tree.structure(drawn) == fl.tree.structure(first)


@each_case
def test_an_ensemble_is_what_its_keys_make_one_by_one(case):
    keys = mx.random.split(mx.random.key(5), 2)
    try:
        ensemble = fl.vmap(lambda key: case.make(With(key=key)))(keys)
    except ValueError as error:
        if "[Primitive::vmap] Not implemented for ToFP8" not in str(error):
            raise
        pytest.skip(str(error))
    assert fl.tree.equal(ensemble, fl.tree.stack([case.make(With(key=key)) for key in keys]))


@each_case
def test_parts_draw_different_numbers(case):
    layer = case.make(With(key=mx.random.key(5)))
    # The biases of quantized weights are multiples of the scales.
    leaves = fl.tree.leaves(fl.tree.filter(layer, lambda path, _: not path.endswith("biases")))
    drawn = [leaf.reshape(-1) for leaf in leaves if leaf.size > 3 and len(set(leaf.reshape(-1).tolist())) > 2]
    beginnings = [tuple((vector[1:4] / vector[0]).tolist()) for vector in drawn]
    assert len(set(beginnings)) == len(beginnings)


def test_a_half_precision_model_never_exists_in_float32():
    def built():
        return [fl.nn.Linear(256, 256, dtype=mx.bfloat16) for _ in range(24)]

    fl.eval(built(), at_once=0)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    layers = built()
    fl.eval(layers, at_once=0)
    assert mx.get_peak_memory() - before <= 1.1 * fl.tree.nbytes(layers) + fl.tree.nbytes(layers[0])


def test_the_default_dtype_holds_inside_and_in_its_own_thread():
    seen = []

    def build():
        seen.append(fl.nn.Linear(2, 2).weight.dtype)

    with fl.default_dtype(mx.float16):
        build()
        with fl.default_dtype(mx.bfloat16):
            build()
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
        build()
    build()
    assert seen == [mx.float16, mx.bfloat16, mx.float32, mx.float16, mx.float32]


def test_the_default_dtype_ends_with_an_exception():
    with pytest.raises(KeyError), fl.default_dtype(mx.float16):
        raise KeyError
    assert fl.nn.Linear(2, 2).weight.dtype == mx.float32


@pytest.mark.parametrize("dtype", [None, mx.int32, mx.complex64, "float16", float])
def test_a_default_dtype_that_does_not_suit(dtype):
    with pytest.raises(TypeError) as raised, fl.default_dtype(dtype):
        pass
    message = f"a layer can't be made in dtype {describe(dtype)}. Give a floating-point mx.Dtype, such as mx.bfloat16."
    assert str(raised.value) == message


def test_a_jitted_function_builds_in_the_default_dtype():
    make = fl.jit(lambda key: fl.nn.Linear(2, 2, key=key))
    key = mx.random.key(0)
    for dtype in mx.float32, mx.float16, mx.float16, mx.float32:
        with fl.default_dtype(dtype):
            assert make(key).weight.dtype == dtype
            assert fl.eval_shape(lambda key: fl.nn.Linear(2, 2, key=key), key).weight.dtype == dtype
    assert make.trace_count == 2
    assert "the default dtype: float32 -> float16" in make.explain()


def test_double_precision():
    with mx.stream(mx.cpu):
        layer = fl.nn.Linear(3, 4, dtype=mx.float64, key=mx.random.key(0))
        assert layer(mx.ones((2, 3), mx.float64)).dtype == mx.float64
        fl.eval(layer)


def waits(scope):
    with scope:
        yield 1


def dtype_and_plain():
    traced = []
    jitted = fl.jit(lambda x: traced.append(1) or x)
    jitted(mx.ones(1))
    jitted(mx.ones(1))
    return fl.nn.Linear(1, 1).weight.dtype, len(traced) == 2


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_blocks_that_generators_leave_in_any_order_leave_nothing_behind(order):
    with fl.default_dtype(mx.float64):
        scopes = fl.default_dtype(mx.float16), fl.disable_jit(), fl.default_dtype(mx.bfloat16)
        blocks = {at: waits(scope) for at, scope in enumerate(scopes)}
        for each in blocks.values():
            next(each)
        for at in order:
            blocks.pop(at).close()
            dtype = mx.bfloat16 if 2 in blocks else mx.float16 if 0 in blocks else mx.float64
            assert dtype_and_plain() == (dtype, 1 in blocks)
    assert fl.nn.Linear(1, 1).weight.dtype == mx.float32
