"""Trees that are described one after another, as each would be by itself, and without looking through them again."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import law, trees

import frostleaf as fl
from frostleaf.core.structure import flat_of
from frostleaf.io import describing
from frostleaf.io.describing import Described, Describer


class Kind(enum.Enum):
    ONE, OTHER = 1, 2


@dataclasses.dataclass(eq=False)
class Options:
    rate: float = 0.5

    def schedule(self, step: int) -> float:
        return self.rate / step


class Layer(fl.Module):
    w: mx.array
    about: Any = fl.static(default=None)


def layer(about: Any = None, size: int = 2) -> Layer:
    return Layer(mx.zeros(size), about)


def described(tree: Any, describer: Describer | None = None) -> Described:
    found = (describer or Describer()).describe(flat_of(tree))
    return found._replace(names=[*found.names])


MODEL = layer()
ABOUT = (0, 1, True, 1.0, "a", b"a", (1, 2), mx.float32, Kind.ONE, Kind.OTHER, len, frozenset("ab"), {"a": 1}, [1, 2])
TREES = {
    "a model": MODEL,
    "another of it": layer(),
    "in another mode": MODEL.eval(),
    "frozen": MODEL.freeze(),
    "of another dtype": MODEL.astype(mx.float16),
    "of another shape": layer(size=3),
    "of another class": fl.nn.RMSNorm(2),
    **{
        f"about {about!r:.20}": layer(about)
        for about in (0, 1, True, 1.0, "a", b"a", (1, 2), mx.float32, Kind.ONE, Kind.OTHER, len)
    },
    "with a step": {"model": MODEL, "step": 1},
    "with another": {"model": layer(), "step": 2},
    "with one that is no int": {"model": MODEL, "step": 2.0},
    "with none": {"model": MODEL, "step": None},
    "with more": {"model": MODEL, "step": 2, "text": "a"},
    "in another order": {"step": 2, "model": MODEL},
    "in an own dict": OrderedDict(model=MODEL, step=2),
    "with another name": {"net": MODEL, "step": 2},
    "in a list": [MODEL, 2],
    "in a tuple": (MODEL, 2),
    "a longer one": (MODEL, 2, 3),
    "deeper": ([MODEL, (1, "a")], {"b": [b"c", 2.5]}),
    "and with others": ([layer(), (5, "c")], {"b": [b"e", -0.5]}),
    "nothing": [],
    "numbers": [1, 2],
    "others": [3, 4],
    "a number": 1,
    "another": 2,
    "an array": mx.zeros(2),
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_described_as_by_itself_after_any_other(name: str) -> None:
    for other in TREES.values():
        describer = Describer()
        for tree in (TREES[name], other, other):
            assert described(tree, describer) == described(tree)


@law
@given(st.lists(trees(), min_size=2, max_size=4))
def test_trees_one_after_another_are_described_as_each_by_itself(given_trees: list[Any]) -> None:
    describer = Describer()
    for tree in [*given_trees, *given_trees]:
        assert described(tree, describer) == described(tree)


def changed(value: Any) -> None:
    if isinstance(value, Options):
        value.rate = 2.0
    elif isinstance(value, functools.partial):
        value.keywords["a"] = 2
    else:
        changed(value.__self__)


@pytest.mark.parametrize("where", ["alone", "in a tuple"])
@pytest.mark.parametrize(
    "about",
    [Options, lambda: functools.partial(max, a=1), lambda: Options().schedule],
    ids=["dataclass", "partial", "method"],
)
def test_a_static_value_that_was_changed_in_its_place_is_described_anew(about: Any, where: str) -> None:
    value, describer = about(), Describer()
    model = layer(value if where == "alone" else (value,))
    before = described(model, describer)
    changed(model.about if where == "alone" else model.about[0])
    after = described(model, describer)
    assert after == described(model)
    assert after.text != before.text


def test_what_is_the_same_is_not_looked_through_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    describe = describing.describe_tree

    def counted(*given: Any) -> Any:
        calls.append(given)
        return describe(*given)

    monkeypatch.setattr(describing, "describe_tree", counted)
    model = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.relu, fl.nn.Linear(2, 2))
    optimizer = fl.optim.Adam(1e-3)
    state = optimizer.init(model)
    like = {"model": model, "state": state, "step": 0}
    with fl.Checkpointer(tmp_path) as checkpoints:
        for step in range(4):
            gradients = fl.tree.map(mx.ones_like, model)
            model, state = optimizer.update(model, gradients, state)
            checkpoints.save(step, {"model": model, "state": state, "step": step})
    assert len(calls) == 1
    monkeypatch.undo()
    for step in (2, 3):
        restored = fl.load(tmp_path / f"step-{step:08d}.safetensors", like)
        assert restored["step"] == step
        assert json.dumps(restored["step"]) == str(step)
