"""jit's explain(): what it says about the last retrace."""

import gc
import threading
import weakref
from collections import OrderedDict, deque
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.transforms.jit import explanation
from frostleaf.transforms.jit.explanation import ALIKE


class Layer(fl.Module):
    weight: mx.array
    bias: Any = None
    power: Any = fl.static(default=1)

    def __call__(self, x):
        return x[:1]


class Other(fl.Module):
    weight: mx.array


NAMESAKE: Any = type("Layer", (Other,), {})


class Batch(NamedTuple):
    images: mx.array
    labels: mx.array


class Unordered:
    """A static value that does not show what it holds."""

    def __init__(self, number):
        self.number = number

    def __eq__(self, other):
        return isinstance(other, Unordered) and self.number == other.number

    def __hash__(self):
        return hash(self.number)

    def __repr__(self):
        return "Unordered()"


def step(batch, flag=None, *rest, rate=None, **more):
    return None


def array(*shape, dtype=mx.float32):
    return mx.zeros(shape, dtype)


def explained(calls, fn=step, **options):
    """Return what is said after calls, each given by its arguments by position and by name."""
    jitted = fl.jit(fn, **options)
    for args, kwargs in calls:
        jitted(*args, **kwargs)
    return jitted.explain()


DIFFERENCES = {
    "a shape": (array(64, 3), array(31, 3), "batch: shape f32[64,3] -> f32[31,3]"),
    "a rank": (array(2), array(), "batch: shape f32[2] -> f32[]"),
    "a dtype": (array(2), array(2, dtype=mx.bfloat16), "batch: dtype f32[2] -> bf16[2]"),
    "a dtype and a shape": (array(2), array(3, dtype=mx.int8), "batch: dtype f32[2] -> i8[3]"),
    "a shape in a tuple": (
        Batch(array(2, 3), array(2)), Batch(array(2, 4), array(2)), "batch.images: shape f32[2,3] -> f32[2,4]",
    ),
    "a shape in a module": (Layer(array(2)), Layer(array(3)), "batch.weight: shape f32[2] -> f32[3]"),
    "a shape deep inside": (
        [{"a": Layer(array(2), [array(1), array(2)])}], [{"a": Layer(array(2), [array(1), array(3)])}],
        "batch.0.a.bias.1: shape f32[2] -> f32[3]",
    ),
    "a static value": (1, 2, "batch: static 1 -> 2"),
    "static values that are equal": (True, 1, "batch: static True -> 1"),
    "a string": ({"mode": "train"}, {"mode": "eval"}, "batch.mode: static 'train' -> 'eval'"),
    "a function": (len, repr, "batch: static len -> repr"),
    "functions of one name": (lambda: 1, lambda: 2, "batch: static <lambda> -> another <lambda>"),
    "values that look alike": (Unordered(1), Unordered(2), "batch: static Unordered() -> another Unordered()"),
    "a static field": (Layer(array(2)), Layer(array(2), power=2), "batch.power: static 1 -> 2"),
    "a static tuple's field": (
        Layer(array(2), power=Batch(1, 2)), Layer(array(2), power=Batch(1, 3)), "batch.power.labels: static 2 -> 3",
    ),
    "values that show their address": (object(), object(), "batch: static object(...) -> another object(...)"),
    "an array and a number": (array(2), 1.0, "batch: type f32[2] -> 1.0"),
    "None and an array": (Layer(array(2)), Layer(array(2), array(1)), "batch.bias: type None -> f32[1]"),
    "an array and a module": (array(2), Layer(array(2)), "batch: type f32[2] -> Layer(...)"),
    "a number and a large tree": (0, [array(10**6, 10**6)], "batch: type 0 -> [f32[1000000,1000000]]"),
    "a list and a tuple": ([array(2)], (array(2),), "batch: class list -> tuple"),
    "a class": (Layer(array(2)), Other(array(2)), "batch: class Layer -> Other"),
    "a class of the same name": (Layer(array(2)), NAMESAKE(array(2)), "batch: class Layer -> another Layer"),
    "the mode": (Layer(array(2)), Layer(array(2)).eval(), "batch: mode 'train' -> 'eval'"),
    "the mode inside": ([Layer(array(2)).eval()], [Layer(array(2))], "batch.0: mode 'eval' -> 'train'"),
    "frozen fields": (Layer(array(2)), Layer(array(2)).freeze(keys="weight"), "batch: frozen {} -> {weight}"),
    "a key more": ({"a": array(2)}, {"a": array(2), "b": array(1)}, "batch.b: added nothing -> f32[1]"),
    "a key less": ({"a": array(2), "b": 1}, {"a": array(2)}, "batch.b: removed 1 -> nothing"),
    "more in a list": ([array(2)], [array(2), 1], "batch.1: added nothing -> 1"),
    "a large tree more": ([1], [1, {"x": (array(10**6, 10**6),)}], "batch.1: added nothing -> {'x': (f32[1000000,1000000],)}"),
    "the order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "batch: order 'a, b' -> 'b, a'"),
    "what only the class knows": (deque([1], 2), deque([1], 3), "batch: built otherwise"),
    "a class of dict": ({"a": 1}, OrderedDict(a=1), "batch: class dict -> OrderedDict"),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after", "difference"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_the_sentence_names_what_is_different(before, after, difference):
    calls = [((each,), {}) for each in (before, after)]
    assert explained(calls) == f"step was traced again (trace 2) for {difference}."
    assert explained([*calls, *calls]) == explained(calls)
    for name in ("batch", "rate", "other"):
        by_name = explained([((), {"batch": 0, name: each}) for each in (before, after)])
        assert by_name == explained(calls).replace("batch", name)


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        (((1,), {}), ((1, True), {}), "flag: added nothing -> True"),
        (((1, True), {}), ((1,), {}), "flag: removed True -> nothing"),
        (((1,), {}), ((1,), {"rate": 2}), "rate: added nothing -> 2"),
        (((1, 2), {}), ((1,), {"flag": 2}), "flag: given by name, where it was given by position"),
        (((1,), {"flag": 2}), ((1, 2), {}), "flag: given by position, where it was given by name"),
        (((1, 2, 3), {}), ((1, 2, 4), {}), "argument 2: static 3 -> 4"),
        (((), {"batch": 1, "a": 2}), ((), {"a": 2, "batch": 1}), "the arguments: order 'batch, a' -> 'a, batch'"),
    ],
)
def test_the_sentence_says_how_the_arguments_were_given(before, after, difference):
    assert explained([before, after]) == f"step was traced again (trace 2) for {difference}."


