"""What a file says of a tree's structure, and where it differs from another."""

from __future__ import annotations

import datetime
import enum
import functools
import ipaddress
import json
import math
import os
import pathlib
import random
import re
import subprocess
import sys
import time
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import attrs
import mlx.core as mx
import numpy as np
import pytest

import frostleaf as fl
from frostleaf.core.structure import flat_of
from frostleaf.io import description, differences
from frostleaf.io import trees as io_trees


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Number(enum.IntEnum):
    ONE = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True)
class Config:
    size: int
    name: Any


@dataclass(frozen=True)
class Seeded:
    seed: InitVar[int]


class Rate:
    """A value as it is written without a generator of classes."""

    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = low, high

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rate) and (self.low, self.high) == (other.low, other.high)

    def __hash__(self) -> int:
        return hash((self.low, self.high))

    @functools.cached_property
    def span(self) -> Any:
        return self.high - self.low

    def rise(self) -> None: ...


class Slots:
    __slots__ = ("__high", "low", "unset")

    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.__high = low, high

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slots) and (self.low, self.__high) == (other.low, other.__high)

    def __hash__(self) -> int:
        return hash((self.low, self.__high))


class SlotsAndMore(Slots):
    def __init__(self, low: Any, high: Any, more: Any) -> None:
        super().__init__(low, high)
        self.more = more


@attrs.frozen
class Spec:
    size: Any
    seen: Any = attrs.field(default=None, eq=False)


@dataclass(frozen=True)
class Named:
    size: Any
    seen: Any = field(default=None, compare=False)


class Day(datetime.date):
    """Holds more than its fields show."""

    note: str


UTC, HOUR = datetime.timezone.utc, datetime.timezone(datetime.timedelta(hours=1))


class Cache:
    def __init__(self, keys: Any, size: Any) -> None:
        self.keys, self.size = keys, size


fl.register_pytree_node(Cache, lambda cache: ([cache.keys], cache.size, ["keys"]), lambda size, keys: Cache(*keys, size))


def scaled(scale: float, x: Any) -> Any:
    return scale * x


class Layer(fl.Module):
    weight: mx.array
    note: Any = None
    kind: Any = fl.static(default=None)

    def method(self) -> None: ...


W = mx.array([1.0, 2.0])

# Trees that are of one structure but for one thing, and what is said of it.
# What follows the lines; tests/io/test_complaints.py tries it.
REMEDIES = (
    "strict=False reads what both", "The arrays and numbers have the same names", "For numbers that grow in count",
    "For the mode of the file give like",
)  # fmt: skip

