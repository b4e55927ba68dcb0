"""vmap: axes for parts of trees, ensembles, random numbers, and what is an error."""

import functools
from typing import Any

import attrs
import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.transforms.jit.captured import HIDDEN, RUNS_LATER
from frostleaf.transforms.vmap import RECORDED

DIFFERS = "out_axes has None for {path} of {fn}, which depends on the mapped arguments. Give it an axis."
NO_AXIS = "can't map {fn} over axis {axis} of {path}, which is {array}"
NO_OUT_AXIS = "can't put the mapped axis at {axis} in {path} of {fn}, which is {array} for each example"
NOT_AXES = "{name} must be an integer, None or {tree} of them, and {path} is {given}"
NOTHING_MAPPED = "{fn} has nothing to map over: no array in its positional arguments has an axis in in_axes={in_axes!r}"
ONE_TREE = "in_axes must be an integer, None or a tuple with an entry for each positional argument, and is {given}"
UNEQUAL_SIZES = (
    "can't map {fn} over axes of different lengths: {first} has {expected} ({array}) and {path} has {given} ({other})"
)
WRONG_COUNT = "in_axes has {entries} entries and {fn} was called with {count} positional arguments"
MISMATCH = "{what} does not have the structure of the tree it goes with. At {path}: {given} where there is {expected}."

X = mx.arange(24, dtype=mx.float32).reshape(2, 3, 4)
KEYS = mx.random.split(mx.random.key(0), 3)


def total(tree, x=None):
    return {"sum": tree["a"].sum() + tree["b"].sum(), "n": tree.get("n"), "a": tree["a"]}


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("out_axis", [0, 1, 2, -1, -2])
def test_one_array_is_mapped_as_by_mlx(axis, out_axis):
    def double(x):
        return x * 2

    ours = fl.vmap(double, axis, out_axis)(X)
    assert mx.array_equal(ours, mx.vmap(double, in_axes=axis, out_axes=out_axis)(X))
    assert mx.array_equal(ours, mx.stack([double(x) for x in mx.moveaxis(X, axis, 0)], out_axis))


@pytest.mark.parametrize(
    ("in_axes", "example"),
    [
        (0, lambda a, b, i: (a[i], b[i])),
        ((0,), lambda a, b, i: (a[i], b[i])),
        ([0], lambda a, b, i: (a[i], b[i])),
        (({"a": 1, "b": None, "n": None},), lambda a, b, i: (a[:, i], b)),
        (({"b": -1, "n": 7, "a": 0},), lambda a, b, i: (a[i], b[:, i])),
        (({"a": None, "b": 1, "n": "text"},), lambda a, b, i: (a, b[:, i])),
    ],
)
def test_axes_are_given_for_parts_of_an_argument(in_axes, example):
    a, b = mx.arange(4.0).reshape(2, 2), mx.arange(4.0, 8.0).reshape(2, 2)
    ours = fl.vmap(total, in_axes)({"a": a, "b": b, "n": 3})
    each = [example(a, b, index) for index in range(2)]
    assert fl.tree.equal(ours, fl.tree.stack([total({"a": a, "b": b, "n": 3}) for a, b in each]))


@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
def test_a_constructor_given_keys_makes_an_ensemble_that_can_be_taken_apart():
    def make(key):
        return fl.nn.Sequential(fl.nn.Linear(4, 3, key=key), fl.nn.relu, fl.nn.BatchNorm(3))

    ensemble = fl.vmap(make)(KEYS)
    members = [make(key) for key in KEYS]
    assert fl.tree.equal(ensemble, fl.tree.stack(members))
    assert fl.tree.equal(tuple(fl.tree.unstack(ensemble)), tuple(members))

    def run(model, x):
        return model(x)

    expected = mx.stack([member(X[0]) for member in members])
    assert mx.allclose(fl.vmap(run, (0, None))(ensemble, X[0]), expected, atol=1e-5)
    each = mx.stack([member(x) for member, x in zip(members[:2], X, strict=True)])
    pair = fl.tree.map(lambda leaf: leaf[:2], ensemble)
    assert mx.allclose(fl.vmap(run)(pair, X), each, atol=1e-5)
    shared = fl.vmap(run, (None, 0))(members[0], X)
    assert mx.allclose(shared, mx.stack([members[0](x) for x in X]), atol=1e-5)
    assert mx.allclose(fl.vmap(members[0])(X), shared)
    axes = fl.tree.map(lambda leaf: 0, ensemble)
    assert mx.allclose(fl.vmap(run, (axes, None))(ensemble, X[0]), expected, atol=1e-5)


