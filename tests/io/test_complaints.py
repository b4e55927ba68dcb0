"""What an error says to write instead, tried: each remedy works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from checkpoints import New, Old

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


class Block(fl.Module):
    first: Layer
    second: Layer
    scale: float = fl.static(default=0.0)


def blocks(*scales: tuple[Any, Any], own: float = 0.0) -> fl.nn.Sequential:
    return fl.nn.Sequential(*[Block(Layer(mx.ones(2), one), Layer(mx.ones(2), two), own) for one, two in scales])


@pytest.mark.parametrize("inside", ["like", "{'model': like, 'n': 1}", "[mx.ones(1), like]"])
@pytest.mark.parametrize(
    ("scales", "others", "setting"),
    [
        ([(5, 1)] * 3, [(1, 1)] * 3, ".at('layers.*.first.scale').set(5)"),
        ([(5, 5)] * 3, [(1, 1)] * 3, ".at('layers.*.*.scale').set(5)"),
        ([(5, 1), (1, 5)], [(1, 1)] * 2, ".at(['layers.0.first.scale', 'layers.1.second.scale']).set(5)"),
        ([(5, 1), (5, 1), (1, 1)], [(1, 1)] * 3, ".at(['layers.0.first.scale', 'layers.1.first.scale']).set(5)"),
        ([(5, 6)] * 2, [(1, 1)] * 2, ".at('layers.*.first.scale').set(5).at('layers.*.second.scale').set(6)"),
        ([(5, 1)], [(1, 1)], ".at('layers.0.first.scale').set(5)"),
    ],
)
def test_what_differs_in_the_same_way_is_set_at_once(
    inside: str, scales: Any, others: Any, setting: str, tmp_path: Path
) -> None:
    tree, like = [eval(inside, {"like": blocks(*each), "mx": mx}) for each in (scales, others)]
    text = refused(tree, like, tmp_path)
    where = {"{": "like['model']", "[": "like[1]"}.get(inside[0], "like")
    assert text.partition("as in ")[2] == where + setting
    changed = eval(text.partition("as in ")[2], {"like": like})
    fl.load(tmp_path / "a.safetensors", eval(inside, {"like": changed, "mx": mx}))


def test_a_glob_fits_those_alone_that_differ(tmp_path: Path) -> None:
    deep = [fl.nn.Sequential(Layer(mx.ones(2), each), fl.nn.Sequential(Layer(mx.ones(2), each))) for each in (2, 1)]
    assert refused(*deep, tmp_path).endswith("as in like.at('**.scale').set(2)")
    for own in (0.0, 3.0):  # what the blocks have by that name is another value
        text = refused(blocks((2, 2), own=3.0), blocks((1, 1), own=own), tmp_path)
        changed = eval(text.partition("as in ")[2], {"like": blocks((1, 1), own=own)})
        assert changed.layers[0].scale == 3.0
        assert fl.tree.equal(fl.load(tmp_path / "a.safetensors", changed), blocks((2, 2), own=3.0))


def test_where_it_takes_too_long_to_say_one_is_told(tmp_path: Path) -> None:
    scales = [(7, 1) if number % 3 else (1, 1) for number in range(90)]
    text = refused(blocks(*scales), blocks(*[(1, 1)] * 90), tmp_path)
    assert text.endswith("as in like.at('layers.1.first.scale').set(7)")


def test_the_scale_of_adapters_is_set_at_once(tmp_path: Path) -> None:
    model = fl.nn.Sequential(*[fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)) for _ in range(3)])
    tree, like = [{"model": fl.lora(model, "layers.*.layers.1", rank=1, scale=scale)} for scale in (10.0, 20.0)]
    text = refused(tree, like, tmp_path)
    assert text.endswith("as in like['model'].at('layers.*.layers.1.scale').set(10.0)")
    changed = eval(text.partition("as in ")[2], {"like": like})
    assert fl.tree.equal(fl.load(tmp_path / "a.safetensors", {"model": changed}), tree)


@pytest.mark.parametrize("evaluated", [(0, 1, 2), (0, 2), (1,)])
@pytest.mark.parametrize("in_file", [True, False])
def test_modules_in_another_mode_are_switched_at_once(evaluated: tuple[int, ...], in_file: bool, tmp_path: Path) -> None:
    model = fl.nn.Sequential(*[fl.nn.Sequential(fl.nn.Linear(2, 2)) for _ in range(3)])
    other = model
    for number in evaluated:
        other = other.at(f"layers.{number}").apply(lambda module: module.eval())
    tree, like = ([other], [model]) if in_file else ([model], [other])
    found = re.search(r"For the mode of the file give (.*) there$", refused(tree, like, tmp_path))
    assert found
    assert ("'layers.*'" in found[1]) == (len(evaluated) == 3)
    assert fl.tree.equal(fl.load(tmp_path / "a.safetensors", [eval(found[1], {"like": like})]), tree)


@pytest.mark.parametrize("rest", [{}, {"n": 1}, {"mask": mx.array([True])}])
@pytest.mark.parametrize("strict", [True, False])
def test_where_only_dtypes_differ_it_is_said_to_cast(rest: dict[str, Any], strict: bool, tmp_path: Path) -> None:
    tree = {"w": mx.ones(2), "v": mx.ones(2)} | rest
    like = {"w": mx.zeros(2, mx.bfloat16), "v": mx.zeros(2, mx.bfloat16)} | rest
    text = refused(tree, like, tmp_path, strict=strict)
    assert text.endswith("give like the dtypes that the file has, and cast what is loaded, as with .astype(...)")
    assert "where=" not in text
    assert fl.tree.equal(fl.load(tmp_path / "a.safetensors", {**like, "w": mx.zeros(2), "v": mx.zeros(2)}), tree)


def test_what_is_left_when_others_are_left_out_is_in_the_file(tmp_path: Path) -> None:
    tree, like = {"w": mx.ones(2), "v": mx.ones(2)}, {"w": mx.ones(3), "new": mx.ones(3)}
    assert "where=" not in refused(tree, like, tmp_path, strict=False)
    like = {"w": mx.ones(3), "v": mx.zeros(2), "new": mx.ones(3)}
    where = eval(refused(tree, like, tmp_path, strict=False).partition("where=")[2])
    assert fl.load(tmp_path / "a.safetensors", like, where=where, strict=False)[1].taken == ("v",)


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