DIFFERENT: dict[str, tuple[Any, Any, list[str]]] = {
    "dtype": (
        {"w": W},
        {"w": W.astype(mx.float16)},
        [
            "w: array f32[2] in the file, array f16[2] in like",
            "Only dtypes differ: give like the dtypes that the file has, and cast what is loaded, as with .astype(...)",
        ],
    ),
    "shape": ({"w": W}, {"w": W[None]}, ["w: array f32[2] in the file, array f32[1,2] in like"]),
    "shape of a placeholder": ([W], [fl.ShapeDtypeStruct((3,))], ["0: array f32[2] in the file, array f32[3] in like"]),
    "array or number": ([W], [1.0], ["0: array f32[2] in the file, a Python float in like"]),
    "number or array": ([1.0], [W], ["0: a Python float in the file, array f32[2] in like"]),
    "array or None": ([W], [None], ["0: array f32[2] in the file, None in like"]),
    "None or a number": ([None], [0], ["0: None in the file, a Python int in like"]),
    "bool or int": ([True], [1], ["0: a Python bool in the file, a Python int in like"]),
    "int or float": ([1], [1.0], ["0: a Python int in the file, a Python float in like"]),
    "an array or a list": ({"w": W}, {"w": [W]}, ["w: array f32[2] in the file, list of 1 in like"]),
    "tuple or list": ((W,), [W], ["(root): tuple of 1 in the file, list of 1 in like"]),
    "the length of a list": ([W, W], [W], ["(root): list of 2 in the file, list of 1 in like"]),
    "dict or ordered dict": ({"w": W}, OrderedDict(w=W), ["(root): dict in the file, OrderedDict in like"]),
    "dict or proxy": ({"w": W}, MappingProxyType({"w": W}), ["(root): dict in the file, mappingproxy in like"]),
    "the factory of a dict": (
        defaultdict(list, w=W),
        defaultdict(int, w=W),
        ["(root) (metadata): (builtins.list, ['w']) in the file, (builtins.int, ['w']) in like"],
    ),
    "the length of a deque": (deque([W], 3), deque([W], 4), ["(root) (metadata): 3 in the file, 4 in like"]),
    "a key": (
        {"weight": W, "n": 1},
        {"weights": W, "n": 1},
        [
            "weight: array f32[2] in the file, nothing in like; the nearest is 'weights'",
            "weights: nothing in the file, array f32[2] in like; the nearest is 'weight'",
        ],
    ),
    "a key more": ({"a": W}, {"a": W, "b": {"c": W}}, ["b: nothing in the file, dict in like"]),
    "the type of a key": ({"a": {1: W}}, {"a": {"1": W}}, ["a (keys): 1 in the file, '1' in like"]),
    "a namedtuple": (Pair(W, 1), (W, 1), [f"(root): {__name__}.Pair in the file, tuple of 2 in like"]),
    "the metadata of a class": (
        Cache(W, (1, "a")),
        Cache(W, (1, "b")),
        ["(root) (metadata): (1, 'a') in the file, (1, 'b') in like"],
    ),
    "a module's class": (
        {"m": fl.nn.Linear(2, 2), "n": 1},
        {"m": fl.nn.Embedding(2, 2), "n": 1},
        ["m: frostleaf.nn.Linear in the file, frostleaf.nn.Embedding in like"],
    ),
    "mode": (Layer(W), Layer(W).eval(), ["(root) (mode): training in the file, evaluation in like"]),
    "the mode of all of a model": (
        fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Dropout(0.5)),
        fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Dropout(0.5)).eval(),
        [
            "(root) (mode): training in the file, evaluation in like, as for what is in it: give like with what .train() "
            "returns there"
        ],
    ),
    "the mode of all of one of two models": (
        {"a": fl.nn.Sequential(Layer(W)).eval(), "b": [Layer(W).eval()]},
        {"a": fl.nn.Sequential(Layer(W)), "b": [Layer(W)]},
        [
            "a (mode): evaluation in the file, training in like, as for what is in it: give like with what .eval() returns "
            "there",
            "b.0 (mode): evaluation in the file, training in like",
        ],
    ),
    "modes that differ in both ways": (
        fl.nn.Sequential(Layer(W).eval(), Layer(W)).at("layers.0").apply(lambda each: each.eval()),
        fl.nn.Sequential(Layer(W), Layer(W)).eval().at("layers.0").apply(lambda each: each.train()),
        [
            "layers.0 (mode): evaluation in the file, training in like",
            "(root) (mode): training in the file, evaluation in like, as for what is in it: give like with what .train() "
            "returns there",
        ],
    ),
    "frozen names": (
        Layer(W).freeze(),
        Layer(W),
        [
            "(root) (frozen): weight in the file, nothing in like",
            "They differ in what is frozen: load into a model in which the same is frozen as in the file's, and freeze "
            "or unfreeze the one that is loaded",
        ],
    ),
    "ties": (
        fl.nn.Sequential(fl.nn.Linear(2, 2, bias=False), fl.nn.Linear(2, 2, bias=False)).tie(
            {"layers.1.weight": "layers.0.weight"}
        ),
        fl.nn.Sequential(fl.nn.Linear(2, 2, bias=False), fl.nn.Linear(2, 2, bias=False)),
        [
            "(root) (tied): layers.1.weight to layers.0.weight in the file, nothing in like",
            "layers.1.weight: None in the file, array f32[2,2] in like",
            "Arrays are tied in the file: tie the same first, as in like.tie({'layers.1.weight': 'layers.0.weight'})",
        ],
    ),
    "a static value": ([Layer(W, kind=1)], [Layer(W, kind=True)], ["0.kind (static): 1 in the file, True in like"]),
    "a number of a module": (Layer(W, 1), Layer(W, "1"), ["note: a Python int in the file, a Python str in like"]),
    "a function": ([mx.tanh, W], [mx.exp, W], ["0: mlx.core.tanh in the file, mlx.core.exp in like"]),
    "a long static value": (
        Layer(W, kind="x" * 1000 + "a"),
        Layer(W, kind="x" * 1000 + "b" + "y" * 1000),
        [f"kind (static): ...{'x' * 20}a' in the file, ...{'x' * 20}b{'y' * 59}... in like"],
    ),
    "more than can be shown": (
        dict.fromkeys(range(30), W),
        dict.fromkeys(range(30), 1),
        [*(f"{number}: array f32[2] in the file, a Python int in like" for number in range(6)), "and 24 more"],
    ),
    "twins": (
        [{1: None, "1": 2}, W],
        [{1: 3.0, "1": 2}, W],
        ["0.1: None in the file, where like has 0.1: a Python float"],
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_structure_is_an_error_that_says_where(name: str, tmp_path: Path) -> None:
    tree, like, lines = DIFFERENT[name]
    found = reason(tmp_path, tree, like)
    assert found == lines or (found[:-1] == lines and found[-1].startswith(REMEDIES))


STATIC: list[Any] = [
    None, True, 1, 2**70, 1.0, 0.0, -0.0, math.nan, 1j, "a", "1", b"a", ..., (), (1,), ((1,),), (1, 2), Color.RED,
    Color.BLUE, Number.ONE, mx.float16, mx.bfloat16, int, float, Layer, mx.tanh, mx.exp, fl.nn.gelu, math.sin, scaled,
    functools.partial(scaled, 1), functools.partial(scaled, 2), Config(1, "a"), Config(1, "b"), Config(True, "a"), Seeded(1),
    frozenset("ab"), frozenset("a"), {"a": 1}, {"a": 2}, fl.ShapeDtypeStruct((1,)), fl.ShapeDtypeStruct((2,)), Pair(1, 2),
    fl.nn.Dropout(0.5), fl.nn.Dropout(0.25), Layer.method, fl.nn.Dropout(0.5).train, fl.nn.Dropout(0.25).train, flat_of((W,
    1)).structure, flat_of((W, 2)).structure, flat_of((1, W)).structure, Access(0), Access.READ, Access.READ | Access.WRITE,
    Access.READ | Access.RUN, str.upper, str.lower, "a".join, "b".join, dict.fromkeys, [].append, random.random,
    np.float32(1), np.float32(2), np.float64(1), type("Name", (str,), {})("a"), pathlib.Path("a"), pathlib.Path("b"),
    pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a"), datetime.date(2020, 1, 1), datetime.date(2021, 1, 1),
    datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, fold=1), datetime.datetime(2020, 1, 1, tzinfo=UTC),
    datetime.datetime(2020, 1, 1, tzinfo=HOUR), datetime.datetime(2020, 1, 1, 1, tzinfo=HOUR),
    datetime.datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime.datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), datetime.time(1), datetime.time(1, tzinfo=UTC),
    datetime.time(1, tzinfo=HOUR), datetime.timedelta(1), datetime.timedelta(2), UTC, HOUR, ZoneInfo("Europe/Berlin"),
    ZoneInfo("Europe/Paris"), range(3), range(4), range(0, 3, 2), re.compile("a"), re.compile("b"), re.compile(b"a"),
    re.compile("a", re.IGNORECASE), uuid.UUID(int=1), uuid.UUID(int=2), Decimal(1), Decimal("1.0"), Decimal("NaN"),
    Decimal("-0"), Decimal(0), Fraction(1), Fraction(1, 2), ipaddress.ip_address("::1"), ipaddress.ip_address("::2"), math,
    os, list[int], list[str], int | None, str | None, Callable[[int], str], Callable[[str], str], Literal["a"], Literal["b"],
    Rate(1, 2), Rate(1, 3), Rate(1.0, 2), Slots(1, 2), Slots(1, 3), Slots(1, Slots(1, 2)), SlotsAndMore(1, 2, 3),
    SlotsAndMore(1, 2, 4), Spec(1), Spec(True), functools.partial(scaled, Rate(1, 2)), functools.partial(scaled, range(3)),
    Rate(pathlib.Path("a"), 2), Rate(pathlib.Path("b"), 2), Pair(range(3), 1), Pair(range(4), 1),
    {"a": range(3)}, Rate(1, 2).rise, Rate(1, 3).rise, Config(1, range(3)), Config(1, range(4)),
]  # fmt: skip