def test_out_axes_are_given_for_parts_of_the_result():
    shared = mx.array([7.0])

    def several(x, shared):
        return {"x": (x, x.sum()), "shared": shared, "fresh": mx.zeros(2), "text": "text"}

    ours = fl.vmap(several, (0, None), {"x": (1, 0), "shared": None, "fresh": None, "text": None})(X, shared)
    assert ours["x"][0].shape == (3, 2, 4)
    assert ours["x"][1].tolist() == X.sum((1, 2)).tolist()
    assert ours["shared"] is shared
    assert (ours["fresh"].shape, ours["text"]) == ((2,), "text")
    spread = fl.vmap(several, (0, None))(X, shared)
    assert (spread["shared"].tolist(), spread["fresh"].shape) == ([[7.0], [7.0]], (2, 2))
    assert fl.vmap(lambda x: ("text", None))(X) == ("text", None)


def test_static_values_and_keyword_arguments_are_not_mapped():
    seen = []

    def function(x, number, *, other):
        seen.append((x.shape, number, other.shape))
        return x + other[0, 0, 0]

    assert mx.array_equal(fl.vmap(function)(X, 3, other=X + 1), X + 1)
    assert seen == [((3, 4), 3, (2, 3, 4))]


def test_an_axis_of_length_nothing_gives_a_result_of_length_nothing():
    assert fl.vmap(lambda x: x * 2)(mx.zeros((0, 3))).shape == (0, 3)


def test_random_numbers_are_the_same_for_every_index_unless_each_has_a_key():
    def draw(key):
        with fl.rng(key):
            return mx.random.normal((2,))

    assert mx.allclose(fl.vmap(draw)(KEYS), mx.stack([draw(key) for key in KEYS]))
    mx.random.seed(0)
    expected, then = mx.random.normal((4,)), mx.random.normal((2,))
    mx.random.seed(0)
    drawn = fl.vmap(lambda x: x * 0 + mx.random.normal((4,)))(X[0])
    assert fl.tree.equal(drawn, mx.stack([expected] * 3))
    assert fl.tree.equal(mx.random.normal((2,)), then)


def test_a_jitted_function_that_draws_leaves_the_random_state_whole():
    @fl.jit
    def noisy(x):
        return x + mx.random.uniform(shape=x.shape)

    mx.random.seed(0)
    expected, then = mx.random.uniform(shape=(4,)), mx.random.normal((2,))
    mx.random.seed(0)
    assert mx.allclose(fl.vmap(noisy)(mx.zeros((3, 4))), mx.stack([expected] * 3))
    assert fl.tree.equal(mx.random.normal((2,)), then)

    def fails(x):
        noisy(x)
        raise KeyError("mine")

    before = mx.random.state[0]
    with pytest.raises(KeyError, match="mine"):
        fl.vmap(fails)(mx.zeros((3, 4)))
    assert fl.tree.equal(mx.random.state[0], before)
    assert mx.random.normal((2,)).shape == (2,)


def function(x, y=None):
    return x


