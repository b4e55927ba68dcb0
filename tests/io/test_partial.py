"""Parts of saved trees: only what is selected is read, or only what both trees have, and the rest stays as it was."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import identical, law, trees

import frostleaf as fl
from frostleaf.io import safetensors


class Net(fl.Module):
    encoder: fl.nn.Sequential
    head: fl.nn.Linear
    rate: float = 0.5
    name: str = fl.static(default="")


def net(seed: int, layers: int = 2, classes: int = 3, dtype: Any = mx.float32, **fields: Any) -> Net:
    keys = mx.random.split(mx.random.key(seed), layers + 1)
    encoder = fl.nn.Sequential(*[fl.nn.Linear(4, 4, key=key) for key in keys[1:]])
    return Net(encoder, fl.nn.Linear(4, classes, dtype=dtype, key=keys[0]), **fields)


def saved(tree: Any, folder: Path) -> Path:
    fl.save(folder / "a.safetensors", tree)
    return folder / "a.safetensors"


def same(one: Any, other: Any) -> bool:
    """Return whether two values have the same numbers, and bits."""
    return fl.tree.equal(one, other)


def ours(tree: Any, like: Any) -> list[str]:
    """Return the paths of the leaves that are not those of ``like``."""
    pairs = zip(fl.tree.paths(tree), fl.tree.leaves(tree), fl.tree.leaves(like), strict=True)
    return [path for path, new, old in pairs if new is not old]


WHERE: dict[str, tuple[Any, list[str]]] = {
    "a path": ("encoder", ["encoder.layers.0", "encoder.layers.1"]),
    "a path of an array": ("encoder.layers.1.bias", ["encoder.layers.1.bias"]),
    "a glob of arrays": ("encoder.**", ["encoder.layers.0", "encoder.layers.1"]),
    "a glob of modules": ("*.layers.1", ["encoder.layers.1"]),
    "a glob of names": ("**.bias", ["encoder.layers.0.bias", "encoder.layers.1.bias", "head.bias"]),
    "all arrays and every number": ("**", ["encoder", "head"]),
    "a class": (fl.nn.Linear, ["encoder", "head"]),
    "an outer class": (fl.nn.Sequential, ["encoder"]),
    "a predicate": (lambda path, array: array.ndim == 2, ["encoder.layers.0.weight", "encoder.layers.1.weight", "head.weight"]),
    "several": (["head.bias", "encoder.layers.0.**"], ["encoder.layers.0", "head.bias"]),
    "several of each kind": (("head.*", fl.nn.Sequential), ["encoder", "head"]),
    "a number": ("rate", []),
    "a number and an array": ({"rate", "head.bias"}, ["head.bias"]),
}


@pytest.mark.parametrize("kind", WHERE)
def test_what_is_selected_is_read_and_the_rest_is_the_same(kind: str, tmp_path: Path) -> None:
    where, selected = WHERE[kind]
    model, like = net(0, rate=0.25), net(1)
    before = fl.tree.flatten(like)
    loaded = fl.load(saved(model, tmp_path), like, where=where)
    changed = [path for path in fl.tree.paths(like) if any(f"{path}.".startswith(f"{each}.") for each in selected)]
    assert ours(loaded, like) == changed
    assert loaded.rate == (0.25 if "number" in kind else 0.5)
    for path in fl.tree.paths(like):
        assert same(loaded.at(path).get(), (model if path in changed else like).at(path).get())
    assert identical(fl.tree.flatten(like)[0], before[0])
    if not any(path.startswith("head") for path in changed):
        assert loaded.head is like.head
    if not any(path.startswith("encoder.layers.0") for path in changed):
        assert loaded.encoder.layers[0] is like.encoder.layers[0]


@law
@given(trees(), st.data())
def test_any_part_of_any_tree_is_what_the_whole_has_there(tmp_path_factory: Any, tree: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("law")
    fl.save(folder / "a", tree)
    names = fl.tree.paths(tree)
    chosen = data.draw(st.sets(st.sampled_from(names))) if names else set()
    like = fl.tree.map(lambda array: fl.ShapeDtypeStruct(array.shape, array.dtype), tree)
    if not chosen:
        return
    loaded = fl.load(folder / "a", like, where=lambda path, array: path in chosen)
    for name, new, old, leaf in zip(names, *map(fl.tree.leaves, (loaded, like, tree)), strict=True):
        if name in chosen:
            assert same(new, leaf)
        else:
            assert new is old


class Counted:
    """A file that counts the bytes that are read of it."""

    def __init__(self, file: Any) -> None:
        self.file, self.count = file, 0

    def read(self, size: int) -> bytes:
        self.count += size
        return self.file.read(size)

    def readinto(self, data: memoryview) -> int:
        self.count += data.nbytes
        return self.file.readinto(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize(
    ("where", "strict", "expected"),
    [("a", True, 40_000), (["b", "d"], True, 120_000), ("c", True, 40_000), (None, False, 160_000)],
)
def test_only_the_bytes_of_what_is_selected_are_read(
    where: Any, strict: bool, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"a": mx.zeros(10_000), "b": mx.ones(10_000), "d": mx.arange(20_000)}
    tree["c"] = tree["b"]
    file = saved({**tree, "e": mx.zeros(30_000)} if not strict else tree, tmp_path)
    with open(file, "rb") as opened:
        header = 8 + int.from_bytes(opened.read(8), "little")
    files: list[Counted] = []
    kept = safetensors.open_regular

    @contextmanager
    def counting(path: Any) -> Any:
        with kept(path) as opened:
            files.append(Counted(opened))
            yield files[-1]

    monkeypatch.setattr("frostleaf.io.parts.open_regular", counting)
    fl.load(file, fl.eval_shape(lambda: tree), where=where, strict=strict)
    assert sum(each.count for each in files) == header + expected


def test_a_damaged_array_elsewhere_is_not_noticed(tmp_path: Path) -> None:
    tree = {"a": mx.ones(600), "b": mx.zeros(600)}
    file = saved(tree, tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert same(fl.load(file, tree, where="a"), tree)
    for options in ({"where": "b"}, {"strict": False}, {"where": "b", "strict": False}):
        with pytest.raises(fl.CheckpointError, match="array 'b' is damaged"):
            fl.load(file, tree, **options)


def test_what_is_shared_is_one_object_where_both_are_selected(tmp_path: Path) -> None:
    one = mx.ones(600)
    file = saved({"a": one, "b": one, "c": one, "d": mx.ones(600)}, tmp_path)
    like = {name: mx.zeros(600) for name in "abcd"}
    loaded = fl.load(file, like, where=["b", "c", "d"])
    assert loaded["b"] is loaded["c"]
    assert loaded["d"] is not loaded["c"]
    assert loaded["a"] is like["a"]
    assert same([loaded[name] for name in "bcd"], [one] * 3)


@pytest.mark.parametrize(
    ("where", "fields", "line"),
    [
        ("encoder", {"layers": 3}, "encoder.layers: tuple of 3 in the file, tuple of 2 in like"),
        ("encoder.**", {"layers": 3}, "encoder.layers: tuple of 3 in the file, tuple of 2 in like"),
        ("encoder.**", {"layers": 1}, "encoder.layers: tuple of 1 in the file, tuple of 2 in like"),
        ("encoder.layers.*", {"layers": 3}, "encoder.layers: tuple of 3 in the file, tuple of 2 in like"),
        ("encoder.layers.*.weight", {"layers": 3}, "encoder.layers.2.weight: array f32[4,4] in the file, nothing in like"),
        ("**", {"layers": 3}, "encoder.layers: tuple of 3 in the file, tuple of 2 in like"),
        ("head", {"classes": 5}, "head.weight: array f32[5,4] in the file, array f32[3,4] in like"),
        ("head.bias", {"dtype": mx.float16}, "head.bias: array f16[3] in the file, array f32[3] in like"),
        (lambda path, array: "head" in path, {"classes": 5}, "head.bias: array f32[5] in the file, array f32[3] in like"),
        (["encoder.layers.0", fl.nn.Linear], {"classes": 5}, "head.weight: array f32[5,4] in the file"),
        ("rate", {"rate": 1}, "rate: a Python int in the file, a Python float in like"),
        ("name", {"name": "other"}, "name (static): 'other' in the file, '' in like"),
        ("n*", {"name": "other"}, "name (static): 'other' in the file, '' in like"),
    ],
)
def test_what_is_selected_must_be_alike(where: Any, fields: dict[str, Any], line: str, tmp_path: Path) -> None:
    file = saved(net(0, **fields), tmp_path)
    with pytest.raises(fl.OtherStructureError, match=re.escape(line)) as caught:
        fl.load(file, net(1), where=where)
    assert str(caught.value).startswith(f"{file}: the tree in the file doesn't have the structure of like:\n")


def test_what_is_not_selected_need_not_be_alike(tmp_path: Path) -> None:
    model, like = net(0, classes=5, dtype=mx.float16, name="a"), net(1).at("head").apply(lambda head: head.eval().freeze())
    file = saved({"model": model, "state": {"m": mx.zeros(3)}}, tmp_path)
    loaded = fl.load(file, {"model": like, "step": 7}, where="model.encoder.**")
    assert same(fl.tree.leaves(loaded["model"].encoder), fl.tree.leaves(model.encoder))
    assert loaded["step"] == 7
    assert fl.tree.structure(loaded["model"]) == fl.tree.structure(like)


def test_placeholders_stay_where_nothing_is_read(tmp_path: Path) -> None:
    like = fl.eval_shape(lambda: net(1))
    loaded = fl.load(saved(net(0), tmp_path), like, where="head")
    assert loaded.encoder is like.encoder
    assert same(loaded.head, net(0).head)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("encodr.**", LookupError, r"'encodr\.\*\*' selects nothing in this Net\. The nearest paths are 'encoder'"),
        (
            "encoder.layers.0.bais",
            LookupError,
            r"nothing in this Net\. The nearest paths are 'encoder\.layers\.0\.bias'",
        ),
        (["head", "had"], LookupError, "'had' selects nothing in this Net"),
        (fl.nn.Conv1d, LookupError, "selects nothing"),
        (lambda path, array: False, LookupError, "selects nothing"),
        ("name", LookupError, "where='name' selects no array, and no number"),
        (7, TypeError, "can't select by 7"),
        ("encoder.layers.1.weight", ValueError, "is tied to 'encoder.layers.0.weight': select that"),
    ],
)
def test_a_selection_of_nothing_is_an_error(where: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    like = net(1)
    if error is ValueError:
        like = like.tie({"encoder.layers.1.weight": "encoder.layers.0.weight"})
    with pytest.raises((error, LookupError), match=message):
        fl.load(saved(like, tmp_path), like, where=where)


def test_tied_places_follow(tmp_path: Path) -> None:
    model, like = [net(seed).tie({"encoder.layers.1.weight": "encoder.layers.0.weight"}) for seed in (0, 1)]
    loaded = fl.load(saved(model, tmp_path), like, where="encoder.**")
    assert loaded.encoder.layers[1].weight is loaded.encoder.layers[0].weight
    assert same(loaded.encoder, model.encoder)
    assert loaded.head is like.head


def test_a_model_that_has_grown_takes_what_it_had(tmp_path: Path) -> None:
    model, like = net(0, rate=0.25), net(1, layers=3)
    tree, report = fl.load(saved({"model": model, "step": 3}, tmp_path), {"model": like, "best": mx.zeros(2)}, strict=False)
    assert report.taken == (*(f"model.{path}" for path in fl.tree.paths(model)), "model.rate")
    assert report.left == ("step",)
    assert report.new == ("model.encoder.layers.2.weight", "model.encoder.layers.2.bias", "best")
    assert same(fl.tree.leaves(tree["model"].encoder.layers[:2]), fl.tree.leaves(model.encoder.layers))
    assert tree["model"].encoder.layers[2] is like.encoder.layers[2]
    assert tree["model"].rate == 0.25
    assert report == type(report)(*report)


def test_a_model_that_has_lost_layers_leaves_them(tmp_path: Path) -> None:
    model, like = net(0, layers=3), net(1, layers=1)
    tree, report = fl.load(saved(model, tmp_path), like, strict=False)
    assert report.left == tuple(f"encoder.layers.{number}.{name}" for number in (1, 2) for name in ("weight", "bias"))
    assert report.new == ()
    assert same(tree.encoder.layers[0], model.encoder.layers[0])
    assert same(tree.head, model.head)


def test_what_is_not_selected_is_left(tmp_path: Path) -> None:
    model, like = net(0), net(1, layers=3)
    tree, report = fl.load(saved(model, tmp_path), like, where="encoder.**", strict=False)
    assert report.left == ("head.weight", "head.bias", "rate")
    assert report.new == ("encoder.layers.2.weight", "encoder.layers.2.bias")
    assert tree.head is like.head
    assert same(tree.encoder.layers[1], model.encoder.layers[1])


def test_a_whole_tree_is_taken_without_strictness(tmp_path: Path) -> None:
    model = net(0)
    tree, report = fl.load(saved(model, tmp_path), fl.eval_shape(lambda: model), strict=False)
    assert same(tree, model)
    assert report[1:] == ((), (), ())


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"classes": 5}, ["head.weight: array f32[5,4] in the file, array f32[3,4] in like", "['head.weight', 'head.bias']"]),
        ({"dtype": mx.float16}, ["head.weight: array f16[3,4] in the file, array f32[3,4] in like"]),
        ({"rate": 1}, ["rate: a Python int in the file, a Python float in like"]),
        ({"rate": mx.array(1.0)}, ["rate: array f32[] in the file, a Python float in like"]),
    ],
)
def test_another_kind_under_the_same_name_is_an_error(fields: dict[str, Any], lines: list[str], tmp_path: Path) -> None:
    file, like = saved(net(0, **fields), tmp_path), net(1)
    with pytest.raises(fl.OtherStructureError) as caught:
        fl.load(file, like, strict=False)
    assert all(line in str(caught.value) for line in [f"{file}: strict=False reads what has the same name", *lines])
    names = ["head.weight", "head.bias"]
    tree, report = fl.load(file, like, where=lambda path, array: path not in names, strict=False)
    assert tree.head is like.head
    assert "head.weight" in report.left


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    file = saved({"model": net(0)}, tmp_path)
    with pytest.raises(fl.OtherStructureError) as caught:
        fl.load(file, net(1), strict=False)
    assert str(caught.value).startswith(
        f"{file}: nothing in the file has the name of anything in like:\nmodel.encoder.layers.0"
    )
    assert "; the nearest is " in str(caught.value)


def test_names_that_two_values_have_are_an_error(tmp_path: Path) -> None:
    tree = {"a.b": 1, "a": {"b": 2}, "c": 3}
    file = saved(tree, tmp_path)
    assert fl.load(file, tree) == tree
    assert fl.load(file, tree, where="c") == tree
    with pytest.raises(ValueError, match=r"two values have the name 'a\.b', so that neither can be read by its name"):
        fl.load(file, tree, strict=False)


def test_a_tree_that_is_an_array_or_a_number(tmp_path: Path) -> None:
    file = saved(mx.ones(3), tmp_path)
    assert same(fl.load(file, mx.zeros(3), where="**"), mx.ones(3))
    assert same(fl.load(file, mx.zeros(3), strict=False)[0], mx.ones(3))
    assert fl.load(saved(7, tmp_path), 0, strict=False)[0] == 7


def test_strict_is_a_flag(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="strict is True or False, and was given as 'no'"):
        fl.load(saved(net(0), tmp_path), net(0), strict="no")  # type: ignore[call-overload]


def test_a_report_is_bounded() -> None:
    names = tuple(f"layers.{number}" for number in range(10_000))
    assert repr(fl.LoadReport(names, (), names[:1])) == (
        "LoadReport(10,000 taken: 'layers.0', 'layers.1', 'layers.2' and 9,997 more; 0 left; 1 new: 'layers.0')"
    )
    assert len(repr(fl.LoadReport(("\n" * 10_000,), (), ()))) < 200
    assert "\n" not in repr(fl.LoadReport(("\n",), (), ()))


def test_reading_a_part_takes_its_memory_alone(tmp_path: Path) -> None:
    tree = {"a": mx.zeros(1000), "b": mx.ones(1_000_000)}
    file = saved(tree, tmp_path)
    like = fl.eval_shape(lambda: tree)
    assert os.path.getsize(file) > 4_000_000
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    loaded = fl.load(file, like, where="a")
    assert mx.get_peak_memory() - before < 100_000
    assert loaded["b"] is like["b"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model.freeze(keys="bias"), "freeze or unfreeze the one that is loaded"),
        (lambda model: model.astype(mx.float16), "cast what is loaded, as with .astype(...)"),
        (lambda model: model.astype(mx.float16).freeze(), None),
        (lambda model: model.eval(), None),
    ],
)
def test_what_is_done_after_loading_is_said(change: Any, said: str | None, tmp_path: Path) -> None:
    file = saved(net(0), tmp_path)
    with pytest.raises(fl.OtherStructureError) as caught:
        fl.load(file, change(net(1)))
    assert ("differ" in str(caught.value).splitlines()[-1]) == (said is not None)
    assert str(caught.value).endswith(said or "")
    assert fl.tree.equal(change(fl.load(file, net(1))), change(net(0)))


DOTTED: dict[str, tuple[Any, Any, list[str]]] = {
    "a leaf": ({"weight": mx.array(1), "weight.scales": mx.array(2)}, "weight", ["weight"]),
    "the longer": ({"weight": mx.array(1), "weight.scales": mx.array(2)}, "weight.scales", ["weight.scales"]),
    "a predicate": ({"weight": mx.array(1), "weight.scales": mx.array(2)}, lambda path, array: path == "weight", ["weight"]),
    "what holds others": ({"a": {"x": mx.array(1)}, "a.b": {"c": mx.array(2)}}, "a", ["a.x"]),
    "a dotted one that holds others": ({"a": {"x": mx.array(1)}, "a.b": {"c": mx.array(2)}}, "a.b", ["a.b.c"]),
    "a glob": ({"a": {"x": mx.array(1)}, "a.b": mx.array(2)}, "a.*", ["a.x", "a.b"]),
    "a glob of arrays": ({"a": {"x": {"y": mx.array(1)}}, "a.b": mx.array(2)}, "a.**", ["a.x.y", "a.b"]),
    "in a list": (
        {"weight": mx.array(1), "weight.scales": mx.array(2), "bias": mx.array(3)},
        ["weight", "bias"],
        ["bias", "weight"],
    ),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", DOTTED)
def test_a_dot_in_a_key_selects_no_more(name: str, strict: bool, tmp_path: Path) -> None:
    tree, where, paths = DOTTED[name]
    like = fl.tree.map(mx.zeros_like, tree)
    loaded = fl.load(saved(tree, tmp_path), like, where=where, strict=strict)
    assert sorted(ours(loaded if strict else loaded[0], like)) == sorted(paths)


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ("**", {"run.epoch", "run.note", "run.w", "rate", "flags.done"}),
        ("run.**", {"run.epoch", "run.note", "run.w"}),
        ("run", {"run.epoch", "run.note", "run.w"}),
        ("flags.**", {"flags.done"}),
        (["flags.**", "run.w"], {"flags.done", "run.w"}),
        ("**.*o*", {"run.epoch", "run.note", "flags.done"}),
    ],
)
def test_two_stars_are_numbers_and_strings_too(where: Any, taken: set[str], tmp_path: Path) -> None:
    tree = {"run": {"epoch": 3, "note": "a", "w": mx.ones(2)}, "rate": 0.5, "flags": {"done": True}}
    like = {"run": {"epoch": 0, "note": "", "w": mx.zeros(2)}, "rate": 0.0, "flags": {"done": False}}
    file = saved(tree, tmp_path)
    loaded, report = fl.load(file, like, where=where, strict=False)
    assert {*report.taken} == taken
    whole = fl.load(file, like, where=where)
    for found in (loaded, whole):
        for path, new, old in [("run.epoch", 3, 0), ("run.note", "a", ""), ("rate", 0.5, 0.0), ("flags.done", True, False)]:
            value: Any = found
            for name in path.split("."):
                value = value[name]
            assert value == (new if path in taken else old), path


@pytest.mark.parametrize("rest", [{"same": mx.ones(2)}, {"same": mx.ones(2), "n": 1}, {"n": 1}, {"n": 1, "m": 1}])
@pytest.mark.parametrize("count", [1, 5, 500])
def test_the_remedy_for_other_kinds_leaves_out_what_it_names(count: int, rest: dict[str, Any], tmp_path: Path) -> None:
    names = [f"w{number}" for number in range(count)]
    file = saved({name: mx.ones(3) for name in names} | rest, tmp_path)
    like = {name: mx.zeros(4) for name in names} | {
        name: 0 if type(value) is int else mx.zeros(2) for name, value in rest.items()
    }
    with pytest.raises(fl.OtherStructureError, match="is of another kind") as error:
        fl.load(file, like, strict=False)
    text = str(error.value)
    if count == 500 and "same" in rest:
        assert "where=" not in text
        return
    remedy = text.partition("leave it out by where=")[2]
    loaded, report = fl.load(file, like, strict=False, where=eval(remedy))
    assert report.taken == (*rest,)
    assert all(loaded[name] is like[name] for name in names)


def test_what_is_said_of_another_kind_keeps_the_numbers(tmp_path: Path) -> None:
    tree = {"w": mx.zeros(2), "v": mx.ones(2), "epoch": 5, "note": "x"}
    like = {"w": mx.zeros(3), "v": mx.zeros(2), "epoch": 0, "note": ""}
    file = saved(tree, tmp_path)
    with pytest.raises(fl.OtherStructureError, match="leave it out by where=") as caught:
        fl.load(file, like, strict=False)
    where = eval(str(caught.value).split("where=")[1])
    for strict in (True, False):
        loaded = fl.load(file, like, where=where, strict=strict)
        loaded = loaded if strict else loaded[0]
        assert same(loaded, {**tree, "w": like["w"]})


@pytest.mark.parametrize("where", ["**", "*.weight", fl.nn.Linear, "second"])
def test_an_array_in_the_place_of_nothing_is_told(where: Any, tmp_path: Path) -> None:
    def model(second: fl.nn.Linear) -> dict[str, fl.nn.Linear]:
        return {"first": fl.nn.Linear(2, 2), "second": second}

    without = model(fl.nn.Linear(2, 2).replace(weight=None))
    fl.save(tmp_path / "run", model(fl.nn.Linear(2, 2)))
    with pytest.raises(fl.OtherStructureError, match=r"second.weight: array f32\[2,2\] in the file"):
        fl.load(tmp_path / "run", without, where=where)
    fl.save(tmp_path / "run", without)
    assert fl.load(tmp_path / "run", without, where=where)["second"].weight is None
