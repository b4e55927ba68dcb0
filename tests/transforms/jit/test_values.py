"""Jitted functions as values: copied, pickled, held by models and by other objects; and functions that can't be jitted."""

import copy
import functools
import pickle
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import pytest

import frostleaf as fl
from frostleaf.transforms.jit.jitted import RUNS_LATER, Jitted

X = mx.arange(3.0)


@fl.jit
def double(x):
    return x * 2


def plain(x):
    return x + 1


under_another_name = fl.jit(plain, max_traces=7)


class Net(fl.Module):
    layer: fl.nn.Linear
    activation: Callable = fl.static(default=double)

    @fl.jit
    def run(self, x):
        return self.activation(self.layer(x))

    def encode(self, x):
        return self.layer(x)

    def __call__(self, x):
        return self.run(x)


class Trainer:
    """An object with a jitted function of its own method, as a training script has it."""

    def __init__(self):
        self.scale = 2
        self.step = fl.jit(self.plain_step)

    def plain_step(self, x):
        return x * self.scale


# Copies


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
@pytest.mark.parametrize("jitted", [double, under_another_name, fl.jit(lambda x: x), fl.jit(mx.tanh), Net.run])
def test_a_jitted_function_is_its_own_copy_as_a_function_is(copied, jitted):
    assert copied(jitted) is jitted
    assert copied([jitted])[0] is jitted


def test_a_deep_copy_of_what_is_bound_is_bound_to_a_copy():
    net = Net(fl.nn.Linear(3, 3))
    for jitted in (fl.jit(net), fl.jit(net.encode, max_traces=3), fl.jit(functools.partial(plain, net.layer.bias))):
        assert copy.copy(jitted) is jitted
        again = copy.deepcopy(jitted)
        assert again is not jitted
        assert type(again.__wrapped__) is type(jitted.__wrapped__)
        assert (repr(again)[:8], again.trace_count) == (repr(jitted)[:8], 0)
    copied = copy.deepcopy(fl.jit(net))
    assert copied.__wrapped__.layer.weight is not net.layer.weight
    assert fl.tree.equal(copied(X), net(X))


@pytest.mark.filterwarnings("ignore::frostleaf.MutableArgumentWarning")
def test_a_deep_copy_of_an_object_has_a_jitted_method_of_the_copy():
    trainer = Trainer()
    again = copy.deepcopy(trainer)
    again.scale = 5
    assert (trainer.step(X).tolist(), again.step(X).tolist()) == ([0, 2, 4], [0, 5, 10])
    assert again.step.__wrapped__.__self__ is again


# Pickles


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("jitted", [double, Net.run, Net(fl.nn.Linear(3, 3)).run], ids=["function", "method", "bound method"])
def test_what_a_decorator_made_is_pickled_by_its_name(jitted, protocol):
    again = pickle.loads(pickle.dumps(jitted, protocol))
    if isinstance(jitted, Jitted):
        assert again is jitted
    else:
        assert again.__func__ is Net.run
        assert fl.tree.equal(again.__self__, jitted.__self__)


def test_a_jitted_function_without_a_name_is_jitted_again():
    net = Net(fl.nn.Linear(3, 3))
    given = [under_another_name, fl.jit(mx.tanh), fl.jit(nn.gelu), fl.jit(functools.partial(mx.softmax, axis=-1)), fl.jit(net),
             fl.jit(net.encode)]  # fmt: skip
    for jitted in given:
        expected = jitted(X)
        again = pickle.loads(pickle.dumps(jitted))
        assert again.trace_count == 0
        assert fl.tree.equal(again(X), expected)
        assert repr(again)[:8] == repr(jitted)[:8]
    again = pickle.loads(pickle.dumps(under_another_name))
    assert again.__wrapped__ is plain
    for size in range(1, 10):
        again(mx.zeros(size))
    assert len(again.options.programs) == 7


def test_shapeless_is_pickled():
    again = pickle.loads(pickle.dumps(fl.jit(plain, shapeless=True)))
    for size in (1, 2, 3):
        again(mx.zeros(size))
    assert again.trace_count == 1


def test_what_can_not_be_pickled_without_jit_can_not_be_with_it():
    @fl.jit
    def local(x):
        return x

    for jitted in (local, fl.jit(lambda x: x)):
        with pytest.raises((pickle.PicklingError, AttributeError)) as raised:
            pickle.dumps(jitted)
        with pytest.raises(type(raised.value)) as expected:
            pickle.dumps(jitted.__wrapped__)
        assert str(raised.value) == str(expected.value)


# Models that hold jitted functions


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("activation", [double, functools.partial(plain), nn.relu, functools.partial(nn.gelu)])
def test_a_model_that_holds_a_jitted_function_is_equal_to_its_copy_and_not_traced_again(again, activation):
    @fl.jit
    def forward(model, x):
        return model(x)

    model = Net(fl.nn.Linear(3, 3), activation)
    expected = forward(model, X)
    copied = again(model)
    assert fl.tree.equal(copied, model)
    assert fl.tree.structure(copied) == fl.tree.structure(model)
    assert hash(fl.tree.structure(copied)) == hash(fl.tree.structure(model))
    assert fl.tree.equal(forward(copied, X), expected)
    assert forward.trace_count == 1


# Functions whose body runs after the call


async def coroutine(x):
    return x


def generator(x):
    yield x


async def asynchronous_generator(x):
    yield x


class Odd(fl.Module):
    def __call__(self, x):
        yield x

    async def encode(self, x):
        return x


class Callee:
    async def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("given", "name", "kind"),
    [
        (coroutine, "coroutine", "a coroutine function"),
        (generator, "generator", "a generator function"),
        (asynchronous_generator, "asynchronous_generator", "an asynchronous generator function"),
        (lambda x: (yield x), "<lambda>", "a generator function"),
        (functools.partial(functools.partial(coroutine), X), "coroutine", "a coroutine function"),
        (Odd(), "__call__", "a generator function"),
        (Odd().encode, "encode", "a coroutine function"),
        (functools.partial(Odd().encode, X), "encode", "a coroutine function"),
        (Callee(), "Callee", "a coroutine function"),
        (Callee().__call__, "__call__", "a coroutine function"),
    ],
)
def test_a_function_whose_body_runs_later_is_refused_at_once(given, name, kind):
    for make in (fl.jit, fl.jit(max_traces=2)):
        with pytest.raises(TypeError) as raised:
            make(given)
        assert str(raised.value) == RUNS_LATER.format(fn=name, kind=kind)


def test_a_decorator_that_runs_a_generator_makes_a_function_that_can_be_jitted():
    @functools.wraps(generator)
    def collected(x):
        return list(generator(x))

    assert [each.tolist() for each in fl.jit(collected)(X)] == [[0, 1, 2]]
