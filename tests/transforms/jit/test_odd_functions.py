"""Functions, arguments and results of kinds that the transformations meet seldom."""

import copy
import functools
import subprocess
import sys
import threading
import warnings
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.transforms.jit.arguments import MUTABLE
from frostleaf.transforms.jit.captured import CAPTURED, warn_of_captured

X = mx.arange(3.0)


# checkpoint of a function that computes nothing with a gradient, for which mx.checkpoint would end the process


@pytest.mark.parametrize(
    "function",
    [
        lambda x: None,
        lambda x: "text",
        lambda x: x,
        lambda x: {"a": (x, x), "b": 3},
        lambda x: x.astype(mx.int32) + 1,
        lambda x: (x, x > 1, mx.arange(3)),
    ],
)
def test_checkpoint_of_a_function_that_computes_nothing_differentiable(function):
    expected = function(X)
    for transformed in (fl.checkpoint, lambda f: fl.checkpoint(fl.checkpoint(f)), lambda f: fl.jit(fl.checkpoint(f))):
        assert fl.tree.equal(transformed(function)(X), expected)
    stacked = fl.tree.map(lambda leaf: mx.stack([leaf, leaf]), expected)
    assert fl.tree.equal(fl.vmap(fl.checkpoint(function))(mx.stack([X, X])), stacked)

    def total(x, function):
        # By operations that MLX does not fuse: each new fused kernel takes its compiler half a second.
        computed = [leaf.reshape(-1).astype(mx.float32) for leaf in fl.tree.leaves(function(x))]
        return mx.concatenate([x, x, *computed]).sum()

    for transformed in (fl.grad, lambda f: fl.jit(fl.grad(f))):
        assert fl.tree.equal(transformed(total)(X, fl.checkpoint(function)), fl.grad(total)(X, function))


def test_checkpoint_of_a_function_of_nothing():
    assert fl.checkpoint(lambda: 1)() == 1
    assert fl.checkpoint(lambda: mx.array(1.0) + 1)().item() == 2
    assert fl.checkpoint(lambda x: x + 1)(mx.array(1)).item() == 2


# What every transformation takes


class Pair(NamedTuple):
    array: Any
    other: Any


def with_every_kind(first, /, second, *rest, third=2, **named):
    return first * third + second + sum(rest) + sum(named.values())


JITTED = fl.jit(with_every_kind)


@pytest.mark.parametrize(
    "function", [JITTED, fl.checkpoint(with_every_kind), fl.checkpoint(JITTED), fl.jit(fl.checkpoint(JITTED))]
)
def test_arguments_of_every_kind(function):
    for args, kwargs in [((X, X), {}), ((X,), {"second": X}), ((X, 1, X, X), {"third": 3}), ((X, X), {"a": X, "self": X})]:
        assert mx.allclose(function(*args, **kwargs), with_every_kind(*args, **kwargs))
    with pytest.raises(TypeError, match="missing 1 required"):
        function(X)


@pytest.mark.parametrize("value", [None, (), {}, [None], mx.zeros((0, 3)), Pair(X, None), (X, X, [X]), 0, "", mx.array(1)])
def test_a_jitted_function_takes_and_returns_what_is_empty_odd_or_twice_the_same(value):
    identity = fl.jit(lambda x: x)
    changed = fl.jit(lambda x: fl.tree.map(lambda leaf: leaf + 1, x))
    for _ in range(2):
        assert fl.tree.equal(identity(value), value)
        assert fl.tree.equal(changed(value), fl.tree.map(lambda leaf: leaf + 1, value))
    for one, other in zip(fl.tree.leaves(identity(value)), fl.tree.leaves(value), strict=True):
        assert one is other


class Plain:
    def __init__(self, scale):
        self.scale = scale

    @fl.jit
    def method(self, x):
        return x * self.scale

    @classmethod
    @fl.jit
    def of_class(cls, x):
        return x, cls.__name__

    @staticmethod
    @fl.jit
    def of_nobody(x):
        return x + 1


class Derived(Plain):
    pass


@pytest.mark.filterwarnings("ignore::frostleaf.MutableArgumentWarning")
def test_methods_of_an_ordinary_class():
    two, three = Plain(2), Plain(3)
    assert two.method(X).tolist() == Plain.method(two, X).tolist() == [0, 2, 4]
    assert three.method(X).tolist() == fl.jit(three.method)(X).tolist() == [0, 3, 6]
    assert (Plain.of_class(X)[1], Derived.of_class(X)[1], Derived(1).of_class(X)[1]) == ("Plain", "Derived", "Derived")
    assert Plain.of_nobody(X).tolist() == two.of_nobody(X).tolist() == [1, 2, 3]