@pytest.mark.parametrize(
    ("more", "said"), [(0, ""), (1, " (and 1 more difference)"), (2, " (and 2 more differences)")], ids=range(3)
)
def test_further_differences_are_counted(more, said):
    before, after = ({"x": array(n), "y": [n if more > 0 else 0], "z": n if more > 1 else 0} for n in (1, 2))
    assert explained([((before,), {}), ((after,), {})]) == (
        f"step was traced again (trace 2) for batch.x: shape f32[1] -> f32[2]{said}."
    )


def test_without_a_retrace_there_is_nothing_to_explain():
    jitted = fl.jit(step)
    assert jitted.explain() == "step has not been traced yet."
    for _ in range(2):
        jitted(1)
        assert jitted.explain() == "step was traced once."


def test_what_is_compared_is_the_most_similar_of_the_earlier_calls():
    sizes = [(64, 8), (32, 16), (64, 9)]
    calls = [((array(size), array(other), True), {}) for size, other in sizes]
    assert explained(calls) == "step was traced again (trace 3) for flag: shape f32[8] -> f32[9]."
    like_the_latest = [((array(size),), {}) for size in (3, 1, 2)]
    assert explained(like_the_latest).endswith(": shape f32[1] -> f32[2].")


def test_a_trace_that_came_back_after_it_was_dropped():
    calls = [((number,), {}) for number in (1, 2, 3, 1)]
    assert explained(calls, max_traces=2) == (
        "step was traced again (trace 4) because its trace for these arguments had been dropped to make room: max_traces=2."
    )
    assert "batch: static 1 -> 4" in explained([*calls, ((4,), {})], max_traces=2)