LINEAR = fl.nn.Linear(2, 2)
TREE = {"a": mx.zeros((2, 3)), "b": (mx.zeros(3), "text")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fl.vmap(function, (0, 0))(X), WRONG_COUNT.format(entries=2, fn="function", count=1)),
        (lambda: fl.vmap(function, 3)(X), NO_AXIS.format(fn="function", axis=3, path="argument 0", array="f32[2,3,4]")),
        (lambda: fl.vmap(function, -2)(TREE),
         NO_AXIS.format(fn="function", axis=-2, path="b.0 of argument 0", array="f32[3]")),
        (lambda: fl.vmap(LINEAR)(mx.array(1.0)),
         NO_AXIS.format(fn="Linear", axis=0, path="argument 0", array="f32[]")),
        (lambda: fl.vmap(function)(TREE),
         UNEQUAL_SIZES.format(fn="function", first="a of argument 0", expected=2, array="f32[2,3]",
                              path="b.0 of argument 0", given=3, other="f32[3]")),
        (lambda: fl.vmap(function, (None, 0))(X, 3), NOTHING_MAPPED.format(fn="function", in_axes=(None, 0))),
        (lambda: fl.vmap(function)(y=X), NOTHING_MAPPED.format(fn="function", in_axes=0)
         + ". Give y by position: what is given by name is not mapped"),
        (lambda: fl.vmap(function, ({"a": 0, "b": 1.5},))(TREE),
         MISMATCH.format(what="in_axes", path="0.b", given="1.5", expected="tuple of 2 (0, 1)")),
        (lambda: fl.vmap(function, ({"a": 0, "c": 1},))(TREE),
         MISMATCH.format(what="in_axes", path="0", given="dict of 2 (a, c)", expected="dict of 2 (a, b)")),
        (lambda: fl.vmap(function, ([0, 1],))(TREE),
         MISMATCH.format(what="in_axes", path="0", given="list of 2 (0, 1)", expected="dict of 2 (a, b)")),
        (lambda: fl.vmap(function, ({"a": "x", "b": 0},))(TREE),
         NOT_AXES.format(name="in_axes", tree="a tuple of them, or trees", path="a of argument 0", given="'x'")),
        (lambda: fl.vmap(function, (True,))(X),
         NOT_AXES.format(name="in_axes", tree="a tuple of them, or trees", path="argument 0", given="True")),
        (lambda: fl.vmap(function, 0, 1.5)(X),
         NOT_AXES.format(name="out_axes", tree="a tree", path="the result", given="1.5")),
        (lambda: fl.vmap(function, 0, 4)(X), NO_OUT_AXIS.format(axis=4, fn="function", path="the result", array="f32[3,4]")),
        (lambda: fl.vmap(lambda x: {"y": x + 1}, 0, {"y": None})(X), DIFFERS.format(path="y of the result", fn="<lambda>")),
        (lambda: fl.vmap(function, 0, None)(X), DIFFERS.format(path="the result", fn="function")),
        (lambda: fl.vmap(function, 0, [0])(TREE["a"][None]),
         NOT_AXES.format(name="out_axes", tree="a tree", path="the result", given="[0]")),
        (lambda: fl.vmap(lambda x: (x, x), 0, (0,))(X),
         MISMATCH.format(what="out_axes", path="the root", given="tuple of 1 (0)", expected="tuple of 2 (0, 1)")),
    ],
)  # fmt: skip
def test_axes_that_do_not_fit_are_an_error_that_says_where(call, message):
    before = mx.random.state[0]
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        call()
    assert str(raised.value) == message
    assert fl.tree.equal(mx.random.state[0], before)


def test_in_axes_of_another_form_are_refused_at_once():
    with pytest.raises(TypeError) as raised:
        fl.vmap(function, {"a": 0})
    assert str(raised.value) == ONE_TREE.format(given="{'a': 0}")


class Normed(fl.Module):
    norm: fl.nn.BatchNorm

    def __call__(self, x):
        self.norm(x[0])
        return fl.vmap(self.by_row)(x)

    def by_row(self, x):
        return self.norm(x)


def test_what_layers_record_belongs_to_each_index():
    norm = fl.nn.BatchNorm(4)
    _, after = fl.vmap(lambda norm, x: fl.stateful(norm, x), (None, 0))(norm, X)
    assert fl.tree.allclose(after, fl.tree.stack([fl.stateful(norm, x)[1] for x in X]), atol=1e-6)
    with pytest.raises(RuntimeError) as raised:
        fl.stateful(Normed(norm), X)
    assert str(raised.value) == RECORDED.format(cls="BatchNorm", fn="by_row")
    out, same = fl.stateful(Normed(norm).eval(), X)
    assert fl.tree.allclose(out, Normed(norm).eval()(X))
    assert same.norm.running_mean is norm.running_mean


# Jitted functions inside


