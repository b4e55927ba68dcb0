"""What makes no difference to who loads: the order of a dict's keys, and whether a class is of a script or of a module."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest

import frostleaf as fl


@attrs.frozen
class Config:
    size: int = 2
    act: Any = None


def relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


class Net(fl.Module):
    w: mx.array
    rate: float = 0.5
    config: Any = fl.static(default=Config(2, relu))


def moved(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (Net, Config, relu):
        monkeypatch.setattr(each, "__module__", module)


@pytest.mark.parametrize("kind", [dict, OrderedDict])
@pytest.mark.parametrize("options", [{}, {"where": "**"}, {"strict": False}])
def test_the_order_of_keys_is_that_of_like(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    shared = mx.ones(3)
    tree = kind(model=kind(a=mx.ones(2), b=shared, c=1), state=[mx.zeros(2), kind(c="x", d=shared)], e=2.5)
    like = kind(state=[mx.ones(2), kind(d=mx.zeros(3), c="")], e=0.0, model=kind(c=0, b=mx.zeros(3), a=mx.zeros(2)))
    fl.save(tmp_path / "a", tree)
    found = fl.load(tmp_path / "a", like, **options)
    loaded = found if "strict" not in options else found[0]
    assert [[*loaded], [*loaded["model"]], [*loaded["state"][1]]] == [["state", "e", "model"], ["c", "b", "a"], ["d", "c"]]
    assert fl.tree.equal(loaded["model"]["a"], tree["model"]["a"])
    assert fl.tree.equal(loaded["state"][0], tree["state"][0])
    assert loaded["model"]["b"] is loaded["state"][1]["d"]
    assert (loaded["model"]["c"], loaded["state"][1]["c"], loaded["e"]) == (1, "x", 2.5)


def test_a_checkpoint_is_restored_in_another_order_and_not_written_again(tmp_path: Path) -> None:
    big = mx.ones(10_000)
    with fl.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": big, "b": mx.ones(2)})
        _, loaded = checkpoints.restore({"b": mx.zeros(2), "a": mx.zeros(10_000)})
        assert [*loaded] == ["b", "a"]
        checkpoints.save(2, loaded)
        checkpoints.wait()
        assert checkpoints.restore({"a": big, "b": mx.zeros(2)})[0] == 2
        assert not checkpoints.diff(1, 2)


@pytest.mark.parametrize(
    ("tree", "like", "line"),
    [
        ({"a": 1, "b": 2}, {"b": 1.0, "a": 1}, "b: a Python int in the file, a Python float in like"),
        ({"a": 1, "b": 2}, {"b": 1, "c": 1}, "a: a Python int in the file, nothing in like"),
        ({1: 1, 2: 2}, {"2": 1, 1: 1}, r"\(root\) \(keys\): 1, 2 in the file, '2', 1 in like"),
        ([1, 2.0], [1.0, 2], "0: a Python int in the file, a Python float in like"),
    ],
)
def test_what_differs_besides_is_told_alone(tree: Any, like: Any, line: str, tmp_path: Path) -> None:
    fl.save(tmp_path / "a", tree)
    with pytest.raises(fl.OtherStructureError, match=f"structure of like:\n{line}"):
        fl.load(tmp_path / "a", like)


def test_values_of_one_name_in_another_order_are_refused(tmp_path: Path) -> None:
    fl.save(tmp_path / "a", {1: 1, "1": 2, "b": 3})
    assert fl.load(tmp_path / "a", {1: 0, "1": 0, "b": 0}) == {1: 1, "1": 2, "b": 3}
    with pytest.raises(ValueError, match="two values have the name '1'"):
        fl.load(tmp_path / "a", {"1": 0, 1: 0, "b": 0})


@pytest.mark.parametrize(("saved_in", "loaded_in"), [("__main__", "pkg.nets"), ("pkg.nets", "__main__")])
def test_a_class_of_a_script_is_that_of_a_module(
    saved_in: str, loaded_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(saved_in, monkeypatch)
    fl.save(tmp_path / "a", {"m": Net(mx.ones(2), 0.25)})
    moved(loaded_in, monkeypatch)
    loaded = fl.load(tmp_path / "a", {"m": Net(mx.zeros(2))})
    assert fl.tree.equal(loaded, {"m": Net(mx.ones(2), 0.25)})
    with pytest.raises(fl.OtherStructureError, match="config"):
        fl.load(tmp_path / "a", {"m": Net(mx.zeros(2), config=Config(3, relu))})


def test_a_text_is_no_name_of_a_class(tmp_path: Path) -> None:
    fl.save(tmp_path / "a", Net(mx.ones(2), config="__main__.Net"))
    with pytest.raises(fl.OtherStructureError, match="config"):
        fl.load(tmp_path / "a", Net(mx.ones(2), config="pkg.Net"))


def test_a_class_in_another_module_is_told_the_remedy_that_keeps_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved("old.nets", monkeypatch)
    fl.save(tmp_path / "a", Net(mx.ones(2), 0.25))
    moved("new.nets", monkeypatch)
    with pytest.raises(fl.OtherStructureError, match="moved to another module: strict=False reads by the names"):
        fl.load(tmp_path / "a", Net(mx.zeros(2)))
    loaded, report = fl.load(tmp_path / "a", Net(mx.zeros(2)), strict=False)
    assert fl.tree.equal(loaded, Net(mx.ones(2), 0.25))
    assert not report.left


@pytest.mark.parametrize("options", [{}, {"strict": False}])
def test_other_dtypes_alone_are_told_to_be_cast(options: dict[str, Any], tmp_path: Path) -> None:
    fl.save(tmp_path / "a", {"a": mx.ones(2), "b": mx.ones(3), "n": 1})
    like = {"a": mx.zeros(2, mx.float16), "b": mx.zeros(3), "n": 0}
    with pytest.raises(fl.OtherStructureError, match=r"Only dtypes differ: .* cast what is loaded"):
        fl.load(tmp_path / "a", like, **options)
    with pytest.raises(fl.OtherStructureError) as error:
        fl.load(tmp_path / "a", {**like, "b": mx.zeros(4)}, **options)
    assert "Only dtypes" not in str(error.value)
