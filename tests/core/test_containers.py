"""Containers made immutable and mutable again, and keys of static values."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import pickle
from collections import OrderedDict, defaultdict, deque
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from shown import shown

from frostleaf.core.containers import arrays_in, freeze_containers, static_key
from frostleaf.core.pickling import from_picklable, to_picklable

ONE = mx.array(1)


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    ("value", "frozen"),
    [
        ([], ()),
        ([1, [2, [3]]], (1, (2, (3,)))),
        ((1, [2]), (1, (2,))),
        ({}, MappingProxyType({})),
        ({"b": [1], "a": {"c": {2}}}, MappingProxyType({"b": (1,), "a": MappingProxyType({"c": frozenset({2})})})),
        (OrderedDict(a=[1]), MappingProxyType({"a": (1,)})),
        (defaultdict(list, a=[1]), MappingProxyType({"a": (1,)})),
        (MappingProxyType({"a": [1]}), MappingProxyType({"a": (1,)})),
        (deque([1, [2]]), (1, (2,))),
        ({1, 2}, frozenset({1, 2})),
        (Pair([1], {"a": 2}), Pair((1,), MappingProxyType({"a": 2}))),
        ([None, 1, "text", 1.5, len], (None, 1, "text", 1.5, len)),
    ],
    ids=shown,
)
def test_containers_become_immutable(value: Any, frozen: Any) -> None:
    def same(one: Any, other: Any) -> bool:
        if type(one) is not type(other):
            return False
        if isinstance(one, tuple):
            return len(one) == len(other) and all(map(same, one, other))
        if isinstance(one, MappingProxyType):
            return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
        return bool(one == other)

    assert same(freeze_containers(value), frozen)
    assert same(freeze_containers(freeze_containers(value)), frozen)


@pytest.mark.parametrize(
    "value", [(), (1, (2, Pair(3, "text"))), Pair(1, 2), frozenset({1}), None, 3, "text", ONE, len, range(3)], ids=repr
)
def test_a_value_that_holds_nothing_mutable_is_returned_itself(value: Any) -> None:
    assert freeze_containers(value) is value


def test_the_dict_behind_a_mapping_can_change_without_changing_the_copy() -> None:
    source = {"a": 1}
    frozen = freeze_containers(MappingProxyType(source))
    source["a"] = 2
    assert frozen == {"a": 1}


def test_the_order_of_the_keys_is_kept() -> None:
    assert list(freeze_containers({"b": 1, "a": 2})) == ["b", "a"]
    assert list(from_picklable(to_picklable(freeze_containers({"b": 1, "a": 2})))) == ["b", "a"]


PACKED = [(1, {"a": (2, {"b": 3})}), Pair({"a": 1}, ({"b": 2},)), {}, (), 3, {"a": frozenset({1})}, (mx.tanh, {"d": mx.int8})]


@pytest.mark.parametrize(
    "value",
    [
        (1, {"a": (2, {"b": 3})}), Pair({"a": 1}, ({"b": 2},)), {}, (), 3, None, {"a": frozenset({1})}, mx.float16,
        (mx.bool_, {"a": mx.bfloat16}), mx.tanh, {"a": (mx.random.normal, mx.fast.rms_norm)}, len,
    ],
    ids=shown,
)  # fmt: skip
def test_what_is_packed_can_be_pickled_and_unpacked(value: Any) -> None:
    again = from_picklable(pickle.loads(pickle.dumps(to_picklable(freeze_containers(value)))))
    assert again == value
    assert type(again) is type(value)
    assert "mappingproxy" not in repr(again)


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    ONE = 1


class MyInt(int):
    pass


def add(left: Any, right: Any = 0) -> Any:
    return left + right


@dataclasses.dataclass(frozen=True)
class Config:
    scale: Any
    note: Any = dataclasses.field(default=None, compare=False)


class Worker:
    def run(self) -> None: ...

    def stop(self) -> None: ...


WORKER, OTHER = Worker(), Worker()
UTC = datetime.timezone.utc
NOON = datetime.datetime(2020, 1, 1, 12, tzinfo=UTC)

DISTINCT = [
    Config(1), Config(1.0), Config(True), Config(Config(1)), Config(Config(1.0)), Config(1, "note"), Fraction(1),
    Decimal("1.0"), Decimal("1.00"), np.float32(0.0), np.float32(-0.0), np.float64(0.0), np.int32(0), NOON,
    NOON.astimezone(datetime.timezone(datetime.timedelta(hours=1))), NOON.replace(tzinfo=None), NOON.replace(fold=1), UTC,
    datetime.timezone(datetime.timedelta(0), "Z"), range(0, 3, 2), range(0, 4, 2), slice(1), slice(1.0),
    np.datetime64("2020"), np.datetime64("2020-01"), functools.partial(add, ONE), functools.partial(add, mx.array(1)),
    functools.partial(add, np.ones(2)), np.ones(2), np.ones(2),
    1, True, 1.0, 1 + 0j, "1", b"1", 0, False, 0.0, -0.0, -0j, None, float("nan"), float("inf"), MyInt(1), Colour.RED,
    Level.ONE, (), [], {}, frozenset(), set(), (1,), [1], (True,), {1: 2}, {True: 2}, {1: 2.0}, {"a": 1, "b": 2},
    {"b": 2, "a": 1}, MappingProxyType({1: 2}), OrderedDict({1: 2}), deque([1]), Pair(1, 2), (1, 2), frozenset({1}),
    frozenset({1.0}), {1}, add, len, int, float, mx.float16, mx.float32, functools.partial(add), functools.partial(add, 1),
    functools.partial(add, 1.0), functools.partial(add, right=1), functools.partial(len), Worker.run,
    WORKER.run, WORKER.stop, OTHER.run, WORKER,
]  # fmt: skip


def test_two_values_share_a_key_only_if_they_are_interchangeable() -> None:
    keys = [static_key(value) for value in DISTINCT]
    for index, one in enumerate(keys):
        for position, other in enumerate(keys):
            assert (one == other) is (index == position), (index, position)


@pytest.mark.parametrize(
    "make",
    [
        lambda: float("nan"),
        lambda: (1, [2, {"a": float("nan")}]),
        lambda: frozenset({(1, 2.0)}),
        lambda: functools.partial(add, 1, right=(float("nan"),)),
        lambda: 10**20,
        lambda: WORKER.run,
        lambda: Pair(1, "x" * 3),
        lambda: complex("nan+0j"),
        lambda: Config((float("nan"), np.float32("nan"))),
        lambda: Decimal("nan"),
        lambda: np.datetime64("nat", "s"),
        lambda: datetime.datetime(2020, 1, 1, tzinfo=UTC),
    ],
)
def test_values_made_alike_share_a_key_and_its_hash(make: Any) -> None:
    assert static_key(make()) == static_key(make())
    assert hash(static_key(make())) == hash(static_key(make()))


@pytest.mark.parametrize(
    "value", [bytearray(), [bytearray()], {"a": bytearray()}, Config([1]), Config(Config({})), np.ones(2)], ids=shown
)
def test_a_key_can_be_hashed_only_if_the_value_can(value: Any) -> None:
    key = static_key(value)
    with pytest.raises(TypeError, match="unhashable"):
        hash(key)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (ONE, 1),
        ([ONE, (ONE, {"a": ONE})], 3),
        (functools.partial(add, ONE, right=ONE), 2),
        (functools.partial(functools.partial(add, [ONE]), 1), 1),
        (frozenset({functools.partial(add, ONE)}), 1),
        ({"a": functools.partial(add, functools.partial(add, ONE))}, 1),
        (Pair(None, MappingProxyType({"a": ONE})), 1),
        (deque([ONE]), 1),
        ((1, None, "text", add, functools.partial(add, 1), frozenset({1})), 0),
    ],
    ids=shown,
)
def test_arrays_are_found_wherever_they_are(value: Any, count: int) -> None:
    found = list(arrays_in(value))
    assert len(found) == count
    assert all(array is ONE for array in found)