def test_traces_that_were_dropped_are_forgotten_in_the_end():
    numbers = [Unordered(number) for number in range(10)]
    watched = [weakref.ref(number) for number in numbers]
    jitted = fl.jit(step, max_traces=2)
    for number in numbers:
        jitted(number)
    del numbers, number
    gc.collect()
    assert sum(each() is not None for each in watched) <= 4


def test_after_clear():
    jitted = fl.jit(step)
    jitted(1)
    jitted.clear()
    assert jitted.explain() == "step has no trace: clear() dropped those that it had."
    jitted(1)
    assert jitted.explain() == "step was traced again (trace 2) because clear() had dropped the traces before."
    jitted(2)
    assert jitted.explain() == "step was traced again (trace 3) for batch: static 1 -> 2."


def test_a_trace_in_another_thread():
    jitted = fl.jit(step)
    jitted(array(2))
    thread = threading.Thread(target=jitted, args=(array(2),))
    thread.start()
    thread.join()
    assert jitted.explain() == f"step was traced again (trace 2) {ALIKE}."


def test_a_trace_inside_another_transformation():
    jitted = fl.jit(lambda x: x.sum())
    for _ in range(2):
        fl.grad(jitted)(array(2))
    assert jitted.explain() == f"<lambda> was traced again (trace 2) {ALIKE}."


def test_shapeless_traces_differ_in_dtypes_and_numbers_of_dimensions():
    calls = [((array(*shape, dtype=dtype),), {}) for shape, dtype in [((2,), mx.float32), ((3,), mx.float32)]]
    double = lambda x: x + x  # noqa: E731
    assert explained(calls, double, shapeless=True) == "<lambda> was traced once."
    calls.append(((array(5, dtype=mx.int32),), {}))
    assert explained(calls, double, shapeless=True).endswith("x: dtype f32[*] -> i32[*].")
    calls.append(((array(5, 5, dtype=mx.int32),), {}))
    assert explained(calls, double, shapeless=True).endswith("x: shape i32[*] -> i32[*,*].")
    calls.append((([array(5)],), {}))
    assert explained(calls, double, shapeless=True).endswith("x: type f32[*] -> [f32[*]].")


def test_a_method_is_explained_in_terms_of_self():
    model = Layer(array(2))
    of_method = fl.jit(Layer.__call__)
    of_method(model, array(2))
    of_method(model.astype(mx.float16), array(2))
    assert of_method.explain() == "__call__ was traced again (trace 2) for self.weight: dtype f32[2] -> f16[2]."


def test_a_failing_trace_does_not_count():
    def picky(x):
        assert x.size != 2
        return x[:1]

    jitted = fl.jit(picky)
    jitted(array(1))
    with pytest.raises(AssertionError):
        jitted(array(2))
    assert jitted.explain() == "picky was traced once."


def test_no_array_is_kept_or_evaluated():
    jitted = fl.jit(step)
    small, large = array(2), array(10**6, 10**6)  # more than there is memory for
    watched = [weakref.ref(small), weakref.ref(large)]
    jitted({"x": small, "y": 1})
    jitted({"x": large, "y": large})
    del small, large
    gc.collect()
    assert [each() for each in watched] == [None, None]
    assert "batch.x: shape f32[2] -> f32[1000000,1000000]" in jitted.explain()


def test_what_is_remembered_of_a_structure_is_worked_out_once(monkeypatch):
    described = []
    describe = explanation.describe
    monkeypatch.setattr(explanation, "describe", lambda value: described.append(value) or describe(value))
    layer = Layer(mx.ones(2), [Layer(mx.ones(2), power=3), Layer(mx.ones(3), power=3)], power=3)
    for number in range(3):
        fl.jit(lambda layer, batch: layer(batch[0]))(fl.tree.map(lambda leaf: leaf + 1, layer), [mx.ones(number + 1)])
    assert described == [3]
