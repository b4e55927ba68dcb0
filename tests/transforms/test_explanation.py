"""jit's explain(): what it says about the last retrace."""

import gc
import threading
import weakref
from collections import OrderedDict, deque
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.transforms.explanation import AFTER_CLEAR, AGAIN, ALIKE, CLEARED, DROPPED, NEVER, ONCE

ORDER = "the order of the arguments is {} where it was {}"


class Layer(fl.Module):
    weight: mx.array
    bias: Any = None
    power: Any = fl.static(default=1)

    def __call__(self, x):
        return x[:1]


class Other(fl.Module):
    weight: mx.array


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
    "a shape": (array(64, 3), array(31, 3), "batch has shape (31, 3) where it had (64, 3)"),
    "a rank": (array(2), array(), "batch has shape () where it had (2,)"),
    "a dtype": (array(2), array(2, dtype=mx.bfloat16), "batch has dtype bfloat16 where it had float32"),
    "a dtype and a shape": (
        array(2), array(3, dtype=mx.int8), "batch has dtype int8 and shape (3,) where it had float32 and (2,)",
    ),
    "a shape in a tuple": (
        Batch(array(2, 3), array(2)), Batch(array(2, 4), array(2)), "batch.images has shape (2, 4) where it had (2, 3)",
    ),
    "a shape in a module": (Layer(array(2)), Layer(array(3)), "batch.weight has shape (3,) where it had (2,)"),
    "a shape deep inside": (
        [{"a": Layer(array(2), [array(1), array(2)])}], [{"a": Layer(array(2), [array(1), array(3)])}],
        "batch.0.a.bias.1 has shape (3,) where it had (2,)",
    ),
    "a static value": (1, 2, "batch is 2 where it was 1"),
    "static values that are equal": (True, 1, "batch is 1 where it was True"),
    "a string": ({"mode": "train"}, {"mode": "eval"}, "batch.mode is 'eval' where it was 'train'"),
    "a function": (len, repr, "batch is repr where it was len"),
    "functions of one name": (lambda: 1, lambda: 2, "batch is another <lambda> than"),
    "values that look alike": (Unordered(1), Unordered(2), "batch is another Unordered() than"),
    "a static field": (Layer(array(2)), Layer(array(2), power=2), "batch.power is 2 where it was 1"),
    "an array and a number": (array(2), 1.0, "batch is 1.0 where it was f32[2]"),
    "None and an array": (Layer(array(2)), Layer(array(2), array(1)), "batch.bias is f32[1] where it was None"),
    "an array and a module": (array(2), Layer(array(2)), "batch is a Layer where it was f32[2]"),
    "a number and a large tree": (0, [array(10**6, 10**6)], "batch is a list where it was 0"),
    "a list and a tuple": ([array(2)], (array(2),), "batch is a tuple where it was a list"),
    "a class": (Layer(array(2)), Other(array(2)), "batch is an Other where it was a Layer"),
    "the mode": (Layer(array(2)), Layer(array(2)).eval(), "batch is in eval mode where it was in train mode"),
    "the mode inside": ([Layer(array(2)).eval()], [Layer(array(2))], "batch.0 is in train mode where it was in eval mode"),
    "frozen fields": (
        Layer(array(2)), Layer(array(2)).freeze(keys="weight"), "the frozen fields of batch are {weight} where they were {}",
    ),
    "a key more": ({"a": array(2)}, {"a": array(2), "b": array(1)}, "batch.b is f32[1] where there was nothing"),
    "a key less": ({"a": array(2), "b": 1}, {"a": array(2)}, "batch.b is not there where it was 1"),
    "more in a list": ([array(2)], [array(2), 1], "batch.1 is 1 where there was nothing"),
    "the order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "the order of batch is b, a where it was a, b"),
    "what only the class knows": (deque([1], 2), deque([1], 3), "batch is built otherwise than"),
    "a class of dict": ({"a": 1}, OrderedDict(a=1), "batch is an OrderedDict where it was a dict"),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after", "difference"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_the_sentence_names_what_is_different(before, after, difference):
    calls = [((each,), {}) for each in (before, after)]
    assert explained(calls) == f"step was traced again (trace 2) because {difference} before."
    assert explained([*calls, *calls]) == explained(calls)
    for name in ("batch", "rate", "other"):
        by_name = explained([((), {"batch": 0, name: each}) for each in (before, after)])
        assert by_name == explained(calls).replace("batch", name)


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        (((1,), {}), ((1, True), {}), "flag is True where there was nothing"),
        (((1, True), {}), ((1,), {}), "flag is not there where it was True"),
        (((1,), {}), ((1,), {"rate": 2}), "rate is 2 where there was nothing"),
        (((1, 2), {}), ((1,), {"flag": 2}), "flag is given by name where it was given by position"),
        (((1,), {"flag": 2}), ((1, 2), {}), "flag is given by position where it was given by name"),
        (((1, 2, 3), {}), ((1, 2, 4), {}), "argument 2 is 4 where it was 3"),
        (((), {"batch": 1, "a": 2}), ((), {"a": 2, "batch": 1}), ORDER.format("a, batch", "batch, a")),
    ],
)
def test_the_sentence_says_how_the_arguments_were_given(before, after, difference):
    assert explained([before, after]) == f"step was traced again (trace 2) because {difference} before."