def test_a_jitted_function_is_an_argument_and_a_result_of_another():
    inner = fl.jit(lambda x: x * 2)
    twice = fl.jit(lambda function, x: (function, function(function(x))))
    for _ in range(2):
        function, out = twice(inner, X)
        assert function.__wrapped__ is inner.__wrapped__
        assert function.options is inner.options  # which has the traces
        assert out.tolist() == [0, 4, 8]
    assert twice.trace_count == 1


def test_recursion():
    count = fl.jit(lambda x, n: x if n == 0 else count(x + 1, n - 1))
    assert count(X, 5).tolist() == [5, 6, 7]
    endless = fl.jit(lambda x: endless(x))
    before = mx.random.state[0]
    with pytest.raises(RecursionError):
        endless(X)
    assert fl.tree.equal(mx.random.state[0], before)
    assert count(X, 5).tolist() == [5, 6, 7]


class Chain(fl.Module):
    inner: Any
    weight: mx.array

    def __call__(self, x):
        return x * self.weight if self.inner is None else self.inner(x)


def test_a_tree_too_deep_for_python_is_pythons_error_and_leaves_everything_whole():
    deep: Any = X
    chain = None
    for _ in range(2000):
        deep, chain = [deep], Chain(chain, mx.array(2.0))
    call = fl.jit(lambda model, x: x)
    for attempt in (
        lambda: call(deep, X), lambda: call(chain, X), lambda: fl.vmap(len)(deep), lambda: fl.checkpoint(len)(chain),
        lambda: fl.eval_shape(len, deep), lambda: copy.deepcopy(chain), lambda: fl.tree.structure(chain),
    ):  # fmt: skip
        with pytest.raises(RecursionError):
            attempt()
    assert call(X, X) is X
    assert mx.allclose(fl.jit(lambda model, x: model(x))(Chain(Chain(None, mx.array(2.0)), X), X), X * 2)


def test_many_arrays_at_once():
    many = tuple(mx.array(float(number)) for number in range(5000))
    out = fl.jit(lambda arrays: (arrays, [each + 1 for each in arrays[:50]]))(many)
    assert all(one is other for one, other in zip(out[0], many, strict=True))
    assert [each.item() for each in out[1]] == list(range(1, 51))


def test_threads_that_trace_fail_and_clear_at_once():
    @fl.jit
    def step(model, x, number):
        if number == 3:
            raise KeyError
        out = model(x) + mx.random.normal((1,)) * 0
        return model.astype(mx.float16) if number == 2 else model, out * number

    wrong = []

    def work(seed):
        for number in range(40):
            model, x, by = fl.nn.Linear(3, 3), mx.ones((1 + (number + seed) % 3, 3)), 1 + number % 4
            try:
                after, out = step(model, x, by)
            except KeyError:
                wrong.extend([number] * (by != 3))
                continue
            if not mx.allclose(out, model(x) * by, atol=1e-4) or (by == 2) == (after.weight is model.weight):
                wrong.append(number)
            if (number + seed) % 17 == 0:
                step.clear()
            mx.random.normal((1,)).item()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Arrays behind the attributes of ordinary objects


class Trainer:
    """As a training script has it: an object with a model and functions that are jitted."""

    def __init__(self, jit=fl.jit):
        self.model = fl.nn.Linear(3, 3)
        self.losses = [X]
        self.rate = 0.1
        self.helper = Helper()
        self.jitted = jit(self.reads_it)

    def reads_it(self, x):
        return self.model(x) * self.rate

    def takes_it(self, model, x):
        return model(x) * self.rate

    def reads_it_in_a_method(self, x):
        return self.reads_it(x)

    def reads_it_in_a_lambda(self, x):
        return (lambda: self.losses[0] + x)()

    def reads_an_object(self, x):
        return self.helper.run(x)

    def __call__(self, x):
        return x + self.losses[0]


class Helper:
    def __init__(self):
        self.weight = X

    def run(self, x):
        return x


TRAINER = Trainer(jit=lambda fn: fn)


def reads_a_global(x):
    return TRAINER.model(x) + mx.inf


def calls_a_global(x):
    return TRAINER.takes_it(fl.nn.Linear(3, 3), x)


