"""The warning of jit about calls that are all traced anew."""

import dataclasses
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.transforms.jit.retraces import ADVICE, IN_THREADS, RETRACED

X = mx.arange(3.0)


@dataclasses.dataclass(frozen=True)
class Config:
    number: int


class Counted(fl.Module):
    weight: mx.array
    step: int = fl.static(default=0)


COUNTED = Counted(weight=X)


def first(given, x):
    return x


def retraced(calls, count=60, jitted=None):
    jitted = fl.jit(first) if jitted is None else jitted
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(count):
            jitted(calls(number), X)
    assert [each.category for each in caught] == [fl.RetraceWarning] * len(caught)
    return [str(each.message) for each in caught]


ANEW: dict[str, Any] = {
    "a length": (lambda n: mx.zeros((n, 4)), "shape", "given: shape f32[30,4] -> f32[31,4]"),
    "a cache": (lambda n: {"k": mx.zeros((n, 4)), "v": mx.zeros((n, 4))}, "shape", "given.k: shape f32[30,4] -> f32[31,4]"),
    "a static field": (lambda n: COUNTED.replace(step=n), "number", "given.step: static 30 -> 31"),
    "a lambda": (lambda n: lambda x: x * 2, "object", "given: static ANEW.<lambda> -> another <lambda>"),
    "a config": (Config, "static", "given: static Config(number=30) -> Config(number=31)"),
    "a set": (lambda n: frozenset([n]), "static", "given: static {30} -> {31}"),
    "a text": (str, "static", "given: static '30' -> '31'"),
    "a schedule": (
        lambda n: fl.optim.SGD(fl.optim.cosine_decay(0.1, 10)), "object",
        "given.arguments.learning_rate: static cosine_decay(...) -> another cosine_decay(...)",
    ),
    "a layer": (lambda n: fl.nn.Sequential(lambda x: x), "object", "given.layers.0: static <lambda> -> another <lambda>"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "sort", "change"), ANEW.values(), ids=ANEW)
def test_what_is_another_in_each_call_is_warned_of_once(make, sort, change):
    change = change.replace("ANEW.", "")
    assert retraced(make) == [RETRACED.format(fn="first", count=32, change=change, advice=ADVICE[sort])]


class Narrow(fl.Module):
    weight: mx.array


OFTEN_OTHERWISE: dict[str, Any] = {
    "a few numbers": lambda n: n % 7,
    "twenty numbers": lambda n: n % 20,
    "numbers that come twice at a time": lambda n: n // 2,
    "a few lengths": lambda n: mx.zeros((n % 12, 4)),
    "a length that comes twice at a time": lambda n: mx.zeros((n // 2, 4)),
    "many lengths, each after one that was there": lambda n: mx.zeros((n if n % 2 else 1, 4)),
    "a number that follows a length": lambda n: (mx.zeros(n), n),
    "many models": lambda n: [Counted, Narrow][n % 2](weight=mx.zeros(n)),
    "training and not": lambda n: COUNTED.replace(weight=mx.zeros(n)).train(n % 2 == 0),
    "one more each time": lambda n: [X] * n,
}


@pytest.mark.parametrize("make", OFTEN_OTHERWISE.values(), ids=OFTEN_OTHERWISE)
def test_other_calls_are_not_warned_of(make):
    assert retraced(make) == []


@pytest.mark.parametrize("make", [lambda n: mx.zeros((n, 4)), str, Config])
def test_fewer_calls_than_many_are_not_warned_of(make):
    jitted = fl.jit(first)
    assert retraced(make, 31, jitted) == []
    jitted.clear()
    assert retraced(make, 31, jitted) == []
    assert len(retraced(lambda n: make(n + 31), 2, jitted)) == 1


def test_what_is_meant_to_be_is_not_warned_of():
    for make in (lambda n: n, lambda n: mx.zeros((n, 4)), str, lambda n: COUNTED.replace(step=n)):
        assert retraced(make, jitted=fl.jit(first, max_traces=None)) == []


def test_numbers_that_are_new_in_each_call_are_warned_of_between_other_calls():
    assert len(retraced(lambda n: 0 if n % 2 else n, 80)) == 1


def test_a_list_of_numbers_is_warned_of_once():
    assert len(retraced(lambda n: [n, n + 1, {"a": -n}], 80)) == 1


@pytest.mark.parametrize("step", [lambda x: LINEAR(x), lambda x: mx.addmm(X, x, x.T @ x)])
def test_shapeless_is_advised_unless_it_did_not_help(step):
    def warned(shapeless):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jitted = fl.jit(step, shapeless=shapeless)
            for number in range(60):
                jitted(mx.zeros((number + 2, 3)))
        return jitted, [str(each.message) for each in caught if each.category is fl.RetraceWarning]

    [message] = warned(shapeless=False)[1]
    assert ADVICE["shape"] in message
    jitted, messages = warned(shapeless=True)
    assert (jitted.trace_count, messages) == (1, []) or (jitted.trace_count >= 60 and "although shapeless=True" in messages[0])
    assert len(messages) < 2


LINEAR = fl.nn.Linear(3, 2, key=mx.random.key(0))
fl.eval(LINEAR)


def test_a_sweep_over_learning_rates_is_told_of_one_optimizer():
    def step(opt, x):
        model = fl.nn.Linear(4, 2, key=mx.random.key(0))
        return opt.update(model, fl.tree.map(mx.ones_like, model), opt.init(model))

    made = [retraced(lambda n, opt=opt: opt(0.1 + n), 40, fl.jit(step)) for opt in (fl.optim.SGD, fl.optim.Adam)]
    for [message] in made:
        assert ADVICE["learning rate"] in message
        assert "What differs each time: opt.arguments.learning_rate: static" in message


def test_the_warning_about_a_number_is_the_only_one():
    jitted = fl.jit(lambda given, x: x)
    assert len(retraced(lambda n: {"step": n}, jitted=jitted)) == 1
    assert retraced(str, jitted=jitted) == []


def test_traces_that_are_dropped_to_make_room_are_not_warned_of():
    assert retraced(lambda n: mx.zeros((n % 12, 4)), jitted=fl.jit(first, max_traces=2)) == []


def test_a_trace_that_calls_it_for_many_layers_is_not_warned_of():
    inner = fl.jit(first)
    outer = fl.jit(lambda x: [inner(mx.zeros((n, 4)), x) for n in range(40)])
    assert retraced(lambda n: X, 1, lambda _, x: outer(x)) == []
    assert inner.trace_count == 40


def test_without_shapes_lengths_are_not_warned_of():
    assert retraced(lambda n: mx.zeros((n, 4)), jitted=fl.jit(first, shapeless=True)) == []


# Threads


def in_threads(calls, count=40):
    """Return the messages of the warnings when a function is called in one new thread after the other."""
    jitted = fl.jit(first)

    def work():
        for _ in range(calls):
            jitted(3, X)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(count):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert jitted.trace_count == count
    return [str(each.message) for each in caught]


def test_a_new_thread_for_each_call_is_warned_of_once():
    assert in_threads(1) == [IN_THREADS.format(fn="first", count=16)]
    assert in_threads(1, 15) == []


def test_a_new_thread_for_many_calls_is_not_warned_of():
    assert in_threads(2) == []


def test_threads_that_stay_are_not_warned_of():
    jitted, all_there = fl.jit(first), threading.Barrier(20)
    with warnings.catch_warnings(), ThreadPoolExecutor(20) as pool:
        warnings.simplefilter("error")
        list(pool.map(lambda _: (all_there.wait(), jitted(3, X)), range(20)))
    assert jitted.trace_count == 20