def reason(folder: Path, tree: Any, like: Any) -> list[str]:
    """Return the lines in which the structure of a saved tree differs from that of another."""
    fl.save(folder / "tree.safetensors", tree)
    with pytest.raises(fl.CheckpointError) as caught:
        fl.load(folder / "tree.safetensors", like)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{folder}/tree.safetensors: the tree in the file doesn't have the structure of like:"
    return lines


def test_static_values_are_told_apart_by_what_they_are() -> None:
    texts = [description.describe_tree(*reversed(parts(Layer(W, kind=value)))).facts for value in STATIC]
    for number, facts in enumerate(texts):
        assert [other for other, each in enumerate(texts) if each == facts] == [number], STATIC[number]


def parts(tree: Any) -> tuple[list[mx.array], Any]:
    return fl.tree.flatten(tree)


def test_of_long_texts_the_end_is_shown_where_one_goes_on() -> None:
    shown = (f"...{'x' * 20}", f"...{'x' * 20}yz")
    assert differences._excerpts("x" * 300, "x" * 300 + "yz") == shown


def test_flags_are_described_by_their_value_as_only_newer_pythons_name_a_combination() -> None:
    facts = description.describe_tree(*reversed(parts(Layer(W, kind=Access.READ | Access.RUN)))).facts
    assert ("kind", "static", f"{__name__}.Access(5)") in facts