def test_a_function_that_is_jitted_and_checkpointed_is_traced_with_its_checkpoint_wherever_it_ran_before():
    runs = []

    def block(x):
        runs.append("ran")
        return mx.sin(mx.sin(x)).sum()

    def make():
        runs.clear()
        return fl.jit(lambda x: fl.grad(fl.checkpoint(block))(x))

    x = X[0, 0]
    expected = make()(x)
    assert len(runs) == 2  # forward, and once more for the gradient
    for mapped in (lambda jitted: fl.vmap(lambda row: row * 0 + jitted(x)), fl.vmap):
        jitted = make()
        assert mx.allclose(mapped(jitted)(mx.stack([x, x]))[0], expected)
        assert len(runs) == 1
        assert fl.tree.allclose(jitted(x), expected)
        assert (len(runs), jitted.trace_count) == (3, 1)
        mapped(jitted)(mx.stack([x, x]))
        assert fl.tree.allclose(jitted(x), expected)
        assert (len(runs), jitted.trace_count) == (4, 1)


def test_a_jitted_function_of_what_is_not_mapped_draws_on():
    @fl.jit
    def noisy(x):
        return x + mx.random.uniform(shape=(2,))

    mx.random.seed(0)
    expected = [noisy(mx.zeros(2)) for _ in range(3)]
    mx.random.seed(0)
    first = noisy(mx.zeros(2))
    second = fl.vmap(lambda x: x + noisy(mx.zeros(2)))(mx.zeros((3, 2)))[0]
    assert fl.tree.allclose([first, second, noisy(mx.zeros(2))], expected)


# Results in which arrays can not be found


@attrs.frozen
class Record:
    array: Any
    other: Any = None


class Plain:
    def __init__(self, array):
        self.array = array


async def coroutine(x):
    return x


def generator(x):
    yield x


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (Plain, HIDDEN.format(fn="Plain", kind="a Plain", where="", transformation="fl.vmap")),
        (lambda x: {"a": (1, Record(3, [x + 1]))},
         HIDDEN.format(fn="<lambda>", kind="a Record", where=" (a.1 of the result)", transformation="fl.vmap")),
        (lambda x: [lambda y: x + y],
         HIDDEN.format(fn="<lambda>", kind="a function", where=" (0 of the result)", transformation="fl.vmap")),
        (lambda x: functools.partial(mx.add, x),
         HIDDEN.format(fn="<lambda>", kind="a partial", where="", transformation="fl.vmap")),
        (coroutine, RUNS_LATER.format(fn="coroutine", kind="a coroutine", where="", transformation="fl.vmap")),
        (generator, RUNS_LATER.format(fn="generator", kind="a generator", where="", transformation="fl.vmap")),
        (lambda x: (x, (x for _ in range(2))),
         RUNS_LATER.format(fn="<lambda>", kind="a generator", where=" (1 of the result)", transformation="fl.vmap")),
    ],
)  # fmt: skip
def test_a_result_that_hides_an_array_is_an_error_that_says_where(function, message):
    before = mx.random.state[0]
    with pytest.raises(TypeError) as raised:
        fl.vmap(function)(X)
    assert str(raised.value) == message
    assert fl.tree.equal(mx.random.state[0], before)


def test_an_object_that_holds_no_computed_array_is_returned_as_it_is():
    record = Record(mx.ones(2), mx.ones(2) + 1)
    values = [record, Plain(X), Plain, len, mx, lambda: record, functools.partial(len, X), {1, 2}, mx.float16, ...]
    out, given = fl.vmap(lambda x: (x, values))(X)
    assert out.shape == X.shape
    assert all(one is other for one, other in zip(given, values, strict=True))


@pytest.mark.parametrize("count", [999, 1000, 1001, 2049])
def test_trees_of_more_arrays_than_a_call_has_names(count):
    many = [mx.ones(2) for _ in range(count)]
    drawn = fl.vmap(lambda many: many[-1] + mx.random.uniform())(many)
    assert drawn[0].item() == drawn[1].item()
    fixed = fl.vmap(lambda many: (many[-1], mx.ones(3)), out_axes=(0, None))(many)
    assert (fixed[0].shape, fixed[1].shape) == ((2,), (3,))
    with pytest.raises(ValueError, match="depends on the mapped arguments"):
        fl.vmap(lambda many: many[-1], out_axes=None)(many)
