"""What an error says to write instead, tried: each remedy works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import frostleaf as fl


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.layer = nn.Linear(2, 2)

    def __call__(self, x: mx.array) -> mx.array:
        self.step += 1
        return self.layer(x)


def refused(tree: Any, like: Any, folder: Path, **options: Any) -> str:
    fl.save(folder / "a.safetensors", tree)
    with pytest.raises(fl.OtherStructureError) as caught:
        fl.load(folder / "a.safetensors", like, **options)
    return str(caught.value)


@pytest.mark.parametrize("around", ["like", "{'run': [like], 'n': 1}"])
def test_a_number_that_code_counts_is_put_into_like(around: str, tmp_path: Path) -> None:
    like = fl.from_mlx(Counting())
    _, counted = fl.stateful(like, mx.ones((1, 2)))
    tree, like = [eval(around, {"like": each}) for each in (counted, like)]
    text = refused(tree, like, tmp_path)
    assert "strict=False reads them, keeps all else as like has it, and reports where that differs" in text
    changed = eval(text.partition("as in ")[2], {"like": like})
    assert changed.step == 1
    loaded = fl.load(tmp_path / "a.safetensors", eval(around, {"like": changed}))
    assert fl.tree.equal(loaded, tree)
    _, report = fl.load(tmp_path / "a.safetensors", like, strict=False)
    assert [path.rpartition(".")[2] for path in report.differs] == ["step"]


class Layer(fl.Module):
    weight: mx.array
    scale: Any = fl.static(default=1)


class Other(fl.Module):
    weight: mx.array
    scale: Any = fl.static(default=1)


@pytest.mark.parametrize(
    ("tree", "like", "setting"),
    [
        (Layer(mx.ones(2), 2.5), Layer(mx.ones(2)), "like.at('scale').set(2.5)"),
        ([Layer(mx.ones(2), "a")], [Layer(mx.ones(2))], "like[0].at('scale').set('a')"),
        (Layer(mx.ones(2), (1, 2)), Layer(mx.ones(2)), "like.at('scale').set(...)"),
        (Other(mx.ones(2)), Layer(mx.ones(2)), ""),
    ],
)
def test_what_differs_besides_arrays_is_told_of_strict(tree: Any, like: Any, setting: str, tmp_path: Path) -> None:
    text = refused(tree, like, tmp_path)
    assert "strict=False reads them" in text
    assert text.partition("as in ")[2] == setting
    loaded, report = fl.load(tmp_path / "a.safetensors", like, strict=False)
    assert report.differs
    assert fl.tree.equal(fl.tree.leaves(loaded), fl.tree.leaves(tree))


@pytest.mark.parametrize(("count", "others"), [(2, 0), (0, 2), (3, 1)])
def test_a_list_that_has_grown_is_read_into_one_of_its_length(count: int, others: int, tmp_path: Path) -> None:
    tree = {"history": [0.5] * count, "w": mx.ones(2)}
    text = refused(tree, {"history": [0.0] * others, "w": mx.zeros(2)}, tmp_path)
    assert f"give like a list of {count} of them at 'history', or keep them in metadata= of fl.save" in text
    assert fl.tree.equal(fl.load(tmp_path / "a.safetensors", {"history": [0.0] * count, "w": mx.zeros(2)}), tree)
    fl.load(tmp_path / "a.safetensors", {"history": [0.0] * others, "w": mx.zeros(2)}, strict=False)


@pytest.mark.parametrize("others", [[], [0.0] * 9])
def test_a_list_that_grows_is_kept_in_a_string_as_the_message_says(others: list[float], tmp_path: Path) -> None:
    with fl.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"history": [0.5], "w": mx.ones(2)})
        with pytest.raises(fl.OtherStructureError, match=r"in a Checkpointer too: save json\.dumps.*, and give like ''"):
            checkpoints.restore({"history": others, "w": mx.zeros(2)})
        for count in (2, 3):
            checkpoints.save(count, {"history": json.dumps([0.5] * count), "w": mx.ones(2)})
            step, tree = checkpoints.restore({"history": "", "w": mx.zeros(2)})
            assert (step, json.loads(tree["history"])) == (count, [0.5] * count)


@pytest.mark.parametrize(
    ("tree", "like", "told"),
    [
        ({"a": mx.ones(2), "b": mx.ones(2)}, {"a": mx.zeros(2)}, True),
        ({"a": mx.ones(2)}, {"a": mx.zeros(2), "b": mx.ones(2)}, True),
        ({"a": mx.ones(2)}, {"b": mx.ones(2)}, False),
        ({"a": mx.ones(2), "b": mx.ones(2)}, {"a": mx.zeros(3), "b": mx.ones(2)}, False),
        ({"a": mx.ones(2), "b": mx.ones(2)}, {"a": mx.zeros(3)}, False),
    ],
)
def test_what_has_other_names_is_told_of_strict_where_that_works(tree: Any, like: Any, told: bool, tmp_path: Path) -> None:
    assert ("strict=False reads what both have" in refused(tree, like, tmp_path)) == told
    if told:
        fl.load(tmp_path / "a.safetensors", like, strict=False)
    else:
        with pytest.raises(fl.OtherStructureError, match=r"nothing in the file|of another kind"):
            fl.load(tmp_path / "a.safetensors", like, strict=False)


def test_a_selection_is_told_the_same(tmp_path: Path) -> None:
    like = {"a": Layer(mx.ones(2)), "b": mx.ones(3)}
    text = refused({"a": Layer(mx.ones(2), 3), "b": mx.ones(4)}, like, tmp_path, where="a.**")
    assert text.endswith("as in like['a'].at('scale').set(3)")
    assert re.search(r"a\.scale \(static\): 3 in the file, 1 in like", text)


class Old(fl.Module):
    encoder: fl.nn.Linear
    head: fl.nn.Linear


class New(fl.Module):
    backbone: fl.nn.Linear
    head: fl.nn.Linear


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("around", "names"),
    [
        ("model", ("encoder.", "backbone.")),
        ("{'model': model, 'state': fl.optim.Adam(0.1).init(model)}", ("encoder.", "backbone.")),
        ("{kind: model.head}", ("Old.", "New.")),
        ("{'a': model.head, 'b': {kind: mx.ones(2)}}", None),
    ],
)
def test_a_name_that_has_changed_is_told_with_rename(
    around: str, names: tuple[str, str] | None, strict: bool, tmp_path: Path
) -> None:
    trees = [
        eval(around, {"fl": fl, "mx": mx, "kind": kind.__name__, "model": kind(fl.nn.Linear(2, 2), fl.nn.Linear(2, 1))})
        for kind in (Old, New)
    ]
    fl.save(tmp_path / "a", trees[0])
    try:
        fl.load(tmp_path / "a", trees[1], strict=strict)
    except fl.OtherStructureError as error:
        found = re.search(r"rename=(lambda name: name\.replace\(.*?\)), strict=False\)", str(error))
        assert (found and found[1]) == (names and f"lambda name: name.replace({names[0]!r}, {names[1]!r})")
        if found:
            loaded, report = fl.load(tmp_path / "a", trees[1], rename=eval(found[1]), strict=False)
            assert fl.tree.equal(fl.tree.leaves(loaded), fl.tree.leaves(trees[0]))
            assert report[1:3] == ((), ())
    else:
        assert not strict  # something has the same name
