"""partition, combine and filter."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import pytest
from laws.strategies import identical
from shown import shown

import frostleaf as fl

A, B, C = mx.array(1), mx.array(2.0), mx.array(3.0)


class Pair(NamedTuple):
    left: Any
    right: Any


class Net(fl.Module):
    weight: Any
    size: Any = fl.static(default=2)
    bias: Any = None


TREE = {"b": [A, Net(B, bias=[C, None, 3])], "a": Pair(C, "text"), "n": 7}
PATHS = ["b.0", "b.1.weight", "b.1.bias.0", "a.0"]

WHERE: list[tuple[Any, set[str]]] = [
    ("b", {"b.0", "b.1.weight", "b.1.bias.0"}),
    ("b.0", {"b.0"}),
    ("b.1", {"b.1.weight", "b.1.bias.0"}),
    ("*.0", {"b.0", "a.0"}),
    ("**", set(PATHS)),
    ("nope", set()),
    ("n", set()),
    ("b.1.size", set()),
    ("", set()),
    (Net, {"b.1.weight", "b.1.bias.0"}),
    (Pair, {"a.0"}),
    (mx.array, set(PATHS)),
    (int, set()),
    (lambda path, array: array.dtype == mx.float32, set(PATHS[1:])),
    (lambda path, array: False, set()),
    (["b.0", "a"], {"b.0", "a.0"}),
    (["b", "b.1.weight", Net], {"b.0", "b.1.weight", "b.1.bias.0"}),
    ([], set()),
]


@pytest.mark.parametrize(("where", "expected"), WHERE, ids=[shown(where) for where, _ in WHERE])
def test_partition_divides_the_arrays(where: Any, expected: set[str]) -> None:
    first, second = fl.tree.partition(TREE, where)
    assert set(fl.tree.paths(first)) == expected
    assert set(fl.tree.paths(second)) == set(PATHS) - expected
    for half in (first, second):
        assert half["n"] == 7
        assert half["a"].right == "text"
        assert half["b"][1].size == 2
        assert half["b"][1].bias[1:] == (None, 3)
    assert identical(fl.tree.combine(first, second), TREE)
    assert identical(fl.tree.combine(second, first), TREE)
    assert identical(fl.tree.filter(TREE, where), first)


@pytest.mark.parametrize(
    "tree",
    [
        A, None, 3, [], (A, B), {"b": A, "a": B}, OrderedDict(b=A, a=B), defaultdict(list, b=A, a=B), Pair(A, None),
        deque([A, B]), MappingProxyType({"b": A, "a": B}), Net([A, {"x": B}]).eval().freeze(),
    ],
    ids=shown,
)  # fmt: skip
def test_trees_of_every_kind_can_be_divided_and_combined(tree: Any) -> None:
    where = lambda path, array: array is A  # noqa: E731
    first, second = fl.tree.partition(tree, where)
    assert all(leaf is A for leaf in fl.tree.leaves(first))
    assert all(leaf is not A for leaf in fl.tree.leaves(second))
    assert identical(fl.tree.combine(first, second), tree)


def test_combine_takes_the_first_array_there_is() -> None:
    assert fl.tree.combine([None, A, None], [B, B, None], [C, C, None]) == [B, A, None]
    assert fl.tree.combine([A]) == [A]


def test_an_array_object_at_two_places_is_divided_by_place() -> None:
    first, second = fl.tree.partition([A, A], "1")
    assert first == [None, A]
    assert second == [A, None]


@pytest.mark.parametrize(
    ("trees", "number", "difference"),
    [
        (([A], [A, B]), 2, "1: added nothing -> f32[]"),
        (([A], (A,)), 2, "(root): class list -> tuple"),
        (([A], [None], {"a": A}), 3, "(root): class list -> dict"),
        ((Net(A), Net(A, size=5)), 2, "size: static 2 -> 5"),
        (([[A]], [A]), 2, "0: type"),
    ],
    ids=shown,
)
def test_combining_trees_of_different_shapes_is_an_error_that_shows_where(
    trees: tuple[Any, ...], number: int, difference: str
) -> None:
    with pytest.raises(ValueError, match=f"tree {number} does not have the structure of the first") as caught:
        fl.tree.combine(*trees)
    assert difference in str(caught.value)


def test_what_is_divided_is_not_changed() -> None:
    tree = {"a": [A, B]}
    first, _ = fl.tree.partition(tree, "a.0")
    first["a"].clear()
    assert tree == {"a": [A, B]}


def test_a_module_keeps_its_class_mode_and_frozen_fields_in_both_halves() -> None:
    net = Net(A, bias=B).freeze(keys="bias").eval()
    for half in fl.tree.partition(net, "weight"):
        assert type(half) is Net
        assert half.training is False
        assert half.replace(weight=B, bias=B).trainable_parameters().keys() == {"weight"}


def test_what_can_not_select_is_an_error() -> None:
    for function in (fl.tree.partition, fl.tree.filter):
        with pytest.raises(TypeError, match="can't select by 3"):
            function([A], 3)


def test_a_divided_model_can_be_differentiated_in_one_half() -> None:
    net = Net(mx.array(2.0), bias=mx.array(3.0))
    half, rest = fl.tree.partition(net, "weight")

    def loss(weight: mx.array) -> mx.array:
        whole = fl.tree.combine(half.replace(weight=weight), rest)
        return whole.weight * whole.bias

    assert mx.grad(loss)(half.weight).item() == 3.0