@pytest.mark.parametrize(
    ("more", "said"), [(0, ""), (1, " (and 1 more difference)"), (2, " (and 2 more differences)")], ids=range(3)
)
def test_further_differences_are_counted(more, said):
    before, after = ({"x": array(n), "y": [n if more > 0 else 0], "z": n if more > 1 else 0} for n in (1, 2))
    assert explained([((before,), {}), ((after,), {})]) == (
        f"step was traced again (trace 2) because batch.x has shape (2,) where it had (1,) before{said}."
    )


def test_without_a_retrace_there_is_nothing_to_explain():
    jitted = fl.jit(step)
    assert jitted.explain() == NEVER.format(fn="step")
    for _ in range(2):
        jitted(1)
        assert jitted.explain() == ONCE.format(fn="step")


def test_what_is_compared_is_the_most_similar_of_the_earlier_calls():
    sizes = [(64, 8), (32, 16), (64, 9)]
    calls = [((array(size), array(other), True), {}) for size, other in sizes]
    assert explained(calls) == "step was traced again (trace 3) because flag has shape (9,) where it had (8,) before."
    like_the_latest = [((array(size),), {}) for size in (3, 1, 2)]
    assert explained(like_the_latest).endswith("has shape (2,) where it had (1,) before.")


def test_a_trace_that_came_back_after_it_was_dropped():
    calls = [((number,), {}) for number in (1, 2, 3, 1)]
    again = AGAIN.format(fn="step", count=4, reason=DROPPED.format(max_traces=2))
    assert explained(calls, max_traces=2) == again
    assert "max_traces=2" in again
    assert "batch is 4" in explained([*calls, ((4,), {})], max_traces=2)


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
    assert jitted.explain() == CLEARED.format(fn="step")
    jitted(1)
    assert jitted.explain() == AGAIN.format(fn="step", count=2, reason=AFTER_CLEAR)
    jitted(2)
    assert jitted.explain() == "step was traced again (trace 3) because batch is 2 where it was 1 before."


def test_a_trace_in_another_thread():
    jitted = fl.jit(step)
    jitted(array(2))
    thread = threading.Thread(target=jitted, args=(array(2),))
    thread.start()
    thread.join()
    assert jitted.explain() == AGAIN.format(fn="step", count=2, reason=ALIKE)


def test_a_trace_inside_another_transformation():
    jitted = fl.jit(lambda x: x.sum())
    for _ in range(2):
        fl.grad(jitted)(array(2))
    assert jitted.explain() == AGAIN.format(fn="<lambda>", count=2, reason=ALIKE)


def test_shapeless_traces_differ_in_dtypes_and_numbers_of_dimensions():
    calls = [((array(*shape, dtype=dtype),), {}) for shape, dtype in [((2,), mx.float32), ((3,), mx.float32)]]
    double = lambda x: x + x  # noqa: E731
    assert explained(calls, double, shapeless=True) == ONCE.format(fn="<lambda>")
    calls.append(((array(5, dtype=mx.int32),), {}))
    assert explained(calls, double, shapeless=True).endswith("x has dtype int32 where it had float32 before.")
    calls.append(((array(5, 5, dtype=mx.int32),), {}))
    assert explained(calls, double, shapeless=True).endswith("x has ndim 2 where it had 1 before.")


def test_a_method_is_explained_in_terms_of_self():
    model = Layer(array(2))
    of_method = fl.jit(Layer.__call__)
    of_method(model, array(2))
    of_method(model.astype(mx.float16), array(2))
    assert of_method.explain() == (
        "__call__ was traced again (trace 2) because self.weight has dtype float16 where it had float32 before."
    )


def test_a_failing_trace_does_not_count():
    def picky(x):
        assert x.size != 2
        return x[:1]

    jitted = fl.jit(picky)
    jitted(array(1))
    with pytest.raises(AssertionError):
        jitted(array(2))
    assert jitted.explain() == ONCE.format(fn="picky")


def test_no_array_is_kept_or_evaluated():
    jitted = fl.jit(step)
    small, large = array(2), array(10**6, 10**6)  # more than there is memory for
    watched = [weakref.ref(small), weakref.ref(large)]
    jitted({"x": small, "y": 1})
    jitted({"x": large, "y": large})
    del small, large
    gc.collect()
    assert [each() for each in watched] == [None, None]
    assert "batch.x has shape (1000000, 1000000)" in jitted.explain()
