"""equal, allclose and diff."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.core.words import describe
from frostleaf.tree import Change


class Pair(NamedTuple):
    left: Any
    right: Any


class Net(fl.Module):
    weight: Any
    size: Any = fl.static(default=2)
    bias: Any = None


class Other(fl.Module):
    weight: Any


ONE = mx.array(1.0)
NAN = float("nan")


def array(*values: Any, dtype: Any = mx.float32) -> mx.array:
    return mx.array(values, dtype=dtype)


# A pair of trees, and the difference as it is printed; None where there is none.
PAIRS: list[tuple[Any, Any, str | None]] = [
    (ONE, ONE, None),
    (array(1.0, 2.0), array(1.0, 2.0), None),
    (array(1.0), array(2.0), "(root): value f32[1] -> f32[1]"),
    (array(1.0), array(1.0, 2.0), "(root): shape f32[1] -> f32[2]"),
    (mx.array(1), mx.array(1.0), "(root): dtype i32[] -> f32[]"),
    (mx.zeros((2, 3)), mx.zeros((3, 2)), "(root): shape f32[2,3] -> f32[3,2]"),
    (mx.zeros((0, 2)), mx.zeros((0, 2)), None),
    (mx.zeros((0, 2)), mx.zeros((2, 0)), "(root): shape f32[0,2] -> f32[2,0]"),
    (array(NAN, 1.0), array(NAN, 1.0), None),
    (array(NAN, 1.0), array(1.0, NAN), "(root): value f32[2] -> f32[2]"),
    (array(NAN, dtype=mx.bfloat16), array(NAN, dtype=mx.bfloat16), None),
    (mx.array(complex(NAN, 1)), mx.array(complex(NAN, 1)), None),
    (mx.array(1 + 1j), mx.array(1 - 1j), "(root): value c64[] -> c64[]"),
    (array(True, dtype=mx.bool_), array(True, dtype=mx.bool_), None),
    (array(True, dtype=mx.bool_), array(False, dtype=mx.bool_), "(root): value bool[1] -> bool[1]"),
    (array(2**62, dtype=mx.uint64), array(2**62 + 1, dtype=mx.uint64), "(root): value u64[1] -> u64[1]"),
    ([ONE], (ONE,), "(root): class list -> tuple"),
    ([ONE], [ONE, None], "1: added nothing -> None"),
    ([ONE, 2], [ONE], "1: removed 2 -> nothing"),
    ([1], [1.0], "0: static 1 -> 1.0"),
    ([True], [1], "0: static True -> 1"),
    ([NAN], [float("nan")], None),
    ([0.0], [-0.0], "0: static 0.0 -> -0.0"),
    (["a"], ["b"], "0: static 'a' -> 'b'"),
    ([len], [print], "0: static len -> print"),
    ([None], [1], "0: static None -> 1"),
    ([None], [ONE], "0: type None -> f32[]"),
    ([ONE], [None], "0: type f32[] -> None"),
    ([1], [ONE], "0: type 1 -> f32[]"),
    ([[]], [None], "0: type [] -> None"),
    ([[1]], [None], "0: type [1] -> None"),
    ([[ONE]], [None], "0: type [f32[]] -> None"),
    ([{}], [[]], "0: class dict -> list"),
    ({"a": ONE}, {"b": ONE}, "a: removed f32[] -> nothing\nb: added nothing -> f32[]"),
    (OrderedDict(a=1), {"a": 1}, "(root): class OrderedDict -> dict"),
    (deque([1]), [1], "(root): class deque -> list"),
    (Pair(1, 2), (1, 2), "(root): class Pair -> tuple"),
    (Pair(1, 2), Pair(1, 3), "1: static 2 -> 3"),
    (Net(ONE), Net(ONE), None),
    (Net(ONE), Other(ONE), "(root): class Net -> Other"),
    ([Net(ONE)], [3], "0: type Net(...) -> 3"),
    (Net(ONE), Net(ONE).eval(), "(root): mode 'train' -> 'eval'"),
    (Net(ONE), Net(ONE).freeze(), "(root): frozen {} -> {weight}"),
    (Net(ONE, size=1), Net(ONE, size=2), "size: static 1 -> 2"),
    (Net(ONE, size=[1, 2]), Net(ONE, size=[1, 3]), "size.1: static 2 -> 3"),
    (Net(Net(ONE)), Net(Net(ONE, bias=ONE)), "weight.bias: type None -> f32[]"),
    (Net([ONE, {"a": ONE}]), Net([ONE, {"a": array(1.0)}]), "weight.1.a: shape f32[] -> f32[1]"),
    (
        Net(ONE, 1),
        Net(array(1.0), 2).eval(),
        "(root): mode 'train' -> 'eval'\nweight: shape f32[] -> f32[1]\nsize: static 1 -> 2",
    ),
    (None, None, None),
    (3, 3, None),
    ((), (), None),
]


@pytest.mark.parametrize(("left", "right", "shown"), PAIRS, ids=str)
def test_the_difference_says_what_differs_and_where(left: Any, right: Any, shown: str | None) -> None:
    difference = fl.tree.diff(left, right)
    assert repr(difference) == (shown or "no difference")
    assert bool(difference) is (shown is not None)


@pytest.mark.parametrize(("left", "right", "shown"), PAIRS, ids=str)
def test_trees_are_equal_when_there_is_no_difference(left: Any, right: Any, shown: str | None) -> None:
    assert fl.tree.equal(left, right) is (shown is None)
    assert fl.tree.equal(right, left) is (shown is None)
    assert fl.tree.equal(left, left)
    assert fl.tree.equal((left, 1), (right, 1)) is (shown is None)


def test_dicts_in_another_order_are_different_trees() -> None:
    left, right = {"a": ONE, "b": 2}, {"b": 2, "a": ONE}
    assert not fl.tree.equal(left, right)
    assert fl.tree.diff(left, right)


def test_any_number_of_trees_can_be_compared() -> None:
    assert fl.tree.equal(Net(ONE), Net(ONE), Net(ONE))
    assert not fl.tree.equal(Net(ONE), Net(ONE), Net(mx.array(2.0)))
    assert fl.tree.equal(Net(ONE))
    assert fl.tree.equal()


def test_a_change_can_be_taken_apart() -> None:
    (change,) = fl.tree.diff({"a": [1]}, {"a": [2]})
    assert change == Change("a.0", "static", 1, 2)
    assert (change.path, change.kind, change.before, change.after) == ("a.0", "static", 1, 2)
    left, right = array(1.0), array(2.0)
    assert fl.tree.diff(left, right)[0].before is left


def test_diff_shows_what_an_edit_changed() -> None:
    before = Net([Net(ONE), Net(ONE)])
    after = before.at("weight.1.weight").set(mx.array(2.0)).freeze(keys="bias")
    assert [(change.path, change.kind) for change in fl.tree.diff(before, after)] == [
        ("", "frozen"),
        ("weight.0", "frozen"),
        ("weight.1", "frozen"),
        ("weight.1.weight", "value"),
    ]


CLOSE: list[tuple[Any, Any, dict[str, Any], bool]] = [
    (array(1.0), array(1.0 + 1e-7), {}, True),
    (array(1.0), array(1.1), {}, False),
    (array(1.0), array(1.1), {"rtol": 0.2}, True),
    (array(1.0), array(1.1), {"atol": 0.2}, True),
    (array(0.0), array(1e-7), {"rtol": 1e-6, "atol": 0.0}, False),
    (array(1.0), array(1.0, dtype=mx.float16), {}, True),
    (array(1, dtype=mx.int32), array(1.0), {}, True),
    (array(1.0), array(1.0, 1.0), {}, False),
    (array(1.0), mx.array([[1.0]]), {}, False),
    (array(NAN), array(NAN), {}, False),
    (array(NAN), array(NAN), {"equal_nan": True}, True),
    (array(float("inf")), array(float("inf")), {}, True),
    (array(True, dtype=mx.bool_), array(True, dtype=mx.bool_), {}, True),
    (mx.array(1 + 1j), mx.array(1 + 1j), {}, True),
    ([array(1.0), 1], [array(1.0), 2], {}, False),
    ([array(1.0)], (array(1.0),), {}, False),
    (Net(array(1.0)), Net(array(1.0), bias=ONE), {}, False),
    (Net(array(1.0)), Net(array(1.0)).eval(), {}, False),
    (Net(array(1.0)), Net(array(1.0 + 1e-7)), {}, True),
    (mx.zeros((0,)), mx.zeros((0,)), {}, True),
    ((), (), {}, True),
]


@pytest.mark.parametrize(("left", "right", "options", "close"), CLOSE, ids=str)
def test_allclose(left: Any, right: Any, options: dict[str, Any], close: bool) -> None:
    assert fl.tree.allclose(left, right, **options) is close


def test_a_model_is_close_to_its_cast() -> None:
    model = Net(mx.arange(4.0))
    assert fl.tree.allclose(model, model.astype(mx.float16))
    assert not fl.tree.equal(model, model.astype(mx.float16))


def test_arrays_that_are_the_same_object_are_not_evaluated() -> None:
    def raises(x: mx.array) -> mx.array:
        leaf = x + 1
        assert fl.tree.equal([leaf], [leaf])
        assert not fl.tree.diff([leaf], [leaf])
        return leaf

    # Inside compile an array has no value, and looking at one is an error.
    mx.compile(raises)(ONE)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (mx.zeros((2, 3), mx.bfloat16), "bf16[2,3]"),
        (mx.zeros((), mx.float16), "f16[]"),
        (mx.zeros((1,), mx.uint8), "u8[1]"),
        (mx.zeros((1,), mx.int64), "i64[1]"),
        (mx.zeros((1,), mx.complex64), "c64[1]"),
        (mx.zeros((1,), mx.bool_), "bool[1]"),
        (Net, "Net"),
        (Net(ONE), "Net(...)"),
        (frozenset({"b", "a"}), "{'a', 'b'}"),
        (len, "len"),
        ("text", "'text'"),
        (None, "None"),
        ("x" * 100, "'" + "x" * 76 + "..."),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_values_are_described_in_short(value: Any, shown: str) -> None:
    assert describe(value) == shown