def messages(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert [each.category for each in caught] == [fl.CapturedArrayWarning] * len(caught)
    return [str(each.message) for each in caught]


def warned(fn, variables):
    return [CAPTURED.format(fn=fn, variables=variables)]


@pytest.mark.parametrize(
    ("function", "name", "variables"),
    [
        (TRAINER.reads_it, "reads_it", "self.model (a Linear with 2 arrays)"),
        (TRAINER.reads_it_in_a_method, "reads_it_in_a_method", "self.model (a Linear with 2 arrays)"),
        (TRAINER.reads_it_in_a_lambda, "reads_it_in_a_lambda", "self.losses (a list with 1 array)"),
        (TRAINER, "Trainer", "self.losses (a list with 1 array)"),
        (functools.partial(TRAINER.reads_it), "reads_it", "self.model (a Linear with 2 arrays)"),
        (reads_a_global, "reads_a_global", "TRAINER.model (a Linear with 2 arrays)"),
    ],
)
def test_an_attribute_that_a_jitted_function_reads_is_warned_of(function, name, variables):
    assert messages(lambda: fl.jit(function)(X)) == warned(name, variables)


@pytest.mark.parametrize("function", [TRAINER.reads_an_object, calls_a_global])
def test_an_attribute_that_it_does_not_read_is_not_warned_of(function):
    assert messages(lambda: fl.jit(function)(X)) == []


def test_of_an_object_with_arrays_that_it_does_not_read_only_the_number_that_it_reads_is_warned_of():
    with pytest.warns(fl.MutableArgumentWarning) as caught:
        fl.jit(functools.partial(TRAINER.takes_it, TRAINER.model))(X)
    said = {"name": "self", "fn": "takes_it", "kind": "a Trainer", "attributes": "rate"}
    assert [str(each.message) for each in caught] == [MUTABLE.format(**said)]


def test_what_is_static_in_the_arguments_may_be_looked_into_as_well():
    static = [("self", TRAINER), ("batch.0", Helper()), ("len", len), ("number", 3)]
    assert messages(lambda: warn_of_captured(Trainer.reads_it, static)) == warned(
        "reads_it", "self.model (a Linear with 2 arrays)"
    )
    assert messages(lambda: warn_of_captured(Trainer.takes_it, static)) == []
    found = messages(lambda: warn_of_captured(lambda helper, x: helper.weight + x, [("helper", Helper())]))
    assert found == warned("<lambda>", "helper.weight (f32[3])")


class Evasive:
    @property
    def __dict__(self):
        raise RuntimeError


def test_an_object_that_can_not_be_looked_into_is_not_warned_of():
    evasive, slotted = Evasive(), type("Slotted", (), {"__slots__": ("model",)})()
    assert messages(lambda: fl.jit(lambda x: (x, evasive.model if x.size > 5 else slotted.model if x.size > 4 else 0))(X)) == []


def test_a_trace_that_holds_the_last_reference_to_another_can_be_dropped():
    # MLX itself ends the process here, so it is another process that may end.
    program = """
import gc, mlx.core as mx, frostleaf as fl
from concurrent.futures import ThreadPoolExecutor
x = mx.array([1.0])
with ThreadPoolExecutor(1) as pool:
    outer = fl.jit(lambda x: mx.checkpoint(fl.jit(lambda y: y * 2))(x))
    for _ in range(2):
        outer(x)
        pool.submit(outer, x).result()
    del outer
    # Another trace, with which each thread forgets.
    fl.jit(lambda x: x + x)(x)
    pool.submit(fl.jit(lambda x: x + x), x).result()
for make in (
    lambda: fl.jit(fl.checkpoint(fl.jit(lambda y: y * 2))),
    lambda: fl.jit(fl.checkpoint(fl.jit(fl.checkpoint(fl.jit(lambda y: y * 2))))),
):
    outer = make()
    mx.eval(outer(mx.ones(2)))
    del outer
    gc.collect()
held = fl.jit(fl.checkpoint(fl.jit(lambda y: y * 3)))
print(held(mx.ones(2)).tolist())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "[3.0, 3.0]\n"), run.stderr


class Pair:
    def __init__(self, first, second):
        self.first, self.second = first, second


def test_a_result_that_hides_arrays_is_an_error():
    with pytest.raises(TypeError, match=r"returned a Pair .*holds a computed array, which fl\.jit can't find there"):
        fl.jit(lambda x: {"a": [Pair(x + 1, 2)]})(mx.ones(2))
    assert fl.jit(lambda x: (x + 1, Pair))(mx.ones(2))[1] is Pair