def test_the_differences_of_large_trees_are_found_soon() -> None:
    def facts(kind: str) -> list[description.Fact]:
        places = [f"layers.{number}" for number in range(20_000)]
        return [fact for at in places for fact in (description.Fact(at, "keys", kind), description.Fact(f"{at}.w", "", kind))]

    start = time.perf_counter()
    lines = differences.differences(facts("a"), facts("b"))
    assert time.perf_counter() - start < 5  # it was minutes where each place was compared with each
    assert lines[0] == "layers.0.w: a in the file, b in like"
    assert lines[-1] == "and 19,994 more"


def test_the_nearest_names_are_looked_for_a_few_times_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(differences, "nearest", lambda name, names: asked.append(name) or "")
    assert len(reason(tmp_path, {f"a{number}": W for number in range(30)}, {f"b{number}": W for number in range(30)})) == 7
    assert asked == [f"a{number}" for number in range(5)]


def test_two_processes_describe_a_tree_alike(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, functools, mlx.core as mx, frostleaf as fl\n"
        "class Net(fl.Module):\n"
        "    weight: mx.array\n"
        "    names: frozenset = fl.static(default=frozenset('abcdefgh'))\n"
        "    function: object = fl.static(default=lambda x: x)\n"
        "    other: object = fl.static(default=object())\n"
        "def square(x): return x * x\n"
        "def tree(): return {'net': Net(mx.ones(2)), 'f': functools.partial(square, x=1), 'g': lambda: Net}\n"
        "if __name__ == '__main__': fl.save(sys.argv[1], tree())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    said = subprocess.run(
        [sys.executable, script, tmp_path / "a"], check=True, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert "UncomparedValueWarning: load will not notice if net.other (a builtins.object) becomes another" in said.stderr
    sys.path.insert(0, str(tmp_path))
    try:
        import script as imported  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    assert fl.tree.equal(fl.load(tmp_path / "a", imported.tree())["net"], imported.tree()["net"])
    with pytest.warns(fl.UncomparedValueWarning):
        assert "0x" not in json.dumps(list(io_trees.take_snapshot(imported.tree(), None).metadata.values()))


def test_static_values_of_one_kind_and_content_are_one() -> None:
    once, again = Rate(1, 2), Rate(1, 2)
    assert once.span == 1  # which is kept in its __dict__
    for one, other in ((once, again), (Spec(1, 2), Spec(1, 3)), (Named(1, 2), Named(1, 3)), (Pair(once, 1), Pair(again, 1))):
        assert facts_of(one) == facts_of(other)


def facts_of(value: Any) -> list[description.Fact]:
    return description.describe_tree(*reversed(parts(Layer(W, kind=value)))).facts


@pytest.mark.parametrize("values", [(Path("a"), Path("b")), (Rate(1, range(2)), Rate(1, range(3)))], ids=["paths", "values"])
def test_a_static_value_that_is_another_is_an_error_that_shows_both(values: tuple[Any, Any], tmp_path: Path) -> None:
    line, remedy = reason(tmp_path, Layer(W, kind=values[0]), Layer(W, kind=values[1]))
    assert line.startswith("kind (static): ")
    assert remedy.startswith(REMEDIES)
    assert fl.load(tmp_path / "tree.safetensors", Layer(W * 0, kind=values[0])).kind == values[0]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), "builtins.object"), (Day(2020, 1, 1), f"{__name__}.Day"), (Rate(1, object()), "builtins.object"),
        (functools.partial(scaled, object()), "builtins.object"), (np.dtype("f4"), "numpy.dtypes.Float32DType"),
    ],
    ids=["object", "subclass of a built-in class", "inside a value", "inside a partial", "of another library"],
)  # fmt: skip
def test_a_value_that_can_not_be_described_is_warned_of_when_it_is_saved(value: Any, kind: str, tmp_path: Path) -> None:
    tree = {"net": [Layer(W, kind=value)]}
    with pytest.warns(fl.UncomparedValueWarning, match=rf"load will not notice if net\.0\.kind \(a {kind}\) becomes") as seen:
        fl.save(tmp_path / "a", tree)
    assert seen[0].filename == __file__
    with pytest.warns(fl.UncomparedValueWarning) as seen, fl.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
    assert seen[0].filename == __file__
    fl.load(tmp_path / "a", tree)


def test_the_warning_does_not_grow_with_the_model(tmp_path: Path) -> None:
    with pytest.warns(fl.UncomparedValueWarning, match=r"or 2\.kind \(a builtins.object\) \(and 97 more\) becomes"):
        fl.save(tmp_path / "a", [Layer(W, kind=object()) for _ in range(100)])


def test_a_value_that_holds_itself_is_described() -> None:
    ring = Rate(1, [])
    ring.high.append(ring)
    assert "Rate(high=[...], low=1)" in description.Writer().static("", ring)


@pytest.mark.parametrize("path", ["r", "m.0"])
def test_the_random_state_is_kept_as_its_array(path: str, tmp_path: Path) -> None:
    def make(state: Any) -> Any:
        return {"r": state} if path == "r" else {"m": [state]}

    with pytest.raises(TypeError, match=rf"what stands at {re.escape(path)} is a .*Its array is mx\.random\.state\[0\]$"):
        fl.save(tmp_path / "state.safetensors", make(mx.random.state))
    fl.save(tmp_path / "state.safetensors", make(mx.random.state[0]))
