"""One level of a tree, and the rewriting of parts of it."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import pytest
from laws.strategies import identical
from shown import shown

import frostleaf as fl
from frostleaf.tree.walk import Descend, field_level, rewrite

A, B = mx.array(1), mx.array(2)


class Pair(NamedTuple):
    left: Any
    right: Any


class Net(fl.Module):
    weight: Any
    size: Any = fl.static(default=2)
    bias: Any = None


@pytest.mark.parametrize(
    ("value", "entries", "children"),
    [
        ([A, 3], [0, 1], [A, 3]),
        ((A,), [0], [A]),
        ({"b": A, "a": 1}, ["b", "a"], [A, 1]),
        (OrderedDict(b=A, a=1), ["b", "a"], [A, 1]),
        (defaultdict(int, b=A, a=1), ["b", "a"], [A, 1]),
        (MappingProxyType({"b": A, "a": 1}), ["b", "a"], [A, 1]),
        (Pair(A, 1), [0, 1], [A, 1]),
        (deque([A, 1]), [0, 1], [A, 1]),
        (Net(A, 5), ["weight", "size", "bias"], [A, 5, None]),
        ([], [], []),
        ({}, [], []),
    ],
    ids=shown,
)
def test_a_level_has_the_children_and_their_names(value: Any, entries: list[Any], children: list[Any]) -> None:
    found = field_level(value)
    assert found is not None
    assert list(found.entries) == entries
    assert list(found.children) == children
    assert identical(found.make(found.children), value)


@pytest.mark.parametrize("value", [A, None, 3, "text", len, {1, 2}, object()], ids=shown)
def test_what_holds_nothing_has_no_level(value: Any) -> None:
    assert field_level(value) is None


def test_rewrite_without_functions_returns_the_tree_itself() -> None:
    tree = {"a": [A, Net(B)]}
    assert rewrite(tree) is tree


def test_enter_is_asked_before_the_children_and_leave_after_them() -> None:
    order: list[Any] = []
    tree = [A, {"x": B}]
    rewrite(
        tree,
        lambda path, value: order.append(("enter", path)) or Descend,
        lambda path, value: order.append(("leave", path)) or value,
    )
    assert order == [
        ("enter", ()), ("enter", (0,)), ("leave", (0,)), ("enter", (1,)), ("enter", (1, "x")), ("leave", (1, "x")),
        ("leave", (1,)), ("leave", ()),
    ]  # fmt: skip


def test_what_enter_returns_takes_the_place_and_is_not_looked_into() -> None:
    def enter(path: Any, value: Any) -> Any:
        seen.append(path)
        return [B, B] if path == ("a",) else Descend

    seen: list[Any] = []
    assert rewrite({"a": [A], "b": A}, enter) == {"a": [B, B], "b": A}
    assert seen == [(), ("a",), ("b",)]


def test_none_can_be_a_replacement() -> None:
    assert rewrite([A, B], lambda path, value: None if value is A else Descend) == [None, B]


def test_parts_in_which_nothing_was_replaced_are_the_same_objects() -> None:
    tree = [[A, Net(A)], {"x": [B]}, Pair(A, (B,))]
    after = rewrite(tree, lambda path, value: A if path == (1, "x", 0) else Descend)
    assert after[0] is tree[0]
    assert after[2] is tree[2]
    assert after[1]["x"] == [A]
    assert tree[1]["x"] == [B]


def test_paths_go_on_from_the_one_that_is_given() -> None:
    seen: list[Any] = []
    rewrite([A], lambda path, value: seen.append(path) or Descend, path=("outer",))
    assert seen == [("outer",), ("outer", 0)]
